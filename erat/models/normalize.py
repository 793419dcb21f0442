"""Makes normalisation the first layer of a network, so that everything outside it works on plain pixels.

Shape suffixes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A network that first maps images to (images - mean) / std.

    A budget such as 8/255 is a distance between images in [0, 1]. Because the division by `std` is part of the
    network, the gradient that reaches the caller is taken in these pixel units too, and no attack has to rescale it.

    Args:
        network: maps normalised images (B, C, H, W) to logits (B, K).
        mean: C values, the mean of each channel of images in [0, 1].
        std: C positive values, the standard deviation of each channel.

    Raises:
        ValueError: `mean` and `std` do not hold C numbers each, or a standard deviation is not positive.
    """

    mean: Tensor  # (1, C, 1, 1)
    std: Tensor  # (1, C, 1, 1)

    def __init__(self, network: nn.Module, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        super().__init__()
        mean_C, std_C = _per_channel(mean), _per_channel(std)
        if mean_C.ndim != 1 or mean_C.shape != std_C.shape:
            raise ValueError(
                f"mean and std must hold one number per channel, got shapes {tuple(mean_C.shape)}, {tuple(std_C.shape)}"
            )
        if not bool((std_C > 0).all()):
            raise ValueError(f"std must be positive in every channel, got {std_C.tolist()}")
        self.network = network
        # Buffers, not constants: they follow .to(device) and are in the checkpoint with the weights that fit them.
        self.register_buffer("mean", mean_C.reshape(1, -1, 1, 1))
        self.register_buffer("std", std_C.reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) with values in [0, 1] to logits (B, K)."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def _per_channel(values: Tensor | Sequence[float]) -> Tensor:
    """Return a float32 copy of `values`, shape (C,), that shares no memory with the caller's tensor."""
    return torch.as_tensor(values, dtype=torch.float32).detach().clone()
