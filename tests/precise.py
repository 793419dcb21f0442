"""Makes networks compute in float64, for tests of numbers that must not depend on the rounding of a processor.

The gradient of a network with ReLU jumps where the input of a unit is zero. In float32 some unit is often within
rounding error of zero, and then two processors, or a batch and the same batch in two halves, give different gradients.
In float64 this range is about a billion times smaller.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Builder = Callable[[int, int, int], nn.Module]


class InDouble(nn.Module):
    """A network in float64 that takes float32 images, (B, C, H, W), and returns float32 logits, (B, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.double())
        return logits.to(images.dtype)


def in_double(build: Builder) -> Builder:
    """Return a builder of the same network in float64, for the registry of backbones."""
    return lambda num_classes, channels, image_size: InDouble(build(num_classes, channels, image_size))
