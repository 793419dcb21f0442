"""Builds a network of about 61,000 weights that trains on one processor core, for tests, demos and debugging.

It comes from no paper: it is a plain stack of convolutions, as small as can be while it still learns digits and
photographs of ten classes.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

WIDTHS = (16, 32, 64, 64)


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
    strides = (2, 1, 2, 1) if image_size > 16 else (1, 2, 1, 2)
    layers: list[nn.Module] = []
    for (inputs, outputs), stride in zip(pairwise((channels, *WIDTHS)), strides, strict=True):
        # No bias, because the batch norm that follows would remove it again.
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], num_classes))
