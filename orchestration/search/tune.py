"""Ray Tune and Optuna, bound to the queue of a study."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from erat.errors import UserError
from erat.result import RunResult
from erat.seeding import derive
from orchestration.cluster import execution, session
from orchestration.run.retries import Retry
from orchestration.search.queue import Queue
from orchestration.study.parameters import ten_digits
from orchestration.study.trial import Trial

METRIC = "val_accuracy"
SAY_AFTER = 60.0  # seconds without a trial that runs
PATIENCE = float(os.environ.get("ERAT_PATIENCE", "600"))


class SeededPerTrial(optuna.samplers.BaseSampler):
    """TPE whose draws for trial n depend on the seed, n and the trials told before: not on how often it was asked.

    A resumed study is then asked only for what is missing and still proposes what an undisturbed one would. For that
    the study itself must hold the ten digits that the ledger has: later proposals are made from them.
    """

    def __init__(self, seed: int, startup_trials: int) -> None:
        self._seed = seed
        self._startup = startup_trials
        self._samplers: dict[int, optuna.samplers.TPESampler] = {}

    def _of(self, number: int) -> optuna.samplers.TPESampler:
        if number not in self._samplers:
            seed = derive(self._seed, "proposal", number) % 2**32
            self._samplers[number] = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
        return self._samplers[number]

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self._of(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        values = self._of(trial.number).sample_relative(study, trial, search_space)
        return {name: _rounded(search_space[name], value) for name, value in values.items()}

    def sample_independent(self, study: Any, trial: Any, param_name: Any, param_distribution: Any) -> Any:
        value = self._of(trial.number).sample_independent(study, trial, param_name, param_distribution)
        return _rounded(param_distribution, value)


def _rounded(distribution: Any, value: Any) -> Any:
    """Ten digits of a number; whole numbers and choices as they are."""
    return ten_digits(value) if isinstance(distribution, FloatDistribution) else value


def _always(key: str, values: Mapping[str, Any]) -> bool:
    return True


class OptunaSampler:
    """OptunaSearch over a study of our own, so that values known ahead can be put in front of its proposals.

    Args:
        distributions: dotted key -> what is drawn, a key behind those that it depends on.
        active: whether a trial that has these values has this key, too.
    """

    def __init__(
        self,
        distributions: Mapping[str, Any],
        *,
        seed: int,
        startup_trials: int,
        active: Callable[[str, Mapping[str, Any]], bool] = _always,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(storage=storage, study_name="sweep", direction="maximize")

        def define(trial: Any) -> None:
            values: dict[str, Any] = {}
            for key, distribution in distributions.items():
                if active(key, values):
                    values[key] = _suggested(trial, key, distribution)

        # Optuna draws each key by itself, from the told trials that have it: a trial may lack some.
        self._search = OptunaSearch(
            define,
            metric=METRIC,
            mode="max",
            sampler=SeededPerTrial(seed, startup_trials),
            storage=storage,
            study_name="sweep",
        )
        self._study = optuna.load_study(study_name="sweep", storage=storage)

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Try these values next."""
        self._study.enqueue_trial(dict(params))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next values."""
        return dict(self._search.suggest(trial_id) or {})

    def tell(self, trial_id: str, result: RunResult) -> None:
        """How the trial ended: done with its value, stopped as pruned with its curve, failed or NaN as failed."""
        reached = result.best_val_accuracy
        if result.status == "done" and reached is not None and math.isfinite(reached):
            self._search.on_trial_complete(trial_id, {METRIC: reached})
            return
        if result.status == "stopped":
            for epoch, value in enumerate(result.val_history, start=1):
                self._search.on_trial_result(trial_id, {METRIC: value, "training_iteration": epoch})
        self._search.on_trial_complete(trial_id, None, error=result.status != "stopped")


def _suggested(trial: Any, key: str, distribution: Any) -> Any:
    match distribution:
        case FloatDistribution():
            return trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log)
        case IntDistribution():
            step, log = distribution.step, distribution.log
            return trial.suggest_int(key, distribution.low, distribution.high, step=step, log=log)
        case _:
            return trial.suggest_categorical(key, distribution.choices)


class Driver(Protocol):
    """What the search tells the sweep; see sweep.py."""

    queue: Queue

    def trial_parameters(self, trial: Trial) -> dict[str, Any]: ...

    def started(self, number: int) -> None: ...

    def epoch(self, number: int) -> None: ...

    def ended(self, number: int) -> RunResult | Retry: ...

    def heard(self, number: int, words: str) -> None: ...

    def stop(self, number: int, epoch: int) -> None: ...


class Held:
    """A driver that Tune may copy and pickle along with what refers to it, without copying or pickling it.

    Tune saves its searcher, scheduler and callbacks for a restore of its own, which this project never makes.
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
    """Hands Tune the trials of the generations, and waits where a generation must end first.

    Args:
        slots: trials that fit side by side.
        ahead: Tune may ask for a trial more than fits.
    """

    def __init__(self, driver: Driver, slots: int, *, ahead: bool) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._driver = Held(driver)
        self._slots, self._ahead = slots, ahead
        self.fault: Exception | None = None  # that ends the search
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
            # What is raised here Tune takes for a fault of the trial; `Progress` raises it where Tune lets it through.
            self.fault = error
            return
        if isinstance(ended, Retry):
            self._again.append(trial)
            if ended.fewer:
                self._slots, self._ahead = max(1, self._slots // 2), False

    def held(self) -> int:
        """Trials that Tune has and that have not ended.

        Raises:
            Exception: what ends the search.
        """
        if self.fault is not None:
            raise self.fault
        return len(self._running)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a sweep goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


class QueueScheduler(FIFOScheduler):
    """Early stopping that sees validation accuracy alone, and asks the trial to stop instead of killing it.

    A trial that is killed leaves no result behind, and with data-parallel workers it leaks their placement group.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = Held(driver)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        # Tune tells the searcher next, which then asks the driver.
        self._driver().heard(trial.config["number"], str(trial.get_error() or ""))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["number"]
        if result.get(execution.STORAGE_FAULT):
            return TrialScheduler.CONTINUE
        if self._driver().queue.stops(number, result["epoch"], result["best_val_accuracy"]):
            self._driver().stop(number, result["epoch"])
        return TrialScheduler.CONTINUE


class Progress(tune.Callback):
    """Tells the driver when a trial starts and when an epoch ends; and a person, when none can start.

    Args:
        waiting: how many trials Tune holds; what it raises ends the search.
        room: one line on what a trial needs and what is free.
        patience: seconds without a running trial after which the search gives up.
    """

    def __init__(
        self, driver: Driver, waiting: Callable[[], int], room: Callable[[], str], patience: float = PATIENCE
    ) -> None:
        self._driver = Held(driver)
        self._waiting, self._room, self._patience = waiting, room, patience
        self._running: set[str] = set()
        self._since: float | None = None  # no trial has run
        self._said = False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.add(trial.trial_id)
        self._driver().started(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result.get(execution.STORAGE_FAULT):
            self._driver().epoch(trial.config["number"])

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
        """For Tune, which saves its callbacks: no search to go on from."""
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
    """Run all trials of the driver's generations that are not finished.

    Args:
        resources: of one worker, "CPU" and "GPU".
        workers: data-parallel workers per trial.
        slots: trials that run side by side.
        ahead: Tune may hold one more ready, which it begins as soon as its resources are free. Not where fewer are to
            run than fit; nor with several workers, whose trial asks Tune for next to nothing: too many would begin, and
            their slivers would add up until no worker finds a place.

    Raises:
        UserError, OSError: from the driver: a proposal that makes no configuration, a full disk.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: it must reach the sweep
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # the ledger is the state, Tune's own is not read
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of a trial that died the driver says so in one line
    searcher = QueueSearcher(driver, slots, ahead=ahead)
    tuner = tune.Tuner(
        execution.trainable(resources, workers),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=-1,  # the searcher says when it is over; a trial may take several of Tune's
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
    """What a person can mend, out of the error that Tune wraps around whatever its searcher and callbacks raise."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError | OSError):
        inner = inner.__cause__ or inner.__context__
    return inner
