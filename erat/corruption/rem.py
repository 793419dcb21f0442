"""REM, robust error-minimising perturbations (Fu et al., "Robust Unlearnable Examples", ICLR 2022).

UP's perturbations lose their effect when a network is trained adversarially. These minimise the loss of adversarial
training itself, over random crops and mirrored images.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.pgd import Budget, pgd
from erat.corruption import kinds
from erat.corruption.base import Craft
from erat.corruption.robust import STEP_RATIO, Defended, RobustlyMinimised
from erat.data.augment.views import crop_view
from erat.data.random import BatchRandom
from erat.losses import label_loss


class RobustErrorMinimising(kinds.REM, RobustlyMinimised):
    """Robust error-minimising perturbations: against adversarial training with a part of their own budget."""

    def defended(self, craft: Craft) -> Defended:
        """Return adversarial training: a crop, then PGD from a random start, whose moves are held constant."""
        options = craft.options

        def defended(network: nn.Module, images: Tensor, labels: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
            views = crop_view(images, random, flip=options["flip"])
            still = views.detach()
            budget = Budget.of(craft.norm, craft.epsilon * options["attack_share"], still)
            with frozen(network):
                moved = pgd(
                    network,
                    still,
                    partial(label_loss, labels),
                    budget,
                    steps=options["attack_steps"],
                    step_size=budget.epsilon * STEP_RATIO,
                    start_NCHW=budget.draw(still, random),
                )
            return views + (moved - still), labels

        return defended


REM = RobustErrorMinimising()
