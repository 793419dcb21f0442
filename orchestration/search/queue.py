"""What a sweep tries next, and what it stops early: decided by results alone, never by the clock.

The search makes its trials in generations: first the paper's own points, then Optuna's proposals a few at a time. A
generation is proposed when all before it have ended, and its stopping rule compares with those alone. So two runs of
one sweep make the same trials and stop the same ones, however many ran side by side and whatever was killed.

The listed runs have the first numbers and no part in the search. They run when it leaves a slot idle, which is for the
clock to say; but no number, proposal or result depends on when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Protocol

from erat.result import RunResult
from orchestration.study.trial import Trial


class Sampler(Protocol):
    """Optuna behind Ray Tune's searcher interface, plus trials whose values are known ahead."""

    def enqueue(self, params: Mapping[str, Any]) -> None: ...

    def suggest(self, trial_id: str) -> dict[str, Any] | None: ...

    def tell(self, trial_id: str, result: RunResult) -> None: ...


@dataclass
class Queue:
    """The trials of one sweep, by their numbers, and how each stands.

    Args:
        runs: that are listed, by their dotted keys.
        points: the paper's points in this data set's units.
        total: search trials in all (points and proposals); the listed runs come on top.
        generation: proposals are made so many at a time.
        proposer: asked for what is not fixed.
        known: proposals that an earlier session of this sweep made; they are kept.
        trial_of: number, source and overrides -> the trial, with its result if it has ended in this sweep already.
        on_proposed: told of each new trial.
        patience_epochs: epochs before a proposal may be stopped.
        epochs: the last epoch, after which there is nothing to stop.
        work_of: dotted keys of a listed run -> how long it is, in any unit. The longest begins first, so that none is
            left alone at the end.
        ready: number of a trial -> whether it may begin; those that may not (their images are being crafted) are
            passed over.
    """

    runs: Sequence[dict[str, Any]]
    points: Sequence[dict[str, Any]]
    total: int
    generation: int
    sampler: Sampler
    known: Mapping[int, Trial]
    trial_of: Callable[[int, str, dict[str, Any]], Trial]
    on_proposed: Callable[[Trial], None]
    patience_epochs: int
    epochs: int
    work_of: Callable[[Mapping[str, Any]], float] = lambda overrides: 0.0
    ready: Callable[[int], bool] = lambda number: True
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for point in self.points[: self.total]:
            self.sampler.enqueue(point)
        # Numbers of what is not made yet.
        work = [self.work_of(run) for run in self.runs]
        self._listed = deque(sorted(range(self.begin), key=lambda number: -work[number]))
        self._search = deque(range(self.begin, self.size))
        self._told = self.begin

    @property
    def begin(self) -> int:
        """The number with which the search begins, after the listed runs."""
        return len(self.runs)

    @property
    def first(self) -> int:
        """The number after the first generation, the paper's points."""
        return self.begin + min(len(self.points), self.total)

    @property
    def size(self) -> int:
        """Trials in all."""
        return self.begin + self.total

    @property
    def exhausted(self) -> bool:
        """Whether every trial has been made."""
        return len(self.trials) >= self.size

    def start_of(self, number: int) -> int:
        """The number with which the generation of trial `number` of the search begins."""
        if number < self.first:
            return self.begin
        return self.first + (number - self.first) // self.generation * self.generation

    def next(self, *, idle: bool = True) -> Trial | None:
        """The next trial that is not finished yet; none while no other may begin, or when all are made.

        Args:
            idle: a slot is free now, and is given a listed run rather than left to wait.
        """
        while (number := self._next_number(idle)) is not None:
            self.trials[number] = trial = self._make(number)
            self.on_proposed(trial)
            if not trial.ended:
                return trial
        return None

    def record(self, number: int, result: RunResult, mlflow_run_id: str | None = None) -> Trial:
        """Record how far a trial is, or how it ended; and its run in MLflow, where that is new."""
        known = self.trials[number]
        self.trials[number] = replace(known, result=result, mlflow_run_id=mlflow_run_id or known.mlflow_run_id)
        return self.trials[number]

    def stops(self, number: int, epoch: int, best_val_accuracy: float) -> bool:
        """The median rule: stop a proposal whose best so far is below the median of what earlier generations had.

        Only Optuna's proposals are stopped: listed runs and the paper's points are the figure.
        """
        trial = self.trials[number]
        if trial.source != "optuna" or not self.patience_epochs <= epoch < self.epochs:
            return False
        reference = [
            max(history[:epoch])
            for earlier in map(self.trials.__getitem__, range(self.begin, self.start_of(number)))
            if earlier.status == "done" and (history := earlier.so_far.val_history)
        ]
        return bool(reference) and best_val_accuracy < median(reference)

    def _next_number(self, idle: bool) -> int | None:
        if self._search and self._all_ended(self.start_of(self._search[0])) and self.ready(self._search[0]):
            return self._search.popleft()
        if idle or not self._search:
            number = next(filter(self.ready, self._listed), None)
            if number is not None:
                self._listed.remove(number)
            return number
        return None

    def _all_ended(self, before: int) -> bool:
        """Whether the search's trials before this number have ended; if so, Optuna then knows of them, in order."""
        trials = [self.trials[number] for number in range(self._told, before)]
        if not all(trial.ended for trial in trials):
            return False
        for trial in trials:
            self.sampler.tell(str(trial.number), trial.so_far)
        self._told = max(self._told, before)
        return True

    def _make(self, number: int) -> Trial:
        if number < self.begin:
            source, params = "baseline", dict(self.runs[number])
        else:
            # The paper's points were enqueued ahead; of what an earlier session proposed, the values are kept.
            source = "paper" if number < self.first else "optuna"
            if source == "optuna" and number in self.known:
                self.sampler.enqueue(self.known[number].params)
            params = self.sampler.suggest(str(number)) or {}
        return self.trial_of(number, source, params)
