"""Makes the strong views of images with a gradient that leads back through them, for a poisoner who expects them."""

from __future__ import annotations

import torch
from torch import Tensor

from erat.data.augment.grouped import apply_each
from erat.data.augment.ops import warp
from erat.data.augment.policies import GEOMETRIC, OPERATIONS, SLOTS, draw_policy
from erat.data.random import BatchRandom
from erat.devices import to_device

INVERTING = [OPERATIONS.index(name) for name in ("invert", "solarize")]
NEAR = 1e-3  # distance from 1 - x up to which an inverting operation has inverted a pixel


def traced_view(images: Tensor, random: BatchRandom, *, policy: str) -> Tensor:
    """Return what `strong_view` returns for the same draws, up to rounding, with a gradient.

    The gradient through shifts, shears and rotations is exact. Through the other operations, some of which have none
    because they round to levels, it is passed on as it is, with its sign turned where a pixel is inverted.

    Args:
        images: shape (N, C, H, W), C 1 or 3, in [0, 1].
        random: source of the draws for each image.
        policy: "cifar10", "svhn", "imagenet" or "digits".
    """
    n, _, height, width = images.shape
    draws, views = draw_policy(random, n, policy, height, width), images
    for slot in range(SLOTS):
        operations, matrices = draws.operations[:, slot], draws.matrices[:, slot]
        with torch.no_grad():
            after = apply_each(views.detach(), operations, draws.magnitudes[:, slot], matrices)
            may_invert = to_device(torch.isin(operations, torch.tensor(INVERTING)), images.device)
            inverted = ((after + views - 1).abs() < NEAR) & may_invert[:, None, None, None]
            slope = 1 - 2 * inverted.to(images.dtype)
        before = views
        views = after + slope * (before - before.detach())
        warped = (operations < len(GEOMETRIC)).nonzero().squeeze(1)
        rows = to_device(warped, images.device)
        views = views.index_copy(0, rows, warp(before.index_select(0, rows), to_device(matrices[warped], rows.device)))
    return views
