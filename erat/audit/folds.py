"""Deals folds for out-of-fold predictions: no network judges an image if it has seen that image or a copy of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erat.errors import UserError


def deal(labels: Tensor, folds: int, copies: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
    """Return the fold of each image, int64 (N,), in 0..folds-1: each class is spread evenly, copies stay together.

    Args:
        labels: the given labels, int64 (N,).
        folds: how many folds, at least 2.
        copies: groups of rows with the same picture.
        generator: the generator of the random order.

    Raises:
        UserError: there are fewer than two folds, or more folds than images.
    """
    if not 2 <= folds <= len(labels):
        raise UserError(f"folds must be in [2, {len(labels)}] for {len(labels)} images, got {folds}")
    leader = torch.arange(len(labels))
    for group in copies:
        leader[list(group)] = group[0]
    order = torch.randperm(len(labels), generator=generator)
    order = order[leader[order] == order]  # one of each picture, in a random order
    order = order[torch.argsort(labels[order], stable=True)]
    fold = torch.full_like(leader, -1)
    # The count runs on from class to class, so that small classes do not all begin in the first fold.
    fold[order] = torch.arange(len(order)) % folds
    return fold[leader]
