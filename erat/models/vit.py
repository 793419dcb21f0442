"""Builds a vision transformer of the base size: Dosovitskiy et al., "An Image Is Worth 16x16 Words: Transformers for
Image Recognition at Scale", ICLR 2021. The encoder is torchvision's.
"""

from __future__ import annotations

from math import sqrt

from torch import nn
from torchvision.models import VisionTransformer  # type: ignore[import-untyped,unused-ignore]

from erat.errors import UserError

WIDTH = 768


def vit_b16(num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build 12 layers of width 768 with 12 heads, 86.57 M weights at 224 px, K = 1000, C = 3: (B, C, H, W) -> (B, K).

    The 16 in the name is the patch size for images of 224 px; smaller images have smaller patches, see `patch_size`.

    Raises:
        UserError: no patch size fits the image size.
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
    # A token is a linear map of one patch with no ReLU after it, so weights of variance 1 / fan-in keep the variance.
    nn.init.trunc_normal_(projection.weight, std=sqrt(1 / (channels * patch * patch)))
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    network.conv_proj = projection
    # torchvision initialises the last layer with zeros. Until its first update such a network passes no gradient to the
    # images, so that no perturbation could be crafted on it; these small random weights are those of the other layers.
    head = nn.Linear(WIDTH, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    network.heads = head
    return network


def patch_size(image_size: int) -> int:
    """Return the side of a square patch in pixels: the largest up to 16 that gives 7 to 32 patches a side.

    Images of 28 and 32 px have patches of 4 px, images of 64 px of 8, images of 224 px of 16.

    Raises:
        UserError: there is no such patch size.
    """
    for per_side in range(7, 33):
        if image_size % per_side == 0 and image_size // per_side <= 16:
            return image_size // per_side
    raise UserError(
        f"vit_b16: the image size must be 7 to 32 times a patch of 1 to 16 pixels, got {image_size}; "
        "28, 32, 64 and 224 fit"
    )
