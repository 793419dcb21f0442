"""The queue of a study: what is tried next, and what is stopped early. Results alone decide this, never the clock.

Trials have numbers, and trial n of the search is proposed from, and stopped against, the trials before n - W alone,
where W is the window. A search that is extended may have another window for the further trials. A trial waits until all
of these have come as far as it may look, and it does not look at any other, even if that one has ended. A study that is
repeated therefore makes the same trials and stops the same ones, no matter how many trials ran at the same time and
what was killed.

A pruner with rungs (successive halving) divides the proposals into blocks of successive numbers. A proposal pauses at
each rung, until its whole block has come there; the best then go on from their checkpoints. What the sampler sees of
trial m when it proposes trial n follows from the numbers too: the state at the first rung if m is before n - W, the
state at the second rung if m and its block are before n - 2 W, and so on; the end counts as the last rung. See
`orchestration.search.observations`.

The listed runs have the first numbers and take no part in the search. They run when the search leaves a slot idle.
That moment depends on the clock, but no number, proposal or result depends on that moment. When the search is over, the
best trials are repeated with further seeds, if the study asks for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar

from erat.result import RunResult
from orchestration.search.blocks import Blocks
from orchestration.search.curves import Curves
from orchestration.search.observations import Observation, Observations, Sampler
from orchestration.search.pruners import Pruner
from orchestration.study.confirmations import repetitions
from orchestration.study.trial import Trial

PROPOSAL_SECONDS = 0.002  # how long an idle slot waits for a proposal before the caller sees to other trials
# So many proposals a pool makes before there is a slot for them, as far as the window lets it: trials of one length end
# together, and a proposal takes a tenth of a second once there are ten thousand trials.
AHEAD = 32


@dataclass
class Queue:
    """The trials of one study by their numbers, and the state of each.

    Args:
        runs: the listed runs, each given by its dotted keys.
        points: the paper's points in the data set's units.
        total: number of trials of the search (points and proposals), without the listed runs.
        window: the window; see the module.
        windows: one of `totals` or `total` -> the window of the trials by which it extended the search, if they have
            another one.
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
        pool: makes proposals beside the caller, one at a time and up to `AHEAD` before they are needed. None: the
            caller waits for each.
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
    windows: Mapping[int, int] = field(default_factory=dict)
    promoted: Mapping[int, int] = field(default_factory=dict)
    on_promoted: Callable[[Trial, int], None] = lambda trial, epoch: None
    on_stopped: Callable[[Trial], None] = lambda trial: None
    confirm_top: int = 0
    confirm_seeds: int = 1
    work_of: Callable[[Mapping[str, Any]], float] = lambda overrides: 0.0
    ready: Callable[[int], bool] = lambda number: True
    pool: Executor | None = None
    trials: dict[int, Trial] = field(default_factory=dict)

    observing: ClassVar[type[Observations]] = Observations

    def __post_init__(self) -> None:
        # The numbers of trials that have not been made yet.
        work = [self.work_of(run) for run in self.runs]
        self._listed = deque(sorted(range(self.begin), key=lambda number: -work[number]))
        self._search = deque(range(self.begin, self.size))
        self._confirming: deque[tuple[int, dict[str, Any]]] | None = None  # None: the search is not over
        self._coming: deque[Future[dict[str, Any]]] = deque()  # the values of the search's next trials

        # The search's trials: those made that have not ended, those promoted that wait for a slot, and the number of an
        # earlier trial with the same configuration, with which a trial ends.
        self._open: set[int] = set()
        self._beside: set[int] = set()  # the listed runs and confirmations that were made and have not ended
        self._going_on: deque[int] = deque()
        self._same: dict[int, int] = {}
        self._first_of: dict[str, int] = {}  # cell -> number of the first trial that has it, also of a listed run
        for number, run in enumerate(self.runs if self.total else ()):
            self._first_of.setdefault(self.trial_of(number, "baseline", dict(run)).cell, number)
        self._curves = Curves(self.epochs)

        ends = [self.begin + total for total in (*self.totals, self.total) if total <= self.total]
        promoted = {number: epoch for number, epoch in self.promoted.items() if number in self.known}
        self._blocks = Blocks(self.pruner.rungs, self.first, ends, self.block, promoted)
        self._changed: set[int] = set()  # blocks in which something has changed since the last decision
        asked = sorted({*self.totals, self.total})
        windows = [(self.begin + total, self.windows.get(total, self.window)) for total in asked]
        self._observations = self.observing(self.trials, self._same, self._blocks, self.begin, self.first, windows)

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
        running = sum(self.trials[number].status != "paused" for number in self._open)
        # A trial runs beside those of its window.
        ahead = self._observations.window(self._search[0]) + 1 if self._search else 0
        search = min(len(self._search) + running, max(ahead, running))
        return search + len(self._listed) + len(self._beside) + len(self._confirming or ())

    @property
    def exhausted(self) -> bool:
        """Return whether every trial has been made, and those of the search have ended."""
        return not self._listed and self._confirming == deque()

    def pauses_after(self, number: int) -> int | None:
        """Return the epoch after which a trial pauses: the next rung of a proposal; None if it runs to the end."""
        return self._blocks.next_rung(number) if self.trials[number].source == "optuna" else None

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
            self._add(made)
            self.on_proposed(self.trials[made.number])
            self._begin_proposals()
            if self.trials[made.number].status == "queued" and made.number not in self._same:
                return self.trials[made.number]

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

        Listed runs, the paper's points and confirmations are never stopped, because figures consist of them. Where a
        trial pauses, its block decides.

        Args:
            number: number of the trial.
            epoch: number of epochs that it has done.
            best_val_accuracy: its largest validation accuracy so far, in [0, 1].
        """
        proposed = self.trials[number].source == "optuna"
        if not proposed or not 1 <= epoch <= self.epochs or epoch == self.pauses_after(number):
            return False
        before = self._observations.limit(number, len(self._blocks.rungs)) - self.begin
        return self.pruner.stops(epoch, best_val_accuracy, self._curves.at(epoch, before))

    # -- the state of the trials ------------------------------------------------------------------------------------

    def _add(self, trial: Trial) -> None:
        """Take in a trial that has just been made.

        A trial of the search that repeats an earlier configuration, or that of a listed run, is not run again: it ends
        as that one does.
        """
        if trial.source in ("paper", "optuna"):
            first = self._first_of.setdefault(trial.cell, trial.number)
            if first != trial.number:
                self._same[trial.number] = first
                trial = self._like(trial, self.trials.get(first))
        self._keep(trial)

    def _like(self, trial: Trial, first: Trial | None) -> Trial:
        if first is None or not first.ended:
            return replace(trial, result=None)
        return replace(trial, result=first.result, mlflow_run_id=first.mlflow_run_id)

    def _keep(self, trial: Trial) -> None:
        number, history = trial.number, trial.so_far.val_history
        self.trials[number] = trial
        unended = self._open if self.begin <= number < self.size else self._beside
        (unended.discard if trial.ended else unended.add)(number)
        if unended is self._open:
            self._blocks.note(number, history)
            if number >= self.first:
                self._changed.add(self._blocks.start(number))
            if trial.status == "done" and history:
                self._curves.keep(number - self.begin, history)
        if not trial.ended:
            return
        for later in [later for later, first in self._same.items() if first == number]:
            self._keep(self._like(self.trials[later], trial))

    # -- rungs ------------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Decide every rung that all trials of a block have reached: promote the best, and stop the others."""
        decided = self._blocks.decided
        for start in sorted(self._changed):
            while decided[start] < len(self._blocks.rungs) and self._decide_block(start, decided[start]):
                decided[start] += 1
        self._changed.clear()

    def _decide_block(self, start: int, level: int) -> bool:
        """Decide a rung if all trials of a block that may come to it are there, and return whether it was decided."""
        rung, before = self._blocks.rungs[level], self._blocks.before(level)
        best: dict[int, float] = {}
        for number in self._blocks.members(start):
            trial, promoted = self.trials.get(number), self._blocks.promoted.get(number, 0)
            if trial is None:
                return False
            if number in self._same or promoted < before:
                continue
            if (reached := self._blocks.best(number, rung)) is None:
                if not trial.ended:
                    return False
            elif trial.ended or trial.status == "paused" or promoted >= rung:
                best[number] = reached
            else:  # it has done the epoch but not paused yet, so that it could neither be stopped nor go on
                return False
        chosen = self.pruner.promoted(best)
        for number in best:
            self._settle(number, rung, chosen=number in chosen)
        return True

    def _settle(self, number: int, rung: int, *, chosen: bool) -> None:
        """Carry out the decision on a trial at a rung, unless it was carried out before the study was resumed.

        A decision stands, even if a trial of the block that had failed is repeated and would change it.
        """
        trial = self.trials[number]
        if self._blocks.promoted.get(number, 0) >= rung or trial.status == "stopped":
            return
        if chosen:
            self._blocks.promoted[number] = rung
            self.on_promoted(trial, rung)
            if trial.status == "paused":
                self._keep(replace(trial, result=replace(trial.so_far, status="queued"), promoted=rung))
                self._going_on.append(number)
        elif trial.status == "paused":
            self._keep(replace(trial, result=replace(trial.so_far, status="stopped")))
            self.on_stopped(self.trials[number])

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
        self._begin_proposals()
        if not self._coming:
            return None
        first = self._coming[0]
        if not first.done() and idle:
            wait([first], timeout=PROPOSAL_SECONDS)
        if not first.done():
            return None
        values = first.result()
        self._coming.popleft()
        return values

    def _begin_proposals(self) -> None:
        """Begin to make the values of the search's next trials, as far as they may be proposed by now."""
        for number in islice(self._search, len(self._coming), 1 if self.pool is None else AHEAD):
            if number < self.first or not self._observations.all_arrived(number):
                return
            told = list(self._observations.to_tell(number))
            known = self.known[number].params if number in self.known else None
            if self.pool is not None:
                self._coming.append(self.pool.submit(self._values, number, told, known))
            else:
                made: Future[dict[str, Any]] = Future()
                made.set_result(self._values(number, told, known))
                self._coming.append(made)

    def _values(
        self, number: int, told: Sequence[tuple[int, Observation]], known: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        for earlier, observation in told:
            self.sampler.tell(earlier, observation)
        return self.sampler.propose(number, known)

    # -- confirmation -----------------------------------------------------------------------------------------------

    def _confirmation(self) -> Trial | None:
        """Make and return the next repetition of one of the best trials; None if there is none yet, or no more."""
        if self._confirming is None:
            if self._search or self._open:
                return None
            searched = [self.trials[number] for number in range(self.begin, self.size) if number not in self._same]
            best = dict(repetitions(searched, self.confirm_top, self.confirm_seeds))
            # Those of trials that were the best before the search was extended are kept.
            earlier = {number: trial.params for number, trial in self.known.items() if trial.confirms is not None}
            self._confirming = deque(
                (best | {number: earlier[number] for number in sorted(earlier.keys() - best)}).items()
            )
        if not self._confirming:
            return None
        number, params = self._confirming.popleft()
        return self.trial_of(number, "confirm", params)
