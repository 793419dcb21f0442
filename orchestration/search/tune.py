"""Connect Ray Tune to the queue of a study."""

from __future__ import annotations

import json
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
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from erat.errors import UserError
from orchestration.cluster import autoscaling, execution, session
from orchestration.cluster.lookout import Lookout
from orchestration.run.busy import Meter
from orchestration.run.places import Place
from orchestration.run.retries import Retry
from orchestration.search.calls import Driver, Held
from orchestration.study.trial import Trial

METRIC = "val_accuracy"
SAY_AFTER = 60.0  # seconds without a running trial until a warning
COUNT_SECONDS = 1.0  # seconds between two counts of the places of the cluster


class QueueSearcher(Searcher):
    """A Tune searcher that returns the trials of the queue, and waits while the queue has none.

    Where a worker starts is Ray's choice. If its trial must not run there, the worker is parked, so that this place is
    taken, and the trial is given to Tune once more. What the queue decides does not depend on that.

    Args:
        driver: the driver, with the queue.
        fit: number of trials that fit on the cluster now; `resize` changes it.
        at_most: number of trials that may run at the same time; None: as many as fit.
        ahead: whether Tune may ask for one more trial than fit, which waits until there is room. At most that many run
            even so if `at_most` is the smaller number, or if places are excluded or limited.
        park, unpark: have a worker do nothing, and end it; called with Tune's id of its trial.
    """

    def __init__(
        self,
        driver: Driver,
        fit: int,
        at_most: int | None = None,
        *,
        ahead: bool,
        park: Callable[[str], None] = session.park,
        unpark: Callable[[str], None] = session.unpark,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._driver = Held(driver)
        self._fit, self._at_most, self._may_ask_ahead = fit, at_most, ahead
        self._park, self._unpark = park, unpark
        self.fault: Exception | None = None  # the error that ends the search
        self._running: dict[str, Trial] = {}
        self._landed: set[str] = set()  # those of them whose worker has started where it may train
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
        known = trial_id in self._landed or trial_id in self._parked
        if execution.PLACE not in result or known or (trial := self._running.get(trial_id)) is None:
            return
        content = json.loads(result[execution.PLACE])
        place = Place(content["node"], content["address"], tuple(content["devices"]))
        if self._driver().landed(trial.number, place):
            self._landed.add(trial_id)
            self._turned_away.discard(trial.number)
        else:
            self._park(trial_id)
            self._parked[trial_id] = (trial.number, place)
            del self._running[trial_id]
            self._again.appendleft(trial)
            if self._driver().places.is_free(place):
                self._turned_away.add(trial.number)
        self._unpark_some()

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
        self._landed.discard(trial_id)
        if self._parked.pop(trial_id, None) is not None:
            self._end([trial_id])  # if it died, so that no entry stays behind
            return
        if self.fault is not None or (trial := self._running.pop(trial_id, None)) is None:
            return
        if words := (result or {}).get(execution.STORAGE_FAULT):
            self.fault = UserError(f"{words}; nothing finished is lost: mend that, and resume")
            return
        try:
            ended = self._driver().ended(trial.number)
        except Exception as error:
            # Tune would take an error that is raised here for one of the trial. `Progress` raises it later, at a place
            # where Tune does not catch it.
            self.fault = error
            return
        if isinstance(ended, Retry):
            self._again.append(trial)
        self._unpark_some()

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


class QueueScheduler(FIFOScheduler):
    """A Tune scheduler for early stopping, which sees only validation accuracy and sends a stop request to the trial.

    It does not kill the trial, because a killed trial leaves no result, and with data-parallel workers Ray never
    releases their placement group.
    """

    def __init__(self, driver: Driver, is_parked: Callable[[str], bool] = lambda trial_id: False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver, self._is_parked = Held(driver), is_parked

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        if self._is_parked(trial.trial_id):
            return
        if (place := session.place_of_death(trial.get_pickled_error())) is not None:
            self._driver().places.noticed(trial.config["number"], place)
        # Tune calls `QueueSearcher.on_trial_complete` next, which asks the driver whether the trial runs again.
        self._driver().heard(trial.config["number"], str(trial.get_error() or ""))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        if result.get(execution.STORAGE_FAULT) or execution.PLACE in result:
            return TrialScheduler.CONTINUE
        if self._driver().queue.stops(number, result["epoch"], result["best_val_accuracy"]):
            self._driver().stop(number, result["epoch"])
        return TrialScheduler.CONTINUE


class Progress(tune.Callback):
    """A Tune callback that tells the driver when a trial starts and when an epoch ends.

    It also warns the user when no trial can start, and ends the search if that lasts too long.

    Args:
        driver: the driver.
        waiting: returns the number of trials that wait or run; an error that it raises ends the search.
        room: returns one line on the resources that a trial needs and that are free.
        patience: seconds without a running trial after which the search gives up.
        count: called every `COUNT_SECONDS` seconds, between two events of Tune; counts the places of the cluster.
        is_parked: returns whether a worker, named by Tune's id of its trial, does nothing.
    """

    def __init__(
        self,
        driver: Driver,
        waiting: Callable[[], int],
        room: Callable[[], str],
        *,
        patience: float,
        count: Callable[[], None] = lambda: None,
        is_parked: Callable[[str], bool] = lambda trial_id: False,
    ) -> None:
        self._driver = Held(driver)
        self._waiting, self._room, self._patience, self._count = waiting, room, patience, count
        self._is_parked = is_parked
        self._counted = -COUNT_SECONDS
        self._running: set[str] = set()
        self._since: float | None = None  # when the present time without a running trial began
        self._said = False  # whether a warning was given in that time

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.add(trial.trial_id)
        self._driver().started(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        # A report without figures is the last one: what it says is in the directory of the run, which `ended` reads.
        if figures := result.get(execution.FIGURES):
            self._driver().epoch(trial.config["number"], figures)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.discard(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self._counted >= COUNT_SECONDS:
            self._counted = now
            self._count()
        waiting = self._waiting()
        if any(not self._is_parked(name) for name in self._running) or not waiting:
            self._since, self._said = None, False
            return
        self._since = self._since if self._since is not None else now
        if now - self._since >= self._patience:
            raise UserError(
                f"no trial could start for {self._patience:.0f} s: {self._room()}; resume when there is room"
            )
        if now - self._since >= SAY_AFTER and not self._said:
            self._said = True
            warnings.warn(f"no trial could start yet: {self._room()}; waiting {self._patience:.0f} s", stacklevel=2)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that Tune saves, without the functions, which cannot be pickled and are never restored."""
        return self.__dict__ | {"_waiting": None, "_room": None, "_count": None, "_is_parked": None}


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
    lookout, meter = Lookout(resources, workers, fewest, demand), Meter()
    # The trial of several workers itself asks Tune for hardly any resources. If one more than fits were to begin, it
    # would take room from the workers of the others, and with enough of them no worker would find room.
    searcher = QueueSearcher(driver, lookout.seen()[0], at_most, ahead=workers == 1)

    def recount() -> None:
        searcher.resize(*lookout.seen(searcher.wanted()))
        if (line := meter.news()) is not None:
            warnings.warn(line, stacklevel=2)

    room = partial(session.room, resources, workers)
    patience = session.longest_wait()
    progress = Progress(driver, searcher.held, room, patience=patience, count=recount, is_parked=searcher.is_parked)
    tuner = tune.Tuner(
        execution.trainable(resources, workers),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=-1,  # no limit: the searcher ends the search, and a retry is a new trial for Tune
            search_alg=searcher,
            scheduler=QueueScheduler(driver, searcher.is_parked),
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
        with lookout:
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
