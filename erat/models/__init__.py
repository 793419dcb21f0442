"""Builds networks by their names in `erat.registry.BACKBONES`, ready for training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from erat.models.normalize import Normalized
from erat.registry import BACKBONES
from erat.seeding import seeded

__all__ = ["Normalized", "build_model"]


def build_model(
    name: str,
    num_classes: int,
    channels: int,
    image_size: int,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    seed: int,
) -> nn.Module:
    """Build a network on the CPU that takes images in [0, 1]: (B, C, H, W) -> logits (B, K).

    The weights depend only on `seed`, and the global random generators keep their state.

    Args:
        name: one of `BACKBONES.names()`.
        num_classes: K.
        channels: C.
        image_size: height and width of the images in pixels.
        mean: C values, the mean of each channel of images in [0, 1].
        std: C positive values, the standard deviation of each channel.
        seed: the seed of the initial weights.

    Raises:
        UserError: there is no such backbone, or it cannot take images of this size.
        ValueError: `mean` or `std` does not have one value per channel.
    """
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean and std must hold {channels} numbers (one per channel), got {len(mean)} and {len(std)}")
    builder = BACKBONES[name]
    with seeded(seed):
        return Normalized(builder(num_classes, channels, image_size), mean, std).cpu()
