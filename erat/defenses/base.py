"""Define the protocol between a defense and the trainer.

A defense decides on which samples to train (`plan_epoch`), with which loss (`loss`), and how to predict (`predict`).
The trainer owns every update: it alone calls backward, steps the optimizer, casts precision, saves and seeds.
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
    """The progress of training.

    Attributes:
        epoch: the present epoch, counted from 0.
        step: the present step inside the epoch, counted from 0.
        steps: the number of steps of the epoch.
    """

    epoch: int
    step: int = 0
    steps: int = 1

    @property
    def time(self) -> float:
        """Return the number of epochs done, including the finished fraction of the present one."""
        return self.epoch + self.step / self.steps


@dataclass(frozen=True)
class Update:
    """A gradient step on the named networks, or on all networks if none is named."""

    name: str = "all"
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """A pass of the trainer: which samples keep their labels, which lose them, and which networks each step updates.

    The length of the pass is that of `labelled`; `unlabelled` is repeated as often as needed.

    Attributes:
        labelled: the indices of the samples with labels, int64.
        unlabelled: the indices of the samples without labels, int64; None: there are none.
        name: the name of the phase, passed to `Defense.loss` with each batch.
        turns: the updates of the steps, in turn: step s makes those of `turns[s % len(turns)]`.
        late: whether the defense replaces this phase once the phases before it have trained (`Defense.late_phase`).
        unlabelled_ratio: the number of unlabelled images of a step over `train.batch_size`, above 0; it is rounded down
            to a number that all shares of a batch divide, at least one for each.
    """

    labelled: Tensor
    unlabelled: Tensor | None = None
    name: str = "train"
    turns: tuple[tuple[Update, ...], ...] = ((Update(),),)
    late: bool = False
    unlabelled_ratio: float = 1.0

    def unlabelled_size(self, batch_size: int, shares: int) -> int:
        """Return the number of unlabelled images of a step, a multiple of `shares`, the parts of a batch."""
        size = int(batch_size * self.unlabelled_ratio)
        return max(shares, size - size % shares)

    @property
    def updates(self) -> tuple[Update, ...]:
        """Return every different update that the steps of this phase make."""
        return tuple(dict.fromkeys(update for turn in self.turns for update in turn))


@dataclass(frozen=True)
class EpochPlan:
    """The phases of one epoch, in order.

    Attributes:
        phases: the passes of the trainer.
        selected: the labelled set, if the defense selects one: bool (N,), on the CPU.
        predicted: the class that the networks predicted for each sample at the selection: int64 (N,), on the CPU.
        numbers: the numbers that the defense reports for this epoch, by name; numbers of single updates are reported
            by `LossTerms.note`.
    """

    phases: tuple[Phase, ...]
    selected: Tensor | None = None
    predicted: Tensor | None = None
    numbers: dict[str, float] = field(default_factory=dict)


class TrainingData(Protocol):
    """The training set as a defense sees it, with the given labels only; the trainer keeps the true ones."""

    labels: Tensor
    num_classes: int

    def __len__(self) -> int: ...

    def map(self, function: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
        """Apply `function` to images (float, [0, 1]) in large batches without gradients; keep their order.

        The networks are in eval mode during the call. Data-parallel workers share the work, and each gets all results.

        Args:
            function: maps B images to B rows.
            rows: the images, int64, on the CPU; None: all.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """The samples of one step on this worker.

    Attributes:
        images, labels, indices: the labelled samples: float (B, C, H, W) in [0, 1], int64 (B,), int64 (B,).
        unlabelled, unlabelled_indices: the images and indices of the samples without labels, of length 0 if there are
            none.
        random: the source of the random draws of this step, which draws one row per sample of the global batch.
        phase, update: the names of the phase and of the update to which this step belongs.
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
        terms: (weight, value) of each term, by name; the values are scalars with gradients.
        numbers: further scalars, by name, without gradients, which are logged and not minimised.
    """

    terms: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add a term; each name may be used only once."""
        self._check(name)
        self.terms[name] = (weight, value)

    def note(self, name: str, value: Tensor | float) -> None:
        """Report a scalar of this update that is not minimised; each name may be used only once.

        The epoch's report has the mean over the updates that reported it and over the workers, which must all report
        the same names. A tensor is read only at the end of the epoch, which avoids waiting for the device.
        """
        self._check(name)
        number = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
        assert number.shape == (), f"number {name!r} must be a scalar, got shape {tuple(number.shape)}"
        self.numbers[name] = number

    def _check(self, name: str) -> None:
        assert name not in self.terms | self.numbers and name != "total", f"loss term {name!r} added twice"

    @property
    def total(self) -> Tensor:
        """Return the weighted sum of the terms."""
        first, *rest = (weight * value for weight, value in self.terms.values())
        return sum(rest, start=first)

    @classmethod
    def mean(cls, parts: Sequence[LossTerms]) -> LossTerms:
        """Return the mean of the terms and numbers of the equal parts of a batch, without gradients."""
        values = {name: [part.terms[name][1].detach() for part in parts] for name in parts[0].terms}
        numbers = {name: [part.numbers[name].float() for part in parts] for name in parts[0].numbers}
        return cls(
            {name: (parts[0].terms[name][0], torch.stack(value).mean()) for name, value in values.items()},
            {name: torch.stack(value).mean() for name, value in numbers.items()},
        )

    def figures(self) -> dict[str, Tensor]:
        """Return the total and the unweighted value of each term, without gradients, for the log."""
        values = {name: value.detach() for name, (_, value) in self.terms.items()}
        return {"total": self.total.detach()} | values


@dataclass(frozen=True)
class Task:
    """The information about the data and the network that a defense gets before training.

    Attributes:
        num_samples: the number of training images.
        num_classes: the number of classes.
        flip: whether a mirrored image keeps its class.
        build: returns a newly initialised network for a seed offset; defenses with two networks call it twice.
        image_shape: the shape (C, H, W) of the images.
        backbone: the name of the network that `build` builds.
    """

    num_samples: int
    num_classes: int
    flip: bool
    build: Callable[[int], nn.Module]
    image_shape: tuple[int, ...] = ()
    backbone: str = ""


class Defense(nn.Module):
    """The base of all defenses.

    Subclasses set `Options` and build `self.networks` with `task.build`. State that must survive a resume must be a
    buffer or in `networks`; state that is needed only until the next `plan_epoch` may be a non-persistent buffer.
    """

    Options: ClassVar[type[DefenseOptions]]
    networks: nn.ModuleDict

    def __init__(self, options: DefenseOptions, task: Task) -> None:
        super().__init__()
        self.task, self.settings = task, options
        self._preparation = (options.squeeze, options.jpeg_quality, options.bits)

    def prepare(self, images: Tensor) -> Tensor:
        """Return the training images, uint8 (N, C, H, W), as this defense needs them; called once, before training."""
        kind, quality, bits = self._preparation
        return squeeze(images, kind, quality=quality, bits=bits)

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        """Plan on which samples to train in this epoch.

        This is called once per epoch on every worker and must return the same plan on each. The base class plans one
        phase that trains every network on all samples with their given labels.
        """
        return EpochPlan((Phase(torch.arange(len(data))),))

    def late_phase(self, data: TrainingData) -> Phase:
        """Return the phase that replaces a `late` phase of the plan, once the phases before it have trained."""
        raise NotImplementedError

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return the loss of one update; must not call backward, and must leave `.grad` and `training` unchanged."""
        raise NotImplementedError

    def updated(self) -> None:
        """Follow the networks, which the trainer has just changed; called once after each update, on every worker."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for float images in [0, 1]; an ensemble combines its networks here."""
        network: Tensor = self.networks["main"](images)
        return network


class Predicting(nn.Module):
    """A defense as a network that maps images to logits."""

    def __init__(self, defense: Defense) -> None:
        super().__init__()
        self.defense = defense

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float (N, C, H, W) in [0, 1], to logits, float32 (N, K)."""
        return self.defense.predict(images).float()
