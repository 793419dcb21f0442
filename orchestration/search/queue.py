"""The queue of a study: what is tried next, and what is stopped early. Results alone decide this, never the clock.

The search makes its trials in generations: first the paper's own points, then Optuna's proposals, a few at a time. A
generation is proposed when all earlier ones have ended, and the pruner compares its trials with those earlier ones
alone. A study that is repeated therefore makes the same trials and stops the same ones, no matter how many trials ran
at the same time and what was killed.

The listed runs have the first numbers and take no part in the search. They run when the search leaves a slot idle.
That moment depends on the clock, but no number, proposal or result depends on that moment.
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
    """The source of the search's trials: values that were given ahead, and then proposals of Optuna."""

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Put these values (dotted key -> value) at the end of those that `suggest` returns before it proposes any."""
        ...

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the values of the next trial, dotted key -> value; None if there is none."""
        ...

    def tell(self, trial_id: str, result: RunResult) -> None:
        """Take the result of a trial that has ended into account in later proposals."""
        ...


@dataclass
class Queue:
    """The trials of one study by their numbers, and the state of each.

    Args:
        runs: the listed runs, each given by its dotted keys.
        points: the paper's points in the data set's units.
        total: number of trials of the search (points and proposals), without the listed runs.
        generation: number of proposals that are made at a time.
        sampler: proposes the values that are not known ahead.
        known: number -> trial that was proposed before the study was resumed; its values are kept.
        trial_of: number, source and overrides -> the trial, with its result if it has already ended in this study.
        on_proposed: called with each new trial.
        patience_epochs: number of epochs before a proposal may be stopped.
        epochs: number of the last epoch, at which a trial is not stopped any more.
        work_of: dotted keys of a listed run -> how long it is, in any unit. The longest runs begin first, so that no
            long run is left for the end, when other slots are idle.
        ready: number of a trial -> whether it may begin. Listed runs that may not begin, because their images are still
            being crafted, are skipped for now; the search waits for its next trial.
        trials: number -> trial, for the trials made so far.
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
        # The numbers of trials that have not been made yet.
        work = [self.work_of(run) for run in self.runs]
        self._listed = deque(sorted(range(self.begin), key=lambda number: -work[number]))
        self._search = deque(range(self.begin, self.size))
        self._told = self.begin

    @property
    def begin(self) -> int:
        """Return the number of the search's first trial, which follows the listed runs."""
        return len(self.runs)

    @property
    def first(self) -> int:
        """Return the number of the first proposal, which follows the first generation, the paper's points."""
        return self.begin + min(len(self.points), self.total)

    @property
    def size(self) -> int:
        """Return the number of trials in all, with the listed runs."""
        return self.begin + self.total

    @property
    def exhausted(self) -> bool:
        """Return whether every trial has been made."""
        return len(self.trials) >= self.size

    def start_of(self, number: int) -> int:
        """Return the number of the first trial in the generation of the search's trial `number`."""
        if number < self.first:
            return self.begin
        return self.first + (number - self.first) // self.generation * self.generation

    def next(self, *, idle: bool = True) -> Trial | None:
        """Make and return the next trial that has not ended; None if none may begin now, or if all have been made.

        Args:
            idle: whether a slot is free now. A listed run is then returned if the search has to wait.
        """
        while (number := self._next_number(idle)) is not None:
            self.trials[number] = trial = self._make(number)
            self.on_proposed(trial)
            if not trial.ended:
                return trial
        return None

    def record(self, number: int, result: RunResult, mlflow_run_id: str | None = None) -> Trial:
        """Record the result of a trial so far or at its end, and return the new trial.

        Args:
            number: number of the trial.
            result: the result.
            mlflow_run_id: id of its run in MLflow; None: the known id is kept.
        """
        known = self.trials[number]
        self.trials[number] = replace(known, result=result, mlflow_run_id=mlflow_run_id or known.mlflow_run_id)
        return self.trials[number]

    def stops(self, number: int, epoch: int, best_val_accuracy: float) -> bool:
        """Return whether the pruner stops a trial, by the median rule.

        A proposal is stopped if its best validation accuracy so far is below the median of the best accuracies that the
        trials of earlier generations had after as many epochs. Listed runs and the paper's points are never stopped,
        because the paper's figures consist of them.

        Args:
            number: number of the trial.
            epoch: number of epochs that it has done.
            best_val_accuracy: its largest validation accuracy so far, in [0, 1].
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
        """Return whether all trials of the search before this number have ended, and if so tell Optuna, in order."""
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
            # The paper's points were enqueued at the start. Values proposed before the study was resumed are kept.
            source = "paper" if number < self.first else "optuna"
            if source == "optuna" and number in self.known:
                self.sampler.enqueue(self.known[number].params)
            params = self.sampler.suggest(str(number)) or {}
        return self.trial_of(number, source, params)
