"""Builds plain deep stacks of 3x3 convolutions: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale
Image Recognition", ICLR 2015, with batch norm after each convolution (Ioffe, Szegedy, ICML 2015).

The three fully connected layers of the paper fit images of 224 px and hold nine tenths of its weights; as is customary
for small images, one linear layer on the pooled features replaces them.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs, make_layers  # type: ignore[import-untyped,unused-ignore]


def vgg11(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 8 convolutions (the paper's A), 9.23 M weights at K = 10, C = 3: (B, C, H, W) -> (B, K), any image size."""
    return _vgg("A", num_classes, channels)


def vgg16(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 13 convolutions (the paper's D), 14.73 M weights at K = 10, C = 3: (B, C, H, W) -> (B, K), of any size."""
    return _vgg("D", num_classes, channels)


def _vgg(letter: str, num_classes: int, channels: int) -> nn.Module:
    features: nn.Sequential = make_layers(cfgs[letter], batch_norm=True)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MaxPool2d):
            # Five halvings that round down leave nothing of 28 px (28, 14, 7, 3, 1, 0). Rounding up ends at 1 px, and
            # makes no difference if the size is a multiple of 32.
            module.ceil_mode = True
        elif isinstance(module, nn.ReLU):
            # An in-place activation would also overwrite the output that a hook on the layer before it has saved.
            module.inplace = False
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
