"""Builds residual networks: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

The blocks are torchvision's. The stem depends on the image size, because the one designed for photographs of 224 px
would leave a single pixel of a 32 px image for the last stage:

    up to 32 px   3x3 convolution, stride 1, no max-pool (the form used for CIFAR)
    33 to 64 px   3x3 convolution, stride 2, no max-pool (the stages then see maps as large as those of a 32 px image)
    above 64 px   7x7 convolution, stride 2, max-pool    (the form used for ImageNet)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision import models  # type: ignore[import-untyped,unused-ignore]


def resnet18(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 18 layers of basic blocks, 11.17 M weights at K = 10, C = 3: (B, C, H, W) -> (B, K)."""
    return _resnet(models.resnet18, num_classes, channels, image_size)


def resnet34(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 34 layers of basic blocks, 21.28 M weights at K = 10, C = 3: (B, C, H, W) -> (B, K)."""
    return _resnet(models.resnet34, num_classes, channels, image_size)


def resnet50(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 50 layers of bottleneck blocks, 23.52 M weights at K = 10, C = 3: (B, C, H, W) -> (B, K)."""
    return _resnet(models.resnet50, num_classes, channels, image_size)


def _resnet(builder: Callable[..., nn.Module], num_classes: int, channels: int, image_size: int) -> nn.Module:
    network = builder(weights=None, num_classes=num_classes)
    network.conv1 = _stem(channels, image_size)
    if image_size <= 64:
        network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            # An in-place activation would also overwrite the output that a hook on the layer before it has saved.
            module.inplace = False
    return network


def _stem(channels: int, image_size: int) -> nn.Conv2d:
    """Build the first convolution, (B, C, H, W) -> (B, 64, H / stride, W / stride)."""
    if image_size <= 64:
        stem = nn.Conv2d(channels, 64, 3, stride=1 if image_size <= 32 else 2, padding=1, bias=False)
    else:
        stem = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem
