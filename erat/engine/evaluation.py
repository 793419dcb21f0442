"""Accuracy, confusion, and functions mapped over whole sets: large batches, eval mode, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from erat.attacks.pgd import Budget, frozen, pgd
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense
from erat.engine.parallel import Ranks
from erat.losses import label_loss

BATCH = 1000
ATTACK_BATCH = 250  # with gradients: larger ones would need more memory than a training step
ATTACK_STEPS = 20
ATTACK_STEP_RATIO = 1 / 8


def map_images(images: Tensor, function: Callable[[Tensor], Tensor], ranks: Ranks | None = None) -> Tensor:
    """`function` over uint8 images as float batches, rows in order; sharded over workers, gathered on all."""
    ranks = ranks or Ranks()
    shard = ranks.shard(len(images))
    rows = [function(to_float(images[i : min(i + BATCH, shard.stop)])) for i in range(shard.start, shard.stop, BATCH)]
    return ranks.gather_rows(torch.cat(rows) if rows else function(to_float(images[:1]))[:0], len(images))


def predictions(
    defense: Defense, images: ImageSet, ranks: Ranks, autocast: Callable[[], AbstractContextManager[object]]
) -> Tensor:
    """Predicted classes, int64, shape (N,)."""
    with frozen(defense), torch.no_grad(), autocast():
        return map_images(images.images, lambda batch: defense.predict(batch).argmax(1), ranks)


def attacked_predictions(
    defense: Defense, images: ImageSet, epsilon: Mapping[str, float], ranks: Ranks | None = None
) -> Tensor:
    """Predicted classes, int64, shape (N,), after untargeted PGD: every other image under l_inf, the rest under l_2.

    Args:
        epsilon: budget per norm, "linf" and "l2", pixel units of 1.0. The same for all runs that are compared.
        ranks: sharded over these workers, gathered on all.
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
    """Counts, int64, shape (K, K): row = true class, column = predicted class."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(labels: Tensor, predicted: Tensor) -> float:
    """Share of right predictions, in [0, 1]."""
    return float((labels == predicted).double().mean())
