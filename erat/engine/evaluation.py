"""Evaluate on whole sets, in large batches: predictions, clean or under attack, accuracy and confusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from erat.attacks.freezing import frozen
from erat.attacks.pgd import Budget, pgd
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense
from erat.engine.parallel import Ranks
from erat.losses import label_loss

BATCH = 1000
ATTACK_BATCH = 250  # attacks need gradients: larger batches would take more memory than a training step
ATTACK_STEPS = 20
ATTACK_STEP_RATIO = 1 / 8


def map_images(images: Tensor, function: Callable[[Tensor], Tensor], ranks: Ranks | None = None) -> Tensor:
    """Apply `function` to all images in float batches and return its rows in the order of the images.

    The images are sharded over the workers, and the rows of all of them are gathered on every worker.

    Args:
        images: uint8 (N, C, H, W).
        function: maps a batch, float (B, C, H, W) in [0, 1], to B rows.
        ranks: this worker's place; None: there is only one.
    """
    ranks = ranks or Ranks()
    shard = ranks.shard(len(images))
    rows = [function(to_float(images[i : min(i + BATCH, shard.stop)])) for i in range(shard.start, shard.stop, BATCH)]
    return ranks.gather_rows(torch.cat(rows) if rows else function(to_float(images[:1]))[:0], len(images))


def predictions(
    defense: Defense, images: ImageSet, ranks: Ranks, autocast: Callable[[], AbstractContextManager[object]]
) -> Tensor:
    """Return the predicted classes, int64 (N,), in eval mode, without gradients and under `autocast()`."""
    with frozen(defense), torch.no_grad(), autocast():
        return map_images(images.images, lambda batch: defense.predict(batch).argmax(1), ranks)


def attacked_predictions(
    defense: Defense, images: ImageSet, epsilon: Mapping[str, float], ranks: Ranks | None = None
) -> Tensor:
    """Return the predicted classes, int64 (N,), after untargeted PGD.

    Every other image is attacked under l_inf, the rest under l_2.

    Args:
        epsilon: the budget of each norm, "linf" and "l2", in pixel units of 1.0; the same for all runs that are
            compared.
        ranks: the workers over which the images are sharded; the classes are gathered on all of them.
    """
    ranks = ranks or Ranks()
    shard, rows = ranks.shard(len(images)), [images.labels[:0]]
    with frozen(defense):
        for start in range(shard.start, shard.stop, ATTACK_BATCH):
            part = slice(start, min(start + ATTACK_BATCH, shard.stop))
            clean, labels = to_float(images.images[part]), images.labels[part]
            linf = torch.arange(part.start, part.stop, device=clean.device) % 2 == 0
            size = torch.where(linf, clean.new_tensor(epsilon["linf"]), clean.new_tensor(epsilon["l2"]))
            objective = partial(label_loss, labels)
            step = size * ATTACK_STEP_RATIO
            moved = pgd(defense.predict, clean, objective, Budget(size, linf), steps=ATTACK_STEPS, step_size=step)
            rows.append(defense.predict(moved).argmax(1))
    return ranks.gather_rows(torch.cat(rows), len(images))


def confusion(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix, counts in int64 (K, K): row = true class, column = predicted class."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(labels: Tensor, predicted: Tensor) -> float:
    """Return the share of right predictions, in [0, 1]."""
    return float((labels == predicted).double().mean())
