"""What a sweep tries next, and what it stops early: decided by results alone, never by the clock.

Trials are made in generations: first the baselines and the paper's own points, then Optuna's proposals a few at a
time. A generation is proposed when all before it have ended, and its stopping rule compares with those alone. So two
runs of one sweep make the same trials and stop the same ones, however many ran side by side and whatever was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from orchestration.spaces import SearchSpace
from orchestration.state import Outcome, Proposal


class Proposer(Protocol):
    """Optuna behind Ray Tune's searcher interface, plus trials whose values are known ahead."""

    def enqueue(self, params: Mapping[str, float]) -> None: ...

    def suggest(self, trial_id: str) -> dict[str, Any] | None: ...

    def tell(self, trial_id: str, outcome: Outcome) -> None: ...


@dataclass
class Trial:
    """One run of a sweep: `overrides` are its dotted keys on top of the sweep's own."""

    number: int
    source: str  # "baseline", "paper" or "optuna"
    overrides: dict[str, Any]
    cell: str
    outcome: Outcome | None = None


@dataclass
class Generations:
    """The trials of one sweep, in order.

    Args:
        space: what is searched.
        points: the paper's points in this data set's units.
        total: search trials in all (points and proposals); baselines come on top.
        proposer: asked for what is not fixed.
        known: proposals that an earlier session of this sweep made; they are kept.
        cell_of: overrides -> digest of the run.
        outcome_of: digest -> how it ended in this sweep, or none.
        on_proposed: told of each new trial.
        patience_epochs: epochs before a proposal may be stopped.
        epochs: the last epoch, after which there is nothing to stop.
    """

    space: SearchSpace
    points: list[dict[str, float]]
    total: int
    proposer: Proposer
    known: Mapping[int, Proposal]
    cell_of: Callable[[Mapping[str, Any]], str]
    outcome_of: Callable[[str], Outcome | None]
    on_proposed: Callable[[Trial], None]
    patience_epochs: int
    epochs: int
    trials: list[Trial] = field(default_factory=list)
    _told: int = 0

    def __post_init__(self) -> None:
        for point in self.points[: self.total]:
            self.proposer.enqueue(point)

    @property
    def first(self) -> int:
        """Size of the first generation: the baselines and the paper's points."""
        return len(self.space.baselines) + min(len(self.points), self.total)

    @property
    def size(self) -> int:
        """Trials in all."""
        return len(self.space.baselines) + self.total

    @property
    def exhausted(self) -> bool:
        """Whether every trial has been made."""
        return len(self.trials) >= self.size

    def start_of(self, number: int) -> int:
        """The number with which trial `number`'s generation begins."""
        if number < self.first:
            return 0
        step = self.space.generation
        return self.first + (number - self.first) // step * step

    def next(self) -> Trial | None:
        """The next trial that is not finished yet; none while an earlier generation runs, or when all are made."""
        while not self.exhausted:
            number = len(self.trials)
            if not self._all_ended(self.start_of(number)):
                return None
            trial = self._make(number)
            self.trials.append(trial)
            self.on_proposed(trial)
            if trial.outcome is None:
                return trial
        return None

    def complete(self, number: int, outcome: Outcome) -> None:
        """Record how a trial ended."""
        self.trials[number].outcome = outcome

    def stops(self, number: int, epoch: int, best_val_accuracy: float) -> bool:
        """The median rule: stop a proposal whose best so far is below the median of what earlier generations had.

        Only Optuna's proposals are stopped: baselines and the paper's points are the figure.
        """
        trial = self.trials[number]
        if trial.source != "optuna" or not self.patience_epochs <= epoch < self.epochs:
            return False
        reference = [
            max(earlier.outcome.result["val_history"][:epoch])
            for earlier in self.trials[: self.start_of(number)]
            if earlier.source != "baseline" and earlier.outcome is not None and earlier.outcome.status == "done"
        ]
        return bool(reference) and best_val_accuracy < median(reference)

    def _all_ended(self, before: int) -> bool:
        """Whether all trials with a smaller number have ended; if so, Optuna knows of them afterwards, in order."""
        if any(trial.outcome is None for trial in self.trials[:before]):
            return False
        for trial in self.trials[self._told : before]:
            if trial.source != "baseline" and trial.outcome is not None:
                self.proposer.tell(str(trial.number), trial.outcome)
        self._told = max(self._told, before)
        return True

    def _make(self, number: int) -> Trial:
        baselines = self.space.baselines
        if number < len(baselines):
            source, overrides = "baseline", dict(baselines[number])
        else:
            # The paper's points were enqueued ahead; of what an earlier session proposed, the values are kept.
            source = "paper" if number < self.first else "optuna"
            if source == "optuna" and number in self.known:
                self.proposer.enqueue(self.known[number].params)
            overrides = self.proposer.suggest(str(number)) or {}
        cell = self.cell_of(overrides)
        return Trial(number, source, overrides, cell, self.outcome_of(cell))
