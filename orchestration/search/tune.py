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
from orchestration.cluster import execution, session
from orchestration.run.retries import Retry
from orchestration.search.queue import Queue
from orchestration.study.trial import Trial

METRIC = "val_accuracy"
SAY_AFTER = 60.0  # seconds without a running trial until a warning
PATIENCE = float(os.environ.get("ERAT_PATIENCE", "600"))  # seconds without a running trial until the search gives up


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
        slots: number of trials that may run at the same time.
        ahead: whether Tune may ask for one more trial, which waits until there is room.
    """

    def __init__(self, driver: Driver, slots: int, *, ahead: bool) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._driver = Held(driver)
        self._slots, self._ahead = slots, ahead
        self.fault: Exception | None = None  # the error that ends the search
        self._running: dict[str, Trial] = {}
        self._again: deque[Trial] = deque()

    def suggest(self, trial_id: str) -> Any:
        idle = len(self._running) < self._slots
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
            if ended.fewer:
                self._slots, self._ahead = max(1, self._slots // 2), False

    def held(self) -> int:
        """Return the number of trials that Tune has and that have not ended.

        Raises:
            Exception: The error that ends the search, if there is one.
        """
        if self.fault is not None:
            raise self.fault
        return len(self._running)

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
        waiting: returns the number of trials that Tune has; an error that it raises ends the search.
        room: returns one line on the resources that a trial needs and that are free.
        patience: seconds without a running trial after which the search gives up.
    """

    def __init__(
        self, driver: Driver, waiting: Callable[[], int], room: Callable[[], str], patience: float = PATIENCE
    ) -> None:
        self._driver = Held(driver)
        self._waiting, self._room, self._patience = waiting, room, patience
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
        waiting = self._waiting()
        if self._running or not waiting:
            self._since, self._said = None, False
            return
        now = time.monotonic()
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
        return self.__dict__ | {"_waiting": None, "_room": None}


def run(
    driver: Driver,
    *,
    name: str,
    storage: Path,
    resources: Mapping[str, float],
    workers: int,
    slots: int,
    ahead: bool,
) -> None:
    """Run all trials of the driver's queue that are not finished.

    Args:
        driver: the driver, which is told what happens.
        name: name of the study, under which Tune keeps its own results.
        storage: folder of Tune's own results.
        resources: resources of one worker, "CPU" and "GPU".
        workers: number of data-parallel workers per trial.
        slots: number of trials that run at the same time.
        ahead: whether Tune may hold one more trial, which begins as soon as its resources are free. This must be false
            if fewer trials are to run than fit. It must also be false with several workers: their trial itself asks
            Tune for hardly any resources, so that too many would begin, and their small shares would add up until
            no worker finds room.

    Raises:
        UserError, OSError: An error from the driver, such as a proposal that makes no valid configuration or a full
            disk; or no trial could start for `PATIENCE` seconds.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must interrupt `run_study`
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # seconds; Tune's state is never read
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the driver reports a dead trial in one line
    searcher = QueueSearcher(driver, slots, ahead=ahead)
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
            callbacks=[Progress(driver, searcher.held, partial(session.room, resources, workers))],
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
