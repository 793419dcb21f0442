"""The queue of a study: what is tried next, and what is stopped early. Results alone decide this, never the clock.

Trials have numbers, and trial n of the search is proposed from, and stopped against, the trials before n - W alone,
where W is the window. It waits until all of these have come as far as it may look, and it does not look at any other,
even if that one has ended. A study that is repeated therefore makes the same trials and stops the same ones, no matter
how many trials ran at the same time and what was killed.

A pruner with rungs (successive halving) divides the proposals into blocks of successive numbers. A proposal pauses at
each rung, until its whole block has come there; the best then go on from their checkpoints. What the sampler sees of
trial m when it proposes trial n follows from the numbers too: the state at the first rung if m is before n - W, the
state at the second rung if m and its block are before n - 2 W, and so on; the end counts as the last rung.

The listed runs have the first numbers and take no part in the search. They run when the search leaves a slot idle.
That moment depends on the clock, but no number, proposal or result depends on that moment. When the search is over, the
best trials are repeated with further seeds, if the study asks for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import isfinite
from typing import Any, Literal, Protocol

import numpy as np

from erat.result import RunResult
from orchestration.search.pruners import Pruner
from orchestration.study.trial import Trial, confirmation

PROPOSAL_SECONDS = 0.005  # how long an idle slot waits for a proposal before the caller sees to other trials


@dataclass(frozen=True, slots=True)
class Observation:
    """What the sampler may know of a trial.

    Attributes:
        state: "complete"; "pruned" for a trial that was stopped, or that is only known up to a rung; or "failed", also
            for an accuracy that is not finite.
        epochs: number of epochs that are known.
        best_val_accuracy: largest validation accuracy of these epochs, in [0, 1]; None if it failed.
        cost: seconds of an epoch; None if it failed, or is only known up to a rung.
    """

    state: Literal["complete", "pruned", "failed"]
    epochs: int = 0
    best_val_accuracy: float | None = None
    cost: float | None = None


class Sampler(Protocol):
    """The source of the search's values. The queue calls it in an order that does not depend on the clock.

    A trial whose values were given or proposed and that was not told is running, as far as the sampler knows.
    """

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        """Take note that the trial of this number has these values (dotted key -> value), which were given ahead."""
        ...

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the values of a trial, dotted key -> value.

        Args:
            number: number of the trial.
            known: the values that were proposed for it before the study was resumed, which are then returned.
        """
        ...

    def tell(self, number: int, observation: Observation) -> None:
        """Take a trial into account in later proposals; another call for the same trial replaces the first one."""
        ...


