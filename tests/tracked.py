"""Writes runs to MLflow's stores and reads them, over clients that may fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestration.tracking.outbox import Spool
from orchestration.tracking.sender import Sender
from orchestration.tracking.tracker import Tracker

CONFIG: dict[str, Any] = {
    "preset": "demo",
    "data.name": "mnist",
    "data.root": None,
    "data.flip": False,
    "corruption.data": "uhp",
    "corruption.norm": "l2",
    "corruption.epsilon": 1.0,
    "corruption.labels": "symmetric",
    "corruption.rate": 0.6,
    "defense.name": "erat",
    "defense.epsilon_inf": 0.1,
    "defense.epsilon_2": 0.8,
    "defense.eta": 0.3,
    "model.name": "small",
    "train.milestones": [60, 80],
    "train.seed": 3,
}


def reopened(tracker: Tracker, client: Any, spool: Spool | None = None) -> Tracker:
    """Return another tracker of the same store, which reaches it by this client."""
    return Tracker(Sender(client, tracker._sender.experiment_id), tracker.uri, spool)


def runs(tracker: Tracker, query: str) -> list[Any]:
    return list(tracker._sender.client.search_runs([tracker._sender.experiment_id], query))


def history(tracker: Tracker, run_id: str, name: str = "val_accuracy") -> list[tuple[int, float]]:
    points = tracker._sender.client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def begin(tracker: Tracker, sweep: str, cell: str = "cell", **changes: Any) -> str:
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    return tracker.start_run(cell, CONFIG | changes, parent=parent, sweep=sweep, source="optuna")


class Untracked:
    """What is the same for trackers that only record: every run is known under the id that it was given."""

    def then(self, call: Callable[[], None]) -> None:
        call()

    def id_of(self, run_id: str) -> str:
        return run_id

    def is_known(self, run_id: str) -> bool:
        return True


class Faulty:
    """A client whose server is unreachable while `error` is set; it records the order of what arrived."""

    def __init__(self, client: Any, writes: tuple[str, ...] = ("log_batch", "create_run", "set_terminated")) -> None:
        self.client, self.writes = client, writes
        self.error: Exception | None = None
        self.arrived: list[str] = []
        self.refusals = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.error is not None:
                self.refusals += 1
                raise self.error
            if name in self.writes:
                self.arrived.append(name)
            return method(*args, **kwargs)

        return call
