"""What Ray Tune tells of a running study: its scheduler and its callback, which pass it on to the driver."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from erat.errors import UserError
from orchestration.cluster import execution, landing, session
from orchestration.search.calls import Driver, Held

SAY_AFTER = 60.0  # seconds without a running trial until a warning
COUNT_SECONDS = 1.0  # seconds between two counts of the places of the cluster


class QueueScheduler(FIFOScheduler):
    """A Tune scheduler for early stopping, which sees only validation accuracy and sends a stop request to the trial.

    It does not kill the trial, because a killed trial leaves no result, and with data-parallel workers Ray never
    releases their placement group.
    """

    def __init__(
        self,
        driver: Driver,
        is_parked: Callable[[str], bool] = lambda trial_id: False,
        number_of: Callable[[Any], int | None] = lambda trial: trial.config["number"],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver, self._is_parked, self._number_of = Held(driver), is_parked, number_of

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        number = self._number_of(trial)
        if self._is_parked(trial.trial_id) or number is None:
            return
        if (place := session.place_of_death(trial.get_pickled_error())) is not None:
            self._driver().places.noticed(number, place)
        # Tune calls `QueueSearcher.on_trial_complete` next, which asks the driver whether the trial runs again.
        self._driver().heard(number, str(trial.get_error() or ""))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self._number_of(trial)
        if number is None or any(result.get(key) for key in (execution.STORAGE_FAULT, landing.PLACE, execution.ENDED)):
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
        number_of: returns the number of the trial that a worker runs, given its trial of Tune's; None: that has ended.
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
        number_of: Callable[[Any], int | None] = lambda trial: trial.config["number"],
    ) -> None:
        self._driver, self._number_of = Held(driver), number_of
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
        if (figures := result.get(execution.FIGURES)) and (number := self._number_of(trial)) is not None:
            self._driver().epoch(number, figures)

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
        return self.__dict__ | dict.fromkeys(("_waiting", "_room", "_count", "_is_parked", "_number_of"))
