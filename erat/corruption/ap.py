"""AP, adversarial poisoning (Fowl et al., "Adversarial Examples Make Strong Poisons", NeurIPS 2021).

Each image is perturbed until the source network classifies it as the next class, so that it carries features of a wrong
class under its right label.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from erat.attacks.freezing import frozen
from erat.attacks.pgd import budget_of, pgd
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import in_batches
from erat.losses import label_gain

STEP_RATIO = 0.2  # step size as a share of the budget, the same for every perturbation of the paper


class AdversarialPoison(kinds.AP, DataCorruption):
    """Adversarial poisoning: targeted PGD from x towards class (y + 1) mod K."""

    def perturb(self, craft: Craft) -> Tensor:
        """Move every image on its own towards the class after its label."""
        with frozen(craft.source()) as network:

            def attack(images: Tensor, labels: Tensor) -> Tensor:
                budget = budget_of(craft.norm, craft.epsilon, images)
                towards = partial(label_gain, (labels + 1) % craft.num_classes)
                step_size = budget.epsilon * STEP_RATIO
                return pgd(network, images, towards, budget, steps=craft.steps, step_size=step_size)

            return in_batches(craft, "targeted images", attack)


AP = AdversarialPoison()
