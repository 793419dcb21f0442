"""Defines residual networks with batch norm and ReLU before each convolution: He, Zhang, Ren, Sun, "Identity Mappings
in Deep Residual Networks", ECCV 2016. DivideMix and UNICON were published with the network of 18 layers.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from erat.models.wideresnet import WideBlock


class PreActResNet18(nn.Module):
    """A stem of 64 channels and four stages of two blocks: (B, C, H, W) -> (B, K), 11.17 M weights at K = 10, C = 3.

    The stem has stride 2 for images above 32 px, as in `resnet`.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 64, 3, stride=1 if image_size <= 32 else 2, padding=1, bias=False)
        nn.init.kaiming_normal_(self.stem.weight, mode="fan_out", nonlinearity="relu")
        widths = (64, 64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            blocks += [WideBlock(inputs, outputs, 1 if stage == 0 else 2), WideBlock(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits
