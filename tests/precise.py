"""Networks that compute in float64, for tests of numbers that no processor's rounding may turn.

A network with ReLU jumps in its gradient where a unit's input is zero. In float32 some unit often comes within rounding
of that, and then two processors, or one batch and the same batch in two halves, take different ways. In float64 the
room for it is a billion times smaller.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Builder = Callable[[int, int, int], nn.Module]


class InDouble(nn.Module):
    """A network in float64 between float32 images, (B, C, H, W), and float32 logits, (B, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.double())
        return logits.to(images.dtype)


def in_double(build: Builder) -> Builder:
    """Return a builder of the same network in float64, for the registry of backbones."""
    return lambda num_classes, channels, image_size: InDouble(build(num_classes, channels, image_size))
