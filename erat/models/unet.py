"""Defines U-Net.

Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation" (MICCAI 2015).
Here it maps an image to a perturbation of the same size (L2C). Sizes need not be powers of two: on the way up, features
are resized to fit the features of the skip connection.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOUBLINGS = 3  # of the channels on the way down: 64-128-256-512 at the paper's width


class UNet(nn.Module):
    """A network that maps images (B, C, H, W) to values in (-1, 1) of the same shape.

    Args:
        channels: C.
        width: the number of channels at full resolution; each of the three halvings doubles it.
        official: the form of L2C's authors: means instead of maxima on the way down, bilinear interpolation instead of
            nearest neighbours on the way up, and batch norm before the tanh.
    """

    def __init__(self, channels: int, width: int, *, official: bool = False) -> None:
        super().__init__()
        self.official = official
        widths = [width * 2**level for level in range(DOUBLINGS + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_double(a + b, a) for a, b in pairwise(widths))
        self.last: nn.Module = nn.Conv2d(width, channels, 1)
        if official:
            self.last = nn.Sequential(self.last, nn.BatchNorm2d(channels))

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to the tanh of the last layer."""
        features, skipped = images, []
        for level, block in enumerate(self.down):
            # ceil_mode rounds up when an odd size is halved, so that three halvings turn 7 px into 1 px, not into none.
            features = block(self._halved(features) if level else features)
            skipped.append(features)
        skipped.pop()
        for block in reversed(self.up):
            skip = skipped.pop()
            features = block(torch.cat([skip, self._resized(features, skip)], 1))
        values: Tensor = self.last(features).tanh()
        return values

    def _halved(self, features: Tensor) -> Tensor:
        pool = F.avg_pool2d if self.official else F.max_pool2d
        return pool(features, 2, ceil_mode=True)

    def _resized(self, features: Tensor, skip: Tensor) -> Tensor:
        if self.official:
            return F.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=True)
        return F.interpolate(features, skip.shape[-2:], mode="nearest")


def _double(inputs: int, outputs: int) -> nn.Module:
    """Build two 3x3 convolutions with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
