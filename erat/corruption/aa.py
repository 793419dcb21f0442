"""AA, AutoAttack as a poison (Croce, Hein, "Reliable evaluation of adversarial robustness ...", ICML 2020).

Untargeted: each image is moved away from its class, as the source network sees it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from erat.attacks.apgd import apgd
from erat.attacks.ensemble import LEAST_CLASSES, standard_ensemble
from erat.attacks.freezing import frozen
from erat.attacks.norms import l2_step, per_image
from erat.attacks.pgd import Budget
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import in_batches
from erat.errors import UserError
from erat.losses import label_loss


class AutoAttackPoison(kinds.AA, DataCorruption):
    """AutoAttack as a poison: APGD-CE, which perturbs every image to its highest loss, or the published ensemble.

    The ensemble (`corruption.attack=standard`: APGD-CE, APGD-T, FAB-T, Square) aims only at a wrong prediction: an
    image that the network already misclassifies, or that none of the four attacks can change, stays clean.
    """

    def perturb(self, craft: Craft) -> Tensor:
        """Attack every image on its own.

        Raises:
            UserError: the ensemble is asked for, and the set has too few classes for its targeted attacks.
        """
        attack = _apgd_ce if craft.options["attack"] == "apgd-ce" else _ensemble
        if attack is _ensemble and craft.num_classes < LEAST_CLASSES:
            raise UserError(
                f"corruption.attack=standard needs at least {LEAST_CLASSES} classes, the set has {craft.num_classes}"
            )
        with frozen(craft.source()) as network:
            return in_batches(craft, f"{craft.options['attack']} on images", partial(attack, craft, network))


def _apgd_ce(craft: Craft, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Attack a batch with APGD-CE, starting from a random point on the surface of the ball, as published.

    Args:
        images: float (B, C, H, W) in [0, 1].
        labels: int64 (B,).

    Returns:
        The perturbed images, of the shape and range of `images`.
    """
    budget = Budget.of(craft.norm, craft.epsilon, images)
    if craft.norm == "l2":
        start = l2_step(torch.randn(images.shape, generator=craft.generator))
    else:
        uniform = 2 * torch.rand(images.shape, generator=craft.generator) - 1
        start = uniform / per_image(uniform.abs().flatten(1).amax(1))
    start = (start * craft.epsilon).to(images.device)
    moved, _ = apgd(network, images, partial(label_loss, labels), budget, steps=craft.steps, start_NCHW=start)
    return moved


def _ensemble(craft: Craft, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Attack a batch with the ensemble in its authors' own implementation; shapes are as in `_apgd_ce`."""
    seed = int(torch.randint(2**31, (1,), generator=craft.generator))
    return standard_ensemble(
        network,
        images,
        labels,
        norm=craft.norm,
        epsilon=craft.epsilon,
        num_classes=craft.num_classes,
        seed=seed,
        steps=craft.steps,
    )


AA = AutoAttackPoison()
