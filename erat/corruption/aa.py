"""AA, AutoAttack as a poison (Croce, Hein, "Reliable evaluation of adversarial robustness ...", ICML 2020).

Untargeted: each image is moved away from its class, as the source network sees it.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor, nn

from erat.attacks.apgd import apgd
from erat.attacks.norms import l2_step, per_image
from erat.attacks.pgd import Budget, frozen
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import in_batches
from erat.errors import UserError
from erat.losses import label_loss

TARGETS = 9  # other classes that the targeted attacks try, as published
LEAST_CLASSES = 4  # the targeted attacks' loss compares four logits


class AutoAttackPoison(kinds.AA, DataCorruption):
    """APGD-CE, at its best loss (perturbs every image), or the published ensemble.

    The ensemble (`corruption.attack=standard`: APGD-CE, APGD-T, FAB-T, Square) asks for a wrong answer and no more: an
    image that the network gets wrong already, or that none of the four can turn, stays clean.
    """

    def perturb(self, craft: Craft) -> Tensor:
        attack = _apgd_ce if craft.options["attack"] == "apgd-ce" else _ensemble
        if attack is _ensemble and craft.num_classes < LEAST_CLASSES:
            raise UserError(
                f"corruption.attack=standard needs at least {LEAST_CLASSES} classes, the set has {craft.num_classes}"
            )
        with frozen(craft.source()) as network:
            return in_batches(craft, f"{craft.options['attack']} on images", partial(attack, craft, network))


def _apgd_ce(craft: Craft, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """From a random point of the ball's surface, as published."""
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
    """The authors' own implementation. It seeds torch's global generators, so these are put back afterwards."""
    from pyautoattack import AutoAttack

    seed = int(torch.randint(2**31, (1,), generator=craft.generator))
    norm = {"linf": "Linf", "l2": "L2"}[craft.norm]
    ensemble = AutoAttack(network, norm=norm, eps=craft.epsilon, seed=seed, device=images.device)
    ensemble.verbose = False
    ensemble.logger.setLevel(logging.ERROR)  # it doubts that images which are wrong already can be attacked
    ensemble.fab.n_iter = craft.steps
    for attack in (ensemble.apgd, ensemble.apgd_targeted):
        attack.n_iter = attack.n_iter_orig = craft.steps
        # When step sizes are reviewed follows from it, but only once, when the attack is made.
        attack.n_iter_2, attack.n_iter_min = max(int(0.22 * craft.steps), 1), max(int(0.06 * craft.steps), 1)
        attack.size_decr = max(int(0.03 * craft.steps), 1)
    ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(TARGETS, craft.num_classes - 1)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        moved: Tensor = ensemble.run_standard_evaluation(images, labels, batch_size=len(images))[0]
    return moved


AA = AutoAttackPoison()
