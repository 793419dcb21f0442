"""What every data corruption is given and what it must return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.errors import UserError

Progress = Callable[[str, int, int], None]  # (what, done, total)


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Craft:
    """One order to craft.

    Attributes:
        images: clean, float (N, C, H, W) in [0, 1].
        labels: clean, int64 (N,).
        norm, epsilon: the budget, pixel units of 1.0.
        granularity: "class" (one perturbation for all images of a class) or "sample".
        generator: all randomness, on the CPU.
        build: a freshly initialised network of the source architecture.
        source: the clean-trained source network in eval mode; trained (once per store) when first called.
        progress: told how far the crafting is.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    norm: str
    epsilon: float
    granularity: str
    generator: torch.Generator
    build: Callable[[], nn.Module]
    source: Callable[[], nn.Module]
    progress: Progress = silent


class DataCorruption:
    """Base of all data corruptions: one object per kind, without state.

    Attributes:
        kind: its name in the registry.
        norm: the norm that the paper uses it with.
        norms: the norms it can be crafted under.
        granularities: the ones it exists in, the paper's first.
        uses: what it needs of the source network: "nothing", its "architecture", or a clean-"trained network".
        draws: the kind whose random draws it uses, where two kinds come from one optimisation; none: its own.
        version: raised when a change of the code changes what is crafted, so that no old set is taken for a new one.
    """

    kind: ClassVar[str]
    norm: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    granularities: ClassVar[tuple[str, ...]] = ("class",)
    uses: ClassVar[Literal["nothing", "architecture", "trained network"]] = "nothing"
    draws: ClassVar[str | None] = None
    version: ClassVar[int] = 1

    def perturb(self, craft: Craft) -> Tensor:
        """The perturbation of each image, float (N, C, H, W), within the budget."""
        raise NotImplementedError

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse what this kind cannot do.

        Args:
            options: the `corruption.*` values as given, absent or none where left open.

        Raises:
            UserError: a norm or granularity that this kind lacks.
        """
        for key, allowed in (("norm", self.norms), ("granularity", self.granularities)):
            if options.get(key) is not None and options[key] not in allowed:
                raise UserError(
                    f"corruption.{key} must be {' or '.join(allowed)} for {self.kind}, got {options[key]!r}"
                )


def shuffled_batches(craft: Craft, size: int) -> Iterator[Tensor]:
    """Indices of shuffled batches, on the images' device, for ever; the last batch of a pass may be smaller."""
    while True:
        order = torch.randperm(len(craft.images), generator=craft.generator)
        yield from order.to(craft.images.device).split(size)


def quantize(clean_u8: Tensor, delta: Tensor, norm: str, epsilon: float) -> Tensor:
    """The poisoned images as 8-bit pixels: rounded to nearest, yet never over the budget.

    Rounding may push a perturbation past its budget. Under l_inf the pixels past it are cut to it; under l_2 the
    perturbation is shrunk until its rounded form fits. (Truncating instead, as some published code does, shifts every
    pixel by half a level.)

    Args:
        clean_u8: uint8 (N, C, H, W).
        delta: float perturbation in units of 1.0, same shape.
    """
    clean = clean_u8.to(torch.int16)
    if norm == "linf":
        bound = math.floor(epsilon * 255 + 1e-6)
        return (clean + (delta * 255).round().to(torch.int16).clamp(-bound, bound)).clamp(0, 255).to(torch.uint8)
    scale = torch.ones(len(clean), 1, 1, 1, device=delta.device)
    for _ in range(50):
        moved = (clean + (delta * scale * 255).round().to(torch.int16)).clamp(0, 255)
        over = norms_of(moved - clean, norm) > epsilon + 1e-7
        if not over.any():
            break
        scale[over] *= 0.99
    else:  # budgets of about one grey level, where less than 0.99 ** 50 = 0.6 would fit: truncation always does
        moved[over] = (clean[over] + (delta[over] * 255).trunc().to(torch.int16)).clamp(0, 255)
    return moved.to(torch.uint8)


def norms_of(difference: Tensor, norm: str) -> Tensor:
    """Norm of each image's difference in grey levels (integer NCHW), in units of 1.0, shape (N,)."""
    values = difference.float() / 255
    return values.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(values)