@dataclass
class Queue:
    """The trials of one study by their numbers, and the state of each.

    Args:
        runs: the listed runs, each given by its dotted keys.
        points: the paper's points in the data set's units.
        total: number of trials of the search (points and proposals), without the listed runs.
        window: the window; see the module.
        sampler: proposes the values that are not known ahead.
        pruner: decides which proposals are stopped early.
        block: number of successive proposals that the pruner compares with each other at a rung.
        known: number -> trial that was proposed before the study was resumed; its values are kept.
        trial_of: number, source and overrides -> the trial, with its result if it has already ended in this study.
        on_proposed: called with each new trial.
        epochs: number of the last epoch, at which a trial is not stopped any more.
        totals: the numbers of trials that were asked for so far, ascending. A block does not go beyond one of them, so
            that a search that is extended keeps its decisions.
        promoted: number -> epoch of the last rung from which the trial was promoted before the study was resumed.
        on_promoted: called with each trial that is promoted, and the epoch of the rung.
        on_stopped: called with each trial that is stopped at a rung, after its status has changed.
        confirm_top: number of the best trials that are repeated when the search is over.
        confirm_seeds: number of seeds of each of them in all.
        work_of: dotted keys of a listed run -> how long it is, in any unit. The longest runs begin first, so that no
            long run is left for the end, when other slots are idle.
        ready: number of a trial -> whether it may begin. Listed runs that may not begin, because their images are still
            being crafted, are skipped for now; the search waits for its next trial.
        pool: makes proposals beside the caller, one at a time. None: the caller waits for them.
        trials: number -> trial, for the trials made so far.
    """

    runs: Sequence[dict[str, Any]]
    points: Sequence[dict[str, Any]]
    total: int
    window: int
    sampler: Sampler
    pruner: Pruner
    block: int
    known: Mapping[int, Trial]
    trial_of: Callable[[int, str, dict[str, Any]], Trial]
    on_proposed: Callable[[Trial], None]
    epochs: int
    totals: Sequence[int] = ()
    promoted: Mapping[int, int] = field(default_factory=dict)
    on_promoted: Callable[[Trial, int], None] = lambda trial, epoch: None
    on_stopped: Callable[[Trial], None] = lambda trial: None
    confirm_top: int = 0
    confirm_seeds: int = 1
    work_of: Callable[[Mapping[str, Any]], float] = lambda overrides: 0.0
    ready: Callable[[int], bool] = lambda number: True
    pool: Executor | None = None
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The numbers of trials that have not been made yet.
        work = [self.work_of(run) for run in self.runs]
        self._listed = deque(sorted(range(self.begin), key=lambda number: -work[number]))
        self._search = deque(range(self.begin, self.size))
        self._confirming: deque[tuple[int, dict[str, Any]]] | None = None  # None: the search is not over
        self._going_on: deque[int] = deque()  # promoted, and waiting for a slot
        self._promoted = dict(self.promoted)
        self._rungs = self.pruner.rungs
        self._at_rung: dict[tuple[int, int], float] = {}  # number, rung -> largest validation accuracy up to there
        self._blocks = dict(pairwise(self._bounds()))
        self._block_of = {number: start for start, stop in self._blocks.items() for number in range(start, stop)}
        self._undecided = deque((start, self._rungs[0]) for start in self._blocks) if self._rungs else deque()
        # For each level (a rung, or the end): the first trial that was not told, and the first not known to be there.
        levels = len(self._rungs) + 1
        self._told, self._arrived = [self.begin] * levels, [self.begin] * levels
        self._observed: dict[int, Observation] = {}
        self._coming: Future[dict[str, Any]] | None = None  # the values of the search's next trial
        # Largest validation accuracy up to each epoch, in [0, 1], of the search's trials that are done; otherwise NaN.
        self._best = np.full((self.total, self.epochs), np.nan)

    @property
    def begin(self) -> int:
        """Return the number of the search's first trial, which follows the listed runs."""
        return len(self.runs)

    @property
    def first(self) -> int:
        """Return the number of the first proposal, which follows the paper's points."""
        return self.begin + min(len(self.points), self.total)

    @property
    def size(self) -> int:
        """Return the number of listed runs and trials of the search, without confirmations."""
        return self.begin + self.total

    @property
    def planned(self) -> int:
        """Return the number of trials in all, as far as it is known."""
        expected = min(self.confirm_top, self.total) * (self.confirm_seeds - 1)
        if self._confirming is not None:
            expected = len(self._confirming) + sum(trial.confirms is not None for trial in self.trials.values())
        return self.size + expected

    @property
    def width(self) -> int:
        """Return how many trials could run at the same time now, if there were any number of slots."""
        listed, searched, running = self.begin, self.total, 0
        for number, trial in self.trials.items():
            rests = trial.ended or trial.status == "paused"
            listed -= rests and number < self.begin
            searched -= rests and self.begin <= number < self.size
            running += not rests and self.begin <= number < self.size
        confirming = self._confirming or ()
        repeated = sum(not trial.ended for trial in self.trials.values() if trial.confirms is not None)
        # A trial runs beside those of its window.
        return listed + min(searched, max(self.window + 1, running)) + len(confirming) + repeated

    @property
    def exhausted(self) -> bool:
        """Return whether every trial has been made, and none waits at a rung or for a slot."""
        return not (self._listed or self._search or self._going_on or self._waiting) and self._confirming == deque()

    @property
    def _waiting(self) -> bool:
        return bool(self._undecided)

    def pauses_after(self, number: int) -> int | None:
        """Return the epoch after which a trial pauses: the next rung of a proposal; None if it runs to the end."""
        if self.trials[number].source != "optuna":
            return None
        return next((rung for rung in self._rungs if rung > self._promoted.get(number, 0)), None)

    def next(self, *, idle: bool = True) -> Trial | None:
        """Make and return the next trial that has not ended; None if none may begin now, or if all have been made.

        Trials that were promoted come before new ones.

        Args:
            idle: whether a slot is free now. A listed run is then returned if the search has to wait.
        """
        while True:
            self._decide()
            if self._going_on:
                return self.trials[self._going_on.popleft()]
            made = self._make_next(idle)
            if made is None:
                return None
            self._keep(made)
            self.on_proposed(made)
            self._begin_proposal()
            if self.trials[made.number].status in ("queued", "running"):
                return made

    def record(self, number: int, result: RunResult, mlflow_run_id: str | None = None) -> Trial:
        """Record the result of a trial so far, at a rung or at its end, and return the new trial.

        Args:
            number: number of the trial.
            result: the result.
            mlflow_run_id: id of its run in MLflow; None: the known id is kept.
        """
        known = self.trials[number]
        self._keep(replace(known, result=result, mlflow_run_id=mlflow_run_id or known.mlflow_run_id))
        return self.trials[number]

    def stops(self, number: int, epoch: int, best_val_accuracy: float) -> bool:
        """Return whether the pruner stops a trial, which is compared with the trials before its window.

        Listed runs, the paper's points and confirmations are never stopped, because figures consist of them.

        Args:
            number: number of the trial.
            epoch: number of epochs that it has done.
            best_val_accuracy: its largest validation accuracy so far, in [0, 1].
        """
        if self.trials[number].source != "optuna" or not 1 <= epoch <= self.epochs:
            return False
        reference = self._best[: max(0, number - self.window - self.begin), epoch - 1]
        return self.pruner.stops(epoch, best_val_accuracy, reference[~np.isnan(reference)])

    # -- rungs ------------------------------------------------------------------------------------------------------

    def _bounds(self) -> list[int]:
        """Return the first number of each block, and the number after the last one."""
        bounds = [self.first]
        for end in sorted({self.begin + total for total in self.totals if total < self.total} | {self.size}):
            bounds += [*range(bounds[-1] + self.block, end, self.block), end] if end > bounds[-1] else []
        return bounds

    def _decide(self) -> None:
        """Decide every rung that all trials of a block have reached: promote the best, and stop the others."""
        left: deque[tuple[int, int]] = deque()
        while self._undecided:
            start, rung = self._undecided.popleft()
            if (best := self._all_at(start, rung)) is None:
                left.append((start, rung))
                continue
            chosen = self.pruner.promoted(best)
            for number in best:
                self._settle(number, rung, promoted=number in chosen)
            if following := [later for later in self._rungs if later > rung]:
                self._undecided.append((start, following[0]))
        self._undecided = left

    def _all_at(self, start: int, rung: int) -> dict[int, float] | None:
        """Return number -> largest accuracy up to the rung for the trials of a block that reached it.

        Return None if some trial of the block may still come to the rung. A trial that failed before it is left out.
        """
        best = {}
        earlier = [previous for previous in self._rungs if previous < rung]
        for number in range(start, self._blocks[start]):
            trial = self.trials.get(number)
            if trial is None:
                return None
            if earlier and self._promoted.get(number, 0) < earlier[-1] and trial.status != "done":
                continue  # it was stopped at an earlier rung, or failed before it
            # A trial that has done the rung's epoch and has not paused yet would miss the decision.
            settled = trial.ended or trial.status == "paused" or self._promoted.get(number, 0) >= rung
            if (number, rung) in self._at_rung and settled:
                best[number] = self._at_rung[number, rung]
            elif not trial.ended:
                return None
        return best

    def _settle(self, number: int, rung: int, *, promoted: bool) -> None:
        trial = self.trials[number]
        if promoted:
            if self._promoted.get(number, 0) < rung:
                self._promoted[number] = rung
                self.on_promoted(trial, rung)
            if trial.status == "paused" and trial.epoch <= rung:
                self._keep(replace(trial, result=replace(trial.so_far, status="queued")))
                self._going_on.append(number)
        elif trial.status == "paused":
            self._keep(replace(trial, result=replace(trial.so_far, status="stopped")))
            self.on_stopped(self.trials[number])

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        if not self.begin <= trial.number < self.size:
            return
        history = trial.so_far.val_history
        for rung in self._rungs:
            if len(history) >= rung:
                self._at_rung.setdefault((trial.number, rung), max(history[:rung]))
        if trial.status == "done" and history:
            best = np.maximum.accumulate(history[: self.epochs])
            row = self._best[trial.number - self.begin]
            row[: len(best)], row[len(best) :] = best, best[-1]

    # -- what comes next --------------------------------------------------------------------------------------------

    def _make_next(self, idle: bool) -> Trial | None:
        if self._search and self.ready(self._search[0]):
            number = self._search[0]
            if number < self.first:
                self._search.popleft()
                params = dict(self.points[number - self.begin])
                self.sampler.given(number, params)
                return self.trial_of(number, "paper", params)
            if (values := self._proposal(idle)) is not None:
                self._search.popleft()
                return self.trial_of(number, "optuna", values)
        if idle or not self._search:
            listed = next(filter(self.ready, self._listed), None)
            if listed is not None:
                self._listed.remove(listed)
                return self.trial_of(listed, "baseline", dict(self.runs[listed]))
        return self._confirmation()

    def _proposal(self, idle: bool) -> dict[str, Any] | None:
        """Return the values of the search's next trial, or None if it has to wait."""
        self._begin_proposal()
        if self._coming is None:
            return None
        if self.pool is not None and not self._coming.done() and idle:
            wait([self._coming], timeout=PROPOSAL_SECONDS)
        if not self._coming.done():
            return None
        values = self._coming.result()
        self._coming = None
        return values

    def _begin_proposal(self) -> None:
        """Begin to make the values of the search's next trial if it may be proposed by now."""
        if self._coming is not None or not self._search or (number := self._search[0]) < self.first:
            return
        if not self._all_arrived(number):
            return
        told = list(self._to_tell(number))
        known = self.known[number].params if number in self.known else None

        def make() -> dict[str, Any]:
            for earlier, observation in told:
                self.sampler.tell(earlier, observation)
            return self.sampler.propose(number, known)

        if self.pool is not None:
            self._coming = self.pool.submit(make)
        else:
            self._coming = Future()
            self._coming.set_result(make())

    def _due(self, number: int, earlier: int, level: int) -> bool:
        """Return whether the proposal of trial `number` depends on the state of an earlier trial at this level.

        Levels are counted from 0, the first rung (without rungs: the end).
        """
        last = self._blocks[self._block_of[earlier]] - 1 if level and earlier in self._block_of else earlier
        return last < number - (level + 1) * self.window

    def _all_arrived(self, number: int) -> bool:
        """Return whether all trials on which the proposal of trial `number` depends have come as far as needed."""
        for level in range(len(self._arrived)):
            while (earlier := self._arrived[level]) < number and self._due(number, earlier, level):
                trial = self.trials[earlier]
                if not (trial.ended or (level < len(self._rungs) and (earlier, self._rungs[level]) in self._at_rung)):
                    return False
                self._arrived[level] += 1
        return True

    def _to_tell(self, number: int) -> Iterator[tuple[int, Observation]]:
        """Yield what the sampler is to be told before it proposes trial `number`."""
        for level in range(len(self._told)):
            while (earlier := self._told[level]) < number and self._due(number, earlier, level):
                self._told[level] += 1
                observation = self._observation(self.trials[earlier], level)
                if self._observed.get(earlier) != observation:
                    self._observed[earlier] = observation
                    yield earlier, observation

    def _observation(self, trial: Trial, level: int) -> Observation:
        if level < len(self._rungs) and (there := (trial.number, self._rungs[level])) in self._at_rung:
            return Observation("pruned", self._rungs[level], self._at_rung[there])
        result = trial.so_far
        best, cost = result.best_val_accuracy, result.train_seconds / result.epochs if result.epochs else None
        if result.status not in ("done", "stopped") or best is None or not isfinite(best):
            return Observation("failed", result.epochs)
        return Observation("complete" if result.status == "done" else "pruned", result.epochs, best, cost)

    # -- confirmation -----------------------------------------------------------------------------------------------

    def _confirmation(self) -> Trial | None:
        """Make and return the next repetition of one of the best trials; None if there is none yet, or no more."""
        if self._confirming is None:
            ended = not self._search and all(self.trials[number].ended for number in range(self.begin, self.size))
            if not ended:
                return None
            self._confirming = deque(self._confirmations())
        if not self._confirming:
            return None
        number, params = self._confirming.popleft()
        return self.trial_of(number, "confirm", params)

    def _confirmations(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield number and dotted keys of the trials that confirm the best ones, and of those known from earlier."""
        searched = [self.trials[number] for number in range(self.begin, self.size)]
        done = [(trial.best_val_accuracy, trial) for trial in searched if trial.status == "done"]
        ranked = sorted(
            ((best, trial) for best, trial in done if best is not None and isfinite(best)),
            key=lambda each: (-each[0], each[1].number),
        )
        made = set()
        for repeat in range(1, self.confirm_seeds):
            for _, trial in ranked[: self.confirm_top]:
                number = confirmation(trial.number, repeat)
                made.add(number)
                yield number, trial.params | {"train.seed": trial.config["train.seed"] + repeat}
        yield from (
            (number, trial.params)
            for number, trial in self.known.items()
            if trial.confirms is not None and number not in made
        )
