"""What every data corruption is given and what it must return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.corruption.kinds import CorruptionKind
from erat.corruption.scratch import Scratch

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
        options: what the kind's `Options` add, by their names.
        progress: told how far the crafting is.
        scratch: where an interrupted crafting left its state.
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
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = silent
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def steps(self) -> int:
        """Length of the optimisation, in the kind's own unit."""
        return int(self.options["steps"])

    def resume(self) -> dict[str, Any] | None:
        """What `keep` kept last, the random stream put back to where it was; none at a fresh start."""
        state = self.scratch.load(self.images.device)
        if state is None:
            return None
        before = self.generator.get_state()
        try:
            self.generator.set_state(state["generator"].cpu())
        except (AttributeError, KeyError, RuntimeError, TypeError):  # no state of ours
            self.generator.set_state(before)
            return None
        return state

    def keep(self, **state: Any) -> None:
        """Keep what an interrupted crafting goes on from: tensors and plain values. Not every call writes."""
        self.scratch.save({"generator": self.generator.get_state(), **state})


class DataCorruption(CorruptionKind):
    """Base of all data corruptions: one object per kind, without state."""

    def perturb(self, craft: Craft) -> Tensor:
        """The perturbation of each image, float (N, C, H, W), within the budget."""
        raise NotImplementedError


class ShuffledBatches:
    """Indices of shuffled batches, on the images' device, for ever; the last batch of a pass may be smaller."""

    def __init__(self, craft: Craft, size: int, state: Mapping[str, Any] | None = None) -> None:
        self._craft, self._size = craft, size
        self._order: Tensor = torch.empty(0, dtype=torch.int64) if state is None else state["order"]
        self._start: int = 0 if state is None else state["start"]

    def __next__(self) -> Tensor:
        if self._start >= len(self._order):
            order = torch.randperm(len(self._craft.images), generator=self._craft.generator)
            self._order, self._start = order.to(self._craft.images.device), 0
        self._start += self._size
        return self._order[self._start - self._size : self._start]

    def __iter__(self) -> ShuffledBatches:
        return self

    def state(self) -> dict[str, Any]:
        """Where it stands, for another one to go on from."""
        return {"order": self._order, "start": self._start}


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
