"""Builds two small networks for grey or colour images of about 28 px, for tests, demos and tables without a GPU.

They come from no paper. `small`, about 61,000 weights, is as small a stack of convolutions as still learns digits and
photographs of ten classes, and trains on one processor core. `medium`, about 300,000 weights, has most of them where
the maps are small, so that a step costs about twice that of `small`, not five times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def small(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build four 3x3 convolutions with batch norm and ReLU, two of stride 2, then average pooling and a linear layer.

    Args:
        num_classes: K.
        channels: C.
        image_size: height and width of the images in pixels.

    Returns:
        A module (B, C, H, W) -> (B, K).
    """
    # Halving at the first layer saves three quarters of the work; images of 16 px or less need their full detail there.
    return _stack(num_classes, channels, (16, 32, 64, 64), (2, 1, 2, 1) if image_size > 16 else (1, 2, 1, 2))


def medium(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build the same with wider layers and one more of stride 2; arguments and result as in `small`."""
    return _stack(num_classes, channels, (32, 64, 128, 176), (2, 2, 1, 2) if image_size > 16 else (1, 2, 1, 2))


def _stack(num_classes: int, channels: int, widths: Sequence[int], strides: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise((channels, *widths)), strides, strict=True):
        # No bias, because the batch norm that follows would remove it again.
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))
