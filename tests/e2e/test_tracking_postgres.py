"""Tests MLflow's server on PostgreSQL: sixteen drivers write at once, the server is killed midway, nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from orchestration.storage.workspace import Workspace
from orchestration.tracking.text import EPOCH_METRICS
from orchestration.tracking.tracker import Tracker
from tests.servers import TrackingServer, postgres, postgres_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres_programs() is None, reason="PostgreSQL is not installed"),
]

WRITERS, RUNS, EPOCHS = 16, 2, 12


def write(number: int, folder: str, uri: str) -> None:
    """Report a sweep as a driver does, with an epoch every few tenths of a second, and end when everything is sent."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    tracker = Tracker.open(Workspace(Path(folder) / f"writer {number}"))
    parent = tracker.start_parent(f"sweep {number}", kind="sweep", tags={})
    for run in range(RUNS):
        config = {"defense.name": "ce", "data.name": "mnist", "train.seed": run}
        cell = f"{number:08d}{run:08d}"
        begun = tracker.start_run(cell, config, parent=parent, sweep=f"sweep {number}", source="test")
        for epoch in range(1, EPOCHS + 1):
            tracker.log_epoch(begun, dict.fromkeys(EPOCH_METRICS, epoch / 100), epoch)
            time.sleep(0.2)
        tracker.finish(begun, "done", {"final_test_accuracy": 0.9})
    tracker.finish_parent(parent, summary={}, ok=True)
    give_up = time.monotonic() + 600
    while tracker.flush() and time.monotonic() < give_up:
        time.sleep(0.5)
    assert tracker.flush() == 0


def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)  # PostgreSQL's user must be able to pass through
    with postgres(tmp_path / "database") as store:
        server = TrackingServer(store, tmp_path / "server", workers=4)
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        reader = Tracker.open(Workspace(tmp_path / "reader"))
        context = multiprocessing.get_context("forkserver")  # which imports once for all writers
        context.set_forkserver_preload(["mlflow.store.tracking.rest_store", "orchestration.tracking.tracker"])
        writers = [context.Process(target=write, args=(n, str(tmp_path), server.uri)) for n in range(WRITERS)]
        try:
            for writer in writers:
                writer.start()
            # A driver that begins while no server answers is refused: the kill is for those that have begun.
            _until(lambda: _parents(reader) == WRITERS and _points(reader) > WRITERS * RUNS * EPOCHS // 4)
            server.kill()
            time.sleep(4)
            assert any(writer.is_alive() for writer in writers), "the kill came in the middle"
            server.start()
            for writer in writers:
                writer.join(600)
            assert [writer.exitcode for writer in writers] == [0] * WRITERS
            _check(reader)
        finally:
            for writer in writers:
                writer.kill()
            server.kill()


def _runs(reader: Tracker) -> list[Any]:
    return list(reader._sender.client.search_runs([reader._sender.experiment_id], max_results=1000))


def _parents(reader: Tracker) -> int:
    """Return the number of studies that have begun."""
    return sum("cell" not in run.data.tags for run in _runs(reader))


def _points(reader: Tracker) -> int:
    """Return the number of epochs that have arrived."""
    found = 0
    for run in _runs(reader):
        if "cell" in run.data.tags and "val_accuracy" in run.data.metrics:
            found += round(100 * run.data.metrics["val_accuracy"])
    return found


def _until(true: Any, seconds: float = 600) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "the writers do not come on"
        time.sleep(0.5)


def _check(reader: Tracker) -> None:
    runs = _runs(reader)
    cells = [run for run in runs if "cell" in run.data.tags]
    assert _parents(reader) == WRITERS, "one parent each"
    assert len({run.data.tags["cell"] for run in cells}) == len(cells) == WRITERS * RUNS
    for run in cells:
        assert run.info.status == "FINISHED"
        assert run.data.metrics["final_test_accuracy"] == 0.9
        for name in ("val_accuracy", "images_per_second"):
            points = reader._sender.client.get_metric_history(run.info.run_id, name)
            assert [(point.step, point.value) for point in sorted(points, key=lambda point: point.step)] == [
                (epoch, epoch / 100) for epoch in range(1, EPOCHS + 1)
            ]
