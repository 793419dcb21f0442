"""Define the base class of data corruptions, the input that each of them gets and the output that it must return."""

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
    """Ignore the progress that is reported."""


@dataclass(frozen=True)
class Craft:
    """One request to craft perturbations: the clean set, the budget and the means to use.

    Attributes:
        images: the clean images, float (N, C, H, W) in [0, 1].
        labels: the labels for which the perturbations are crafted, int64 (N,): the clean ones, unless
            `corruption.coupling` says otherwise.
        num_classes: the number of classes K.
        norm, epsilon: the budget: "linf", "l2" or "l1", and its size in pixel units of 1.0; "l0", and a number of
            pixels; or "unbounded", and infinity.
        granularity: "class" (one perturbation for all images of a class) or "sample" (one per image).
        generator: the random generator from which everything is drawn, on the CPU.
        build: returns a newly initialised network of the source architecture.
        source: returns the source network, trained on clean images, in eval mode; the first call trains it, once per
            store.
        options: values of the options that the kind's `Options` add, by name.
        progress: called with (what, done, total) as the crafting proceeds.
        scratch: the place where an interrupted crafting left its state.
        once: makes a tensor that sets of other labels or of another kind need too, and keeps it in the store; None: it
            is made for this set alone. Called by `shared`.
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
    once: Callable[[str, Callable[[Craft], Tensor]], Tensor] | None = None

    def shared(self, name: str, make: Callable[[Craft], Tensor]) -> Tensor:
        """Return what `make` makes, which must depend neither on `labels` nor on which kind with these draws it is.

        Args:
            name: what it is called in the store.
            make: called with a request whose generator is new and whose scratch is the tensor's own.
        """
        return make(self) if self.once is None else self.once(name, make)

    @property
    def steps(self) -> int:
        """Return the length of the optimisation, in the unit of the kind."""
        return int(self.options["steps"])

    def resume(self) -> dict[str, Any] | None:
        """Return the state that `keep` saved last and restore the random generator to it; None if there is no state."""
        state = self.scratch.load(self.images.device)
        if state is None:
            return None
        before = self.generator.get_state()
        try:
            self.generator.set_state(state["generator"].cpu())
        except (AttributeError, KeyError, RuntimeError, TypeError):  # not a state that `keep` wrote
            self.generator.set_state(before)
            return None
        return state

    def keep(self, **state: Any) -> None:
        """Save the tensors and plain values from which an interrupted crafting resumes.

        Not every call writes: saves are a few seconds apart (`Scratch`).
        """
        self.scratch.save({"generator": self.generator.get_state(), **state})


class DataCorruption(CorruptionKind):
    """The base of all data corruptions: there is one object per kind, and it has no state."""

    def perturb(self, craft: Craft) -> Tensor:
        """Return the perturbation of each image, float (N, C, H, W) in pixel units of 1.0, within the budget."""
        raise NotImplementedError


class ShuffledBatches:
    """An endless iterator over the indices of shuffled batches, int64 on the device of the images.

    The last batch of each pass over the images may be smaller.

    Args:
        craft: the request whose images are indexed and whose generator shuffles.
        size: the number of images in a batch.
        state: the position of an earlier iterator to continue from (`state()`); None: start a new pass.
    """

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
        """Return the present position, from which another iterator can continue."""
        return {"order": self._order, "start": self._start}


def quantize(clean_u8: Tensor, delta: Tensor, norm: str, epsilon: float) -> Tensor:
    """Return the poisoned images as 8-bit pixels, rounded to the nearest level but never beyond the budget.

    Rounding may push a perturbation past its budget. Under l_inf the pixels beyond it are clipped to it; under l_2 and
    l_1 the perturbation is shrunk until its rounded form fits. (Truncating instead, as some published code does, shifts
    every pixel by half a level.)

    Args:
        clean_u8: the clean images, uint8 (N, C, H, W).
        delta: the perturbations, float, in pixel units of 1.0, of the same shape.
        norm: "linf", "l2", "l1", "l0" or "unbounded".
        epsilon: the budget in pixel units of 1.0; of no use for "l0", as rounding changes no further pixel, and for
            "unbounded".

    Returns:
        uint8 (N, C, H, W).
    """
    clean = clean_u8.to(torch.int16)
    if norm == "linf":
        bound = math.floor(epsilon * 255 + 1e-6)
        return (clean + (delta * 255).round().to(torch.int16).clamp(-bound, bound)).clamp(0, 255).to(torch.uint8)
    if norm in ("l0", "unbounded"):
        return (clean + (delta * 255).round().to(torch.int16)).clamp(0, 255).to(torch.uint8)
    scale = torch.ones(len(clean), 1, 1, 1, device=delta.device)
    for _ in range(50):
        moved = (clean + (delta * scale * 255).round().to(torch.int16)).clamp(0, 255)
        over = norms_of(moved - clean, norm) > epsilon + 1e-7
        if not over.any():
            break
        scale[over] *= 0.99
    else:  # budgets of about one grey level may need a scale below 0.99 ** 50 = 0.6: truncation always fits
        moved[over] = (clean[over] + (delta[over] * 255).trunc().to(torch.int16)).clamp(0, 255)
    return moved.to(torch.uint8)


def norms_of(difference: Tensor, norm: str) -> Tensor:
    """Return the norm of each image's difference, float (N,), in pixel units of 1.0, of l_0 in pixels.

    Args:
        difference: differences in grey levels, integer (N, C, H, W).
        norm: "linf", "l2", "l1", "l0", or "unbounded", whose size is told by its l_2 norm.
    """
    if norm == "l0":
        return (difference != 0).any(1).flatten(1).sum(1).float()
    values = difference.float() / 255
    if norm == "l1":
        return difference.abs().flatten(1).sum(1).float() / 255
    return values.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(values)
