"""An adaptive poisoner, who knows ERAT: REM's loop against ERAT's own perturbations, views and loss.

No paper has it. The surrogate trains as ERAT does on samples whose labels it believes (the labelled terms of Eq. 8):
its surrogate poison of Eqs. 6, 7 and 10 within the customary budgets, strong views of the image and of the perturbed
image, and the perturbed image itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erat.corruption import kinds
from erat.corruption.base import Craft
from erat.corruption.robust import Defended, RobustlyMinimised
from erat.data.augment.traced import traced_view
from erat.data.augment.views import crop_view
from erat.data.random import BatchRandom
from erat.defenses.base import Task
from erat.defenses.options import ERATOptions
from erat.defenses.perturbation import Perturber


class AdaptivePoison(kinds.Adaptive, RobustlyMinimised):
    """Error-minimising perturbations against ERAT."""

    def defended(self, craft: Craft) -> Defended:
        """Return ERAT's three views of images with labels, all believed."""
        options = craft.options
        erat = ERATOptions(
            epsilon_inf=options["epsilon_inf"], epsilon_2=options["epsilon_2"], steps=options["attack_steps"]
        )
        shape = tuple(craft.images.shape[1:])
        perturber = Perturber(
            erat, Task(len(craft.images), craft.num_classes, options["flip"], lambda _: craft.build(), shape)
        )

        def defended(network: nn.Module, images: Tensor, labels: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
            still = images.detach()
            moved = images + (perturber(network, still, labels, random) - still)
            plain = torch.cat([images, moved])
            beneath = crop_view(plain, random, flip=True) if options["flip"] else plain
            return torch.cat([traced_view(beneath, random, policy=options["policy"]), moved]), labels.repeat(3)

        return defended


ADAPTIVE = AdaptivePoison()
