"""The protocol between a defense and the trainer.

A defense says what to learn from (`plan_epoch`), what it costs (`loss`) and how it answers (`predict`). The trainer
owns every update: it alone calls backward, steps the optimizer, casts precision, saves and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from erat.data.squeeze import squeeze
from erat.options import DefenseOptions

if TYPE_CHECKING:
    from erat.data.random import BatchRandom


@dataclass(frozen=True)
class Clock:
    """Where training stands. `epoch` counts from 0; `step` counts inside the epoch."""

    epoch: int
    step: int = 0
    steps: int = 1

    @property
    def time(self) -> float:
        """Epochs done, with fraction."""
        return self.epoch + self.step / self.steps


@dataclass(frozen=True)
class Update:
    """One gradient step on some of the networks (all of them: none named)."""

    name: str = "all"
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """A pass of the trainer: which samples keep their labels, which lost them, what each step updates.

    An epoch follows `labelled`; `unlabelled` (none, or int64 indices) cycles beside it.

    Attributes:
        turns: the updates of each step; the steps take turns, step s makes those of `turns[s % len(turns)]`.
        late: once those before it have trained, the defense is asked anew for this one (`Defense.late_phase`).
    """

    labelled: Tensor
    unlabelled: Tensor | None = None
    name: str = "train"
    turns: tuple[tuple[Update, ...], ...] = ((Update(),),)
    late: bool = False

    @property
    def updates(self) -> tuple[Update, ...]:
        """Every sort of update that its steps make."""
        return tuple(dict.fromkeys(update for turn in self.turns for update in turn))


@dataclass(frozen=True)
class EpochPlan:
    """The phases of one epoch, in order.

    Attributes:
        selected: the labelled set, if this defense made one: bool (N,), on the CPU.
        predicted: the class that the networks gave each sample then: int64 (N,), on the CPU.
        numbers: what the defense reports of this epoch, by name; numbers of its updates go to `LossTerms.note`.
    """

    phases: tuple[Phase, ...]
    selected: Tensor | None = None
    predicted: Tensor | None = None
    numbers: dict[str, float] = field(default_factory=dict)


class TrainingData(Protocol):
    """The training set as a defense sees it: given labels only; the true ones stay with the trainer."""

    labels: Tensor
    num_classes: int

    def __len__(self) -> int: ...

    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` over all images (float, [0, 1]) in large batches, rows in order, without gradients.

        Networks are in eval mode meanwhile. Sharded over data-parallel workers; every worker gets all rows.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """One step's samples on this worker.

    Attributes:
        images, labels, indices: labelled samples; float (B, C, H, W) in [0, 1], int64 (B,), int64 (B,).
        unlabelled, unlabelled_indices: the same without labels; of length 0 when there are none.
        random: draws of this step, one row per sample of the global batch.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unlabelled: Tensor
    unlabelled_indices: Tensor
    random: BatchRandom
    phase: str = "train"
    update: str = "all"


@dataclass
class LossTerms:
    """Named loss terms with their weights. The trainer minimises `total` and logs each value.

    Attributes:
        numbers: what is logged beside them and not minimised, scalars without gradients.
    """

    terms: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add a term; a name may stand only once."""
        self._check(name)
        self.terms[name] = (weight, value)

    def note(self, name: str, value: Tensor | float) -> None:
        """Report a number of this update that is not minimised, a scalar; a name may stand only once.

        The epoch's report has its mean over the updates that had it and over the workers, which must all report the
        same names. A tensor is not read before the epoch's end, so that a device need not be waited for.
        """
        self._check(name)
        number = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
        assert number.shape == (), f"number {name!r} must be a scalar, got shape {tuple(number.shape)}"
        self.numbers[name] = number

    def _check(self, name: str) -> None:
        assert name not in self.terms | self.numbers and name != "total", f"loss term {name!r} added twice"

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        first, *rest = (weight * value for weight, value in self.terms.values())
        return sum(rest, start=first)

    @classmethod
    def mean(cls, parts: Sequence[LossTerms]) -> LossTerms:
        """Of a batch's equal parts, without gradients."""
        values = {name: [part.terms[name][1].detach() for part in parts] for name in parts[0].terms}
        numbers = {name: [part.numbers[name].float() for part in parts] for name in parts[0].numbers}
        return cls(
            {name: (parts[0].terms[name][0], torch.stack(value).mean()) for name, value in values.items()},
            {name: torch.stack(value).mean() for name, value in numbers.items()},
        )

    def figures(self) -> dict[str, Tensor]:
        """The total and each term's unweighted value, without gradients, for the log."""
        values = {name: value.detach() for name, (_, value) in self.terms.items()}
        return {"total": self.total.detach()} | values


@dataclass(frozen=True)
class Task:
    """What a defense may know of the data before training.

    Attributes:
        num_samples: training images.
        num_classes, flip: of the images; flip says whether a mirrored image keeps its class.
        build: call with a seed offset for a freshly initialised network; two-network defenses call it twice.
        image_shape: (C, H, W) of the images.
        backbone: name of what `build` builds.
    """

    num_samples: int
    num_classes: int
    flip: bool
    build: Callable[[int], nn.Module]
    image_shape: tuple[int, ...] = ()
    backbone: str = ""


class Defense(nn.Module):
    """Base of all defenses. State that must survive a resume is a buffer or lies in `networks`; what holds only until
    the next `plan_epoch` may be a buffer that is not persistent.

    Subclasses set `Options`, and build `self.networks` from `task.build`.
    """

    Options: ClassVar[type[DefenseOptions]]
    networks: nn.ModuleDict

    def __init__(self, options: DefenseOptions, task: Task) -> None:
        super().__init__()
        self.task, self.settings = task, options
        self._preparation = (options.squeeze, options.jpeg_quality, options.bits)

    def prepare(self, images: Tensor) -> Tensor:
        """Training images (uint8, NCHW) as this defense wants them, once, before training."""
        kind, quality, bits = self._preparation
        return squeeze(images, kind, quality=quality, bits=bits)

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        """What to train on in this epoch. Called once per epoch on every worker, with the same result on each.

        Here: all samples with their given labels, in one phase, every network at once.
        """
        return EpochPlan((Phase(torch.arange(len(data))),))

    def late_phase(self, data: TrainingData) -> Phase:
        """What runs in place of the plan's phase that is `late`, now that those before it have trained."""
        raise NotImplementedError

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """The loss of one update. No backward here; `.grad` and `training` are left as found."""
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, K) for float images in [0, 1]. Ensembles hide here."""
        network: Tensor = self.networks["main"](images)
        return network
