"""Runs AutoAttack's standard ensemble (APGD-CE, APGD-T, FAB-T, Square) in its authors' own implementation.

Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(ICML 2020); under l_1, Croce, Hein, "Mind the box" (ICML 2021).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # this project's names -> the implementation's
STEPS = 100  # as published
TARGETS = 9  # number of wrong classes that the targeted attacks try at most, as published; APGD-T under l_1: 5
LEAST_CLASSES = 4  # the loss of the targeted attacks compares four logits


def standard_ensemble(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    epsilon: float,
    num_classes: int,
    seed: int,
    steps: int = STEPS,
) -> Tensor:
    """Attack a batch; an image that is misclassified already, or that none of the attacks can change, stays clean.

    The implementation seeds torch's global generators, so they are restored afterwards.

    Args:
        network: maps images to logits, in eval mode with its weights frozen.
        images: float (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        norm: a key of `NORMS`.
        epsilon: the budget in pixel units of 1.0.
        num_classes: K, at least `LEAST_CLASSES`.
        seed: the seed of the attacks, below 2^31.
        steps: iterations of APGD and FAB.

    Returns:
        The perturbed images, of the shape and range of `images`.
    """
    from pyautoattack import AutoAttack

    ensemble = AutoAttack(network, norm=NORMS[norm], eps=epsilon, seed=seed, device=images.device)
    ensemble.verbose = False
    ensemble.logger.setLevel(logging.ERROR)  # it warns of images that are already misclassified
    ensemble.fab.n_iter = steps
    for attack in (ensemble.apgd, ensemble.apgd_targeted):
        attack.n_iter = attack.n_iter_orig = steps
        # The attack derives the schedule of its step sizes from `n_iter` only once, when it is constructed.
        attack.n_iter_2, attack.n_iter_min = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
        attack.size_decr = max(int(0.03 * steps), 1)
    for targeted in (ensemble.apgd_targeted, ensemble.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, TARGETS, num_classes - 1)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        moved: Tensor = ensemble.run_standard_evaluation(images, labels, batch_size=len(images))[0]
    return moved
