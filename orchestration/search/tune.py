"""Connect Ray Tune to the queue of a study."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from erat.errors import UserError
from erat.result import RunResult
from orchestration.cluster import autoscaling, execution, session
from orchestration.run.retries import Retry
from orchestration.search.queue import Queue
from orchestration.study.trial import Trial

METRIC = "val_accuracy"
SAY_AFTER = 60.0  # seconds without a running trial until a warning
COUNT_SECONDS = 1.0  # seconds between two counts of the places of the cluster


class Driver(Protocol):
    """What the search calls; `orchestration.search.driver.StudyDriver` implements and describes it."""

    queue: Queue

    def trial_parameters(self, trial: Trial) -> dict[str, Any]: ...

    def started(self, number: int) -> None: ...

    def epoch(self, number: int, figures: str | None = None) -> None: ...

    def ended(self, number: int) -> RunResult | Retry: ...

    def heard(self, number: int, words: str) -> None: ...

    def stop(self, number: int, epoch: int) -> None: ...


class Held:
    """A reference to a driver that is neither copied nor pickled with the object that holds it.

    Tune copies and saves its searcher, scheduler and callbacks so that it can restore them, which this project never
    does.
    """

    def __init__(self, driver: Driver | None) -> None:
        self.driver = driver

    def __deepcopy__(self, memo: Any) -> Held:
        return self

    def __reduce__(self) -> Any:
        return Held, (None,)

    def __call__(self) -> Driver:
        assert self.driver is not None, "a driver does not travel"
        return self.driver


class QueueSearcher(Searcher):
    """A Tune searcher that returns the trials of the queue, and waits while the queue has none.

    Args:
        driver: the driver, with the queue.
        fit: number of trials that fit on the cluster now; `resize` changes it.
        at_most: number of trials that may run at the same time; None: as many as fit.
        ahead: whether Tune may ask for one more trial than fit, which waits until there is room. At most that many run
            even so if `at_most` is the smaller number, or if memory was short.
    """

    def __init__(self, driver: Driver, fit: int, at_most: int | None = None, *, ahead: bool) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._driver = Held(driver)
        self._fit, self._at_most, self._may_ask_ahead = fit, at_most, ahead
        self._share = 1  # only one of so many slots is used, because memory was short
        self.fault: Exception | None = None  # the error that ends the search
        self._running: dict[str, Trial] = {}
        self._again: deque[Trial] = deque()

    @property
    def slots(self) -> int:
        """Return the number of trials that may run at the same time; 0 if the cluster has lost all its places."""
        places = min(self._fit, self._at_most or self._fit)
        return max(1, places // self._share) if places else 0

    @property
    def _ahead(self) -> bool:
        return self._may_ask_ahead and self.slots == self._fit and self._share == 1

    def resize(self, fit: int) -> None:
        """Take note that so many trials fit on the cluster now. Trials that run beyond that are not touched."""
        self._fit = fit

    def wanted(self) -> int:
        """Return for how many trials the study would use places now, if there were any number of them."""
        width = self._driver().queue.width
        return min(width, self._at_most or width)

    def suggest(self, trial_id: str) -> Any:
        idle = len(self._running) < self.slots
        if self.fault is not None or (not idle and not self._ahead):
            return None
        trial = self._again.popleft() if self._again else self._driver().queue.next(idle=idle)
        if trial is not None:
            self._running[trial_id] = trial
            return self._driver().trial_parameters(trial)
        over = self._driver().queue.exhausted and not self._running
        return Searcher.FINISHED if over else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
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
            if ended.fewer and (self.slots > 1 or self._share == 1):
                self._share *= 2

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

    def __init__(self, driver: Driver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = Held(driver)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        # Tune calls `QueueSearcher.on_trial_complete` next, which asks the driver whether the trial runs again.
        self._driver().heard(trial.config["number"], str(trial.get_error() or ""))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        if result.get(execution.STORAGE_FAULT):
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
    """

    def __init__(
        self,
        driver: Driver,
        waiting: Callable[[], int],
        room: Callable[[], str],
        *,
        patience: float,
        count: Callable[[], None] = lambda: None,
    ) -> None:
        self._driver = Held(driver)
        self._waiting, self._room, self._patience, self._count = waiting, room, patience, count
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
        if self._running or not waiting:
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
        return self.__dict__ | {"_waiting": None, "_room": None, "_count": None}


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
    count = partial(session.fitting, resources, workers, fewest)
    # The trial of several workers itself asks Tune for hardly any resources. If one more than fits were to begin, it
    # would take room from the workers of the others, and with enough of them no worker would find room.
    searcher = QueueSearcher(driver, count(), at_most, ahead=workers == 1)

    def recount() -> None:
        searcher.resize(count())
        if demand is not None:
            demand.ask(searcher.wanted())

    room = partial(session.room, resources, workers)
    progress = Progress(driver, searcher.held, room, patience=session.longest_wait(), count=recount)
    tuner = tune.Tuner(
        execution.trainable(resources, workers),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=-1,  # no limit: the searcher ends the search, and a retry is a new trial for Tune
            search_alg=searcher,
            scheduler=QueueScheduler(driver),
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
