"""Vision transformer: Dosovitskiy et al., "An Image Is Worth 16x16 Words: Transformers for Image Recognition at Scale",
ICLR 2021, in its base size. The encoder is torchvision's.
"""

from __future__ import annotations

from math import sqrt

from torch import nn
from torchvision.models import VisionTransformer  # type: ignore[import-untyped,unused-ignore]

from erat.errors import UserError

WIDTH = 768


def vit_b16(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """12 layers of width 768 with 12 heads, 86.57 M weights at 224 px, K = 1000, C = 3: (B, C, H, W) -> (B, K).

    The 16 of the name is the patch of 224 px images; smaller images have smaller patches, see `patch_size`.

    Raises:
        UserError: the image size has no fitting patch.
    """
    patch = patch_size(image_size)
    network: nn.Module = VisionTransformer(
        image_size=image_size,
        patch_size=patch,
        num_layers=12,
        num_heads=12,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
        num_classes=num_classes,
    )
    projection = nn.Conv2d(channels, WIDTH, patch, stride=patch)
    # Each token is a linear map of one patch with no ReLU behind it, so its variance is kept with 1 / fan-in.
    nn.init.trunc_normal_(projection.weight, std=sqrt(1 / (channels * patch * patch)))
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    network.conv_proj = projection
    # torchvision starts the last layer at zero. Until its first update such a network passes no gradient to the
    # images, and no perturbation could be crafted on it; small random weights are what the other layers have.
    head = nn.Linear(WIDTH, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    network.heads = head
    return network


def patch_size(image_size: int) -> int:
    """The side in pixels of a square patch: the largest up to 16 that cuts the image into 7 to 32 patches a side.

    28 and 32 px -> 4, 64 px -> 8, 224 px -> 16.

    Raises:
        UserError: no such patch.
    """
    for per_side in range(7, 33):
        if image_size % per_side == 0 and image_size // per_side <= 16:
            return image_size // per_side
    raise UserError(
        f"vit_b16: the image size must be 7 to 32 times a patch of 1 to 16 pixels, got {image_size}; "
        "28, 32, 64 and 224 fit"
    )
