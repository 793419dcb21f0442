"""Applies a different operation to each image of a batch, one call for all images that have the same."""

from __future__ import annotations

import torch
from torch import Tensor

from erat.data.augment import ops
from erat.data.augment.policies import GEOMETRIC, OPERATIONS, UNCHANGED
from erat.devices import to_device


def apply_each(images: Tensor, operations: Tensor, magnitudes: Tensor, matrices: Tensor) -> Tensor:
    """Return a new batch in which each image has undergone its operation; only the images may be on a device.

    Args:
        images: shape (N, C, H, W), in [0, 1].
        operations, magnitudes, matrices: as for `apply_sorted`, in the order of the images.
    """
    operations, order = operations.sort(stable=True)
    views = images.index_select(0, to_device(order, images.device))
    apply_sorted(views, operations, magnitudes[order], matrices[order])
    return views.index_select(0, to_device(order.argsort(), images.device))


def apply_sorted(views: Tensor, operations: Tensor, magnitudes: Tensor, matrices: Tensor) -> None:
    """Apply to each image its operation, in place. All arguments but the views are on the CPU.

    Args:
        views: shape (N, C, H, W).
        operations: int64, shape (N,), ascending, UNCHANGED for none.
        magnitudes: float64, shape (N,).
        matrices: float32, shape (N, 2, 3), for the geometric operations, which come first.
    """
    sizes = torch.bincount(operations, minlength=UNCHANGED + 1).tolist()
    magnitudes = to_device(magnitudes.float(), views.device)
    end = sum(sizes[: len(GEOMETRIC)])
    if end:
        views[:end] = ops.warp(views[:end], to_device(matrices[:end], views.device))
    for number in range(len(GEOMETRIC), UNCHANGED):
        if sizes[number]:
            start, end = end, end + sizes[number]
            operation = ops.PHOTOMETRIC_FUNCTIONS[OPERATIONS[number]]
            views[start:end] = operation(views[start:end], magnitudes[start:end])
