"""Connect Ray Tune to the queue of a study."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from erat.errors import UserError
from orchestration.cluster import autoscaling, execution, landing, session
from orchestration.cluster.worker import trainable
from orchestration.run.busy import Meter
from orchestration.run.places import Place
from orchestration.run.retries import Retry
from orchestration.search.calls import Driver, Held
from orchestration.search.listeners import Progress, QueueScheduler
from orchestration.study.trial import Trial

METRIC = "val_accuracy"
# A worker whose trial took less takes the next one at once. By way of Tune it would get one some tenths of a second
# later, and whenever that happens while another worker starts, Tune ends the latter, whose trial it gives to the first.
SHORT_SECONDS = 5.0


class QueueSearcher(Searcher):
    """A Tune searcher that returns the trials of the queue, and waits while the queue has none.

    Where a worker starts is Ray's choice. If its trial must not run there, the worker is parked, so that this place is
    taken, and the trial is given to Tune once more. A worker whose trial was short is handed the next one within the
    same trial of Tune's. What the queue decides does not depend on either.

    Args:
        driver: the driver, with the queue.
        fit: number of trials that fit on the cluster now; `resize` changes it.
        at_most: number of trials that may run at the same time; None: as many as fit.
        ahead: whether Tune may ask for one more trial than fit, which waits until there is room. At most that many run
            even so if `at_most` is the smaller number, or if places are excluded or limited.
        park, unpark: have a worker do nothing, and end it; called with Tune's id of its trial.
        hand: has a worker run a further trial; called with Tune's id of its trial and the parameters of the other one.
    """

    def __init__(
        self,
        driver: Driver,
        fit: int,
        at_most: int | None = None,
        *,
        ahead: bool,
        park: Callable[[str], None] = landing.park,
        unpark: Callable[[str], None] = landing.unpark,
        hand: Callable[[str, dict[str, Any]], None] = landing.hand,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._driver = Held(driver)
        self._fit, self._at_most, self._may_ask_ahead = fit, at_most, ahead
        self._park, self._unpark, self._hand = park, unpark, hand
        self.fault: Exception | None = None  # the error that ends the search
        self._running: dict[str, Trial] = {}
        # Of those of them whose worker has started where it may train: where, and when the trial began.
        self._landed: dict[str, tuple[Place, float]] = {}
        self._again: deque[Trial] = deque()
        self._parked: dict[str, tuple[int, Place]] = {}  # worker -> the trial that it was started for, and where it is
        self._unparked: set[str] = set()  # workers of these that are to end
        self._turned_away: set[int] = set()  # trials whose worker was parked at a place that is good for others

    @property
    def slots(self) -> int:
        """Return the number of trials that may run at the same time; 0 if the cluster has lost all its places."""
        places = self._driver().places.left(self._fit)
        return min(places, self._at_most or places)

    @property
    def _ahead(self) -> bool:
        return self._may_ask_ahead and self.slots == self._fit and self._driver().places.whole

    def resize(self, fit: int, room: Mapping[str, int] | None = None) -> None:
        """Take note that so many trials fit on the cluster now. Trials that run beyond that are not touched.

        Args:
            fit: the number.
            room: the same by node, if trials have one worker.
        """
        self._fit = fit
        self._driver().places.resize(room or {})
        self._unpark_some()

    def wanted(self) -> int:
        """Return for how many trials the study would use places now, if there were any number of them."""
        width = self._driver().queue.width
        return min(width, self._at_most or width) + len(self._parked)

    def suggest(self, trial_id: str) -> Any:
        idle = len(self._running) < self.slots
        if self.fault is not None:
            return None
        trial = self._next(idle) if idle or self._ahead else None
        if trial is not None:
            self._running[trial_id] = trial
            return self._driver().trial_parameters(trial)
        over = self._driver().queue.exhausted and not self._running and not self._again
        if over:
            self._end(self._parked)
        return Searcher.FINISHED if over else None

    def _next(self, idle: bool) -> Trial | None:
        """Return the trial that is to run next: one that runs again, or else the queue's next one.

        If its worker was parked at a place that others may use, another trial goes first, and takes that place.
        """
        if not self._again:
            return self._driver().queue.next(idle=idle)
        if (number := self._again[0].number) in self._turned_away:
            self._turned_away.discard(number)
            at = next((index for index, trial in enumerate(self._again) if trial.number != number), None)
            if at is not None:
                self._again.rotate(-at)
                other: Trial | None = self._again.popleft()
                self._again.rotate(at)
            else:
                other = self._driver().queue.next(idle=idle)
            if other is not None:
                self._end(worker for worker, (parked_for, _) in self._parked.items() if parked_for == number)
                return other
        return self._again.popleft()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._running.get(trial_id)
        if trial is None or result.get("done"):  # Tune repeats the last report when the worker has returned
            return
        if trial_id in self._landed:
            if result.get(execution.ENDED) in ("done", "stopped", "paused"):
                self._hand_on(trial_id)
            return
        if landing.PLACE not in result or trial_id in self._parked:
            return
        place = landing.place_from(result[landing.PLACE])
        if self._driver().landed(trial.number, place):
            self._landed[trial_id] = place, time.monotonic()
            self._turned_away.discard(trial.number)
        else:
            self._park(trial_id)
            self._parked[trial_id] = (trial.number, place)
            del self._running[trial_id]
            self._again.appendleft(trial)
            if self._driver().places.is_free(place):
                self._turned_away.add(trial.number)
        self._unpark_some()

    def _hand_on(self, trial_id: str) -> None:
        """Give a worker whose trial was short the next one, if there is one that may run where the worker is."""
        place, began = self._landed[trial_id]
        if time.monotonic() - began >= SHORT_SECONDS or not self._ended(trial_id):
            return
        try:
            # What waits for room, such as the trial that Tune has been given ahead, takes none yet.
            trial = self._next(idle=True) if len(self._landed) < self.slots else None
            if trial is None:
                return
            if not self._driver().places.is_free(place, trial.number):
                self._again.appendleft(trial)
                return
            parameters = self._driver().trial_parameters(trial)
            self._driver().started(trial.number)
            self._driver().landed(trial.number, place)
            self._hand(trial_id, parameters)
        except Exception as error:
            self.fault = error
            return
        self._running[trial_id], self._landed[trial_id] = trial, (place, time.monotonic())

    def number_of(self, trial: Any) -> int | None:
        """Return the number of the trial that a worker, given by its trial of Tune's, runs now; None: it has ended."""
        mine = self._running.get(trial.trial_id)
        return None if mine is None else mine.number

    def is_parked(self, trial_id: str) -> bool:
        """Return whether the worker of this trial of Tune's is parked."""
        return trial_id in self._parked

    def _unpark_some(self) -> None:
        """End parked workers whose places may be used again: of each place one at a time."""
        waiting = {trial.number for trial in self._again}
        waiting |= {trial.number for name, trial in self._running.items() if name not in self._landed}
        freed: set[Place] = set()
        for worker, (number, place) in self._parked.items():
            needed = number in waiting and not self._driver().places.is_free(place, number)
            if place in freed or needed or not self._driver().places.is_free(place):
                continue
            freed.add(place)
            self._end([worker])

    def _end(self, workers: Iterable[str]) -> None:
        for worker in set(workers) - self._unparked:
            self._unparked.add(worker)
            self._unpark(worker)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self._parked.pop(trial_id, None) is not None:
            self._end([trial_id])  # if it died, so that no entry stays behind
            return
        if (words := (result or {}).get(execution.STORAGE_FAULT)) and self.fault is None and trial_id in self._running:
            self.fault = UserError(f"{words}; nothing finished is lost: mend that, and resume")
        self._ended(trial_id)

    def _ended(self, trial_id: str) -> bool:
        """Record the end of the trial that a worker ran; return False if it ran none, or that failed."""
        self._landed.pop(trial_id, None)
        if self.fault is not None or (trial := self._running.pop(trial_id, None)) is None:
            return False
        try:
            ended = self._driver().ended(trial.number)
        except Exception as error:
            # Tune would take an error that is raised here for one of the trial. `Progress` raises it later, at a place
            # where Tune does not catch it.
            self.fault = error
            return False
        if isinstance(ended, Retry):
            self._again.append(trial)
        self._unpark_some()
        return True

    def held(self) -> int:
        """Return the number of trials that Tune has and that have not ended, or 1 if it gets none for want of places.

        Raises:
            Exception: The error that ends the search, if there is one.
        """
        if self.fault is not None:
            raise self.fault
        return len(self._running) or int(not self.slots and not self._driver().queue.exhausted)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because a study is resumed from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; see `save`."""


def run(
    driver: Driver,
    *,
    name: str,
    storage: Path,
    resources: Mapping[str, float],
    workers: int,
    fewest: int | None = None,
    at_most: int | None = None,
    demand: autoscaling.Demand | None = None,
) -> None:
    """Run all trials of the driver's queue that are not finished.

    Args:
        driver: the driver, which is told what happens.
        name: name of the study, under which Tune keeps its own results.
        storage: folder of Tune's own results.
        resources: resources of one worker, "CPU" and "GPU".
        workers: number of data-parallel workers per trial.
        fewest: number of workers with which a trial can do if it must; None: all.
        at_most: number of trials that may run at the same time; None: as many as fit. The cluster is counted while the
            study runs, so that nodes that come are used, and no trial begins on nodes that are gone.
        demand: tells an autoscaling cluster how many trials the study would run; None: nobody is told.

    Raises:
        UserError, OSError: An error from the driver, such as a proposal that makes no valid configuration or a full
            disk; or no trial could start for as long as `ERAT_PATIENCE` says.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must interrupt `run_study`
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # seconds; Tune's state is never read
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the driver reports a dead trial in one line
    count, meter = partial(session.fitting, resources, workers, fewest), Meter()
    # The trial of several workers itself asks Tune for hardly any resources. If one more than fits were to begin, it
    # would take room from the workers of the others, and with enough of them no worker would find room.
    searcher = QueueSearcher(driver, count(), at_most, ahead=workers == 1)

    def recount() -> None:
        searcher.resize(count(), session.by_node(resources) if workers == 1 else None)
        if (line := meter.news()) is not None:
            warnings.warn(line, stacklevel=2)
        if demand is not None:
            demand.ask(searcher.wanted())

    room = partial(session.room, resources, workers)
    patience = session.longest_wait()
    of_worker: dict[str, Any] = {"is_parked": searcher.is_parked, "number_of": searcher.number_of}
    progress = Progress(driver, searcher.held, room, patience=patience, count=recount, **of_worker)
    tuner = tune.Tuner(
        trainable(resources, workers),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=-1,  # no limit: the searcher ends the search, and a retry is a new trial for Tune
            search_alg=searcher,
            scheduler=QueueScheduler(driver, **of_worker),
            reuse_actors=workers == 1,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    except tune.TuneError as error:
        raise _what_a_listener_raised(error) or error from None


def _what_a_listener_raised(error: BaseException) -> UserError | OSError | None:
    """Return the error that the user can repair from the error that Tune wraps around those of searcher and callbacks.

    Return None if there is no `UserError` or `OSError` among the causes.
    """
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError | OSError):
        inner = inner.__cause__ or inner.__context__
    return inner
