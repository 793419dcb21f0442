"""Defines wide residual networks: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016.

Batch norm and ReLU come before each convolution (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016).
The optional dropout of the paper is left out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def wideresnet28_10(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 28 layers of ten times the width, 36.48 M weights at K = 10, C = 3: (B, C, H, W) -> (B, K).

    The stem has stride 2 for images above 32 px, which quarters the work of an already expensive network. This is our
    choice, as in `resnet`; the paper has no images that large for this network.
    """
    return WideResNet(num_classes, channels, depth=28, widen=10, stem_stride=1 if image_size <= 32 else 2)


class WideResNet(nn.Module):
    """A stem of 16 channels and three stages of (depth - 4) / 6 blocks with 16, 32, 64 times `widen` channels.

    Args:
        num_classes: K.
        channels: C.
        depth: number of layers, 6n + 4 for n blocks per stage.
        widen: factor on the number of channels.
        stem_stride: stride of the first convolution.
    """

    def __init__(self, num_classes: int, channels: int, depth: int, widen: int, stem_stride: int) -> None:
        super().__init__()
        # The depth counts n blocks of two convolutions in each of three stages, a stem and three shortcuts.
        assert depth % 6 == 4, f"depth must be 6n + 4, got {depth}"
        blocks: list[nn.Module] = []
        inputs = 16
        for outputs, stage_stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for index in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, stage_stride if index == 0 else 1))
                inputs = outputs
        self.stem = _convolution(channels, 16, 3, stem_stride)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class WideBlock(nn.Module):
    """Two pre-activated 3x3 convolutions beside a shortcut.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3, 1)
        self.shortcut = None if inputs == outputs and stride == 1 else _convolution(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        activated = F.relu(self.norm1(features))
        residual: Tensor = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        # If the shape is kept, the shortcut passes the features unchanged; if not, it projects the activated features.
        passed: Tensor = features if self.shortcut is None else self.shortcut(activated)
        return passed + residual


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
