"""What the searcher, the scheduler and the callback of Ray Tune call: the driver, and how they hold it. Without Ray."""

from __future__ import annotations

from typing import Any, Protocol

from erat.result import RunResult
from orchestration.run.places import Place, Places
from orchestration.run.retries import Retry
from orchestration.search.queue import Queue
from orchestration.study.trial import Trial


class Driver(Protocol):
    """What the search calls; `orchestration.search.driver.StudyDriver` implements and describes it."""

    queue: Queue
    places: Places

    def trial_parameters(self, trial: Trial) -> dict[str, Any]: ...

    def started(self, number: int) -> None: ...

    def landed(self, number: int, place: Place) -> bool: ...

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
