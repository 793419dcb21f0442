"""OPS, one-pixel shortcuts (Wu, Chen, Xie, Huang, "One-Pixel Shortcut", ICLR 2023): a pixel that tells the class.

The images of a class all get the same colour at the same place: the one that changes these images most and most evenly.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.errors import UserError

CONSTANT = 1e20  # the weight of a change that is the same for all images: no other change is as even


class OnePixel(kinds.OPS, DataCorruption):
    """One-pixel shortcuts; of `epsilon` pixels, a class gets so many, at different places."""

    def perturb(self, craft: Craft) -> Tensor:
        """Search the pixels of one class after the other, and set them in all its images.

        No two classes get the same colour at the same place. Where several choices are equally good, as in the black
        margin of digits, the order's generator decides.

        Raises:
            UserError: there are fewer choices than classes need.
        """
        _, channels, height, width = craft.images.shape
        colours_QC = torch.tensor(list(product((0, 1), repeat=channels)))
        pixels, places = int(craft.epsilon), height * width
        if pixels * craft.num_classes > len(colours_QC) * places:
            raise UserError(
                f"corruption.epsilon must leave pixels of their own to each of {craft.num_classes} classes: at most "
                f"{len(colours_QC) * places // craft.num_classes} for images of {places} pixels, got {pixels}"
            )
        free_QP = torch.ones(len(colours_QC), places, dtype=torch.bool)
        order = torch.randperm(free_QP.numel(), generator=craft.generator)
        delta = torch.zeros_like(craft.images)
        for label in range(craft.num_classes):
            rows = (craft.labels == label).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            images = craft.images[rows]
            allowed = scores(images, colours_QC).masked_fill(~free_QP, -1.0)
            for _ in range(pixels):
                best = int(order[allowed.flatten()[order].argmax()])  # the first of those that are equal
                colour, place = divmod(best, places)
                if allowed[colour, place] < 0:
                    raise UserError(
                        f"corruption.epsilon must leave class {label} a place for each of its pixels, got {pixels}"
                    )
                free_QP[colour, place] = False
                allowed[:, place] = -1.0
                at = (slice(None), slice(None), place // width, place % width)
                moved = colours_QC[colour].to(images) - images[at]
                delta[rows, :, place // width, place % width] = moved
        return delta


def scores(images_NCHW: Tensor, colours_QC: Tensor) -> Tensor:
    """Return mean |c - x| / std |c - x| over images and channels of a class, float64 (Q, H * W), for every colour c.

    The sums are of whole grey levels, so that neither their order nor the device decides between near choices.

    Args:
        images_NCHW: the images of one class, in [0, 1].
        colours_QC: the colours, of zeros and ones.
    """
    levels = (images_NCHW * 255).round().to(torch.int32).flatten(2).cpu()
    count = levels.shape[0] * levels.shape[1]
    first_CP = levels.sum(0, dtype=torch.int64)
    second_CP = levels.square().sum(0, dtype=torch.int64)
    # |1 - x| in grey levels is 255 - x: its sum, and the sum of its squares.
    inverse_CP = 255 * len(levels) - first_CP
    inverse_second_CP = 255**2 * len(levels) - 510 * first_CP + second_CP
    white = colours_QC.bool()[:, :, None]
    sum_QP = torch.where(white, inverse_CP, first_CP).sum(1)
    square_QP = torch.where(white, inverse_second_CP, second_CP).sum(1)
    spread_QP = (count * square_QP - sum_QP.square()).double()  # the variance times count^2
    total_QP = sum_QP.double()
    return torch.where(spread_QP > 0, total_QP / spread_QP.clamp_min(1).sqrt(), total_QP * CONSTANT)


OPS = OnePixel()
