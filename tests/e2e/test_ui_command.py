"""Tests the verb `ui` as a person runs it: both pages answer, also of a home that cannot be written, and both end."""

from __future__ import annotations

import http.client
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.storage.workspace import Workspace
from orchestration.tracking.tracker import Tracker
from tests.driven import Driven
from tests.e2e.sweeps import begun, gone, wait_until
from tests.servers import free_port


@pytest.fixture
def home(tmp_path: Path) -> Workspace:
    """Write a home with a study in the ledger and in MLflow."""
    workspace = Workspace(tmp_path / "home")
    driven, tracker = Driven(workspace), Tracker.open(workspace)
    run = driven.begin(0)
    driven.epoch(0, 0.5)
    parent = tracker.start_parent("budgets", kind="sweep", tags={})
    child = tracker.start_run(run.cell, {"train.seed": 0}, parent=parent, sweep="budgets", source="optuna")
    tracker.finish(child, "done", {"best_val_accuracy": 0.5})
    assert tracker.flush() == 0
    driven.end(0)
    return workspace


@pytest.fixture
def read_only(home: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """Show the home at a place where it cannot be written."""
    place = tmp_path / "read-only"
    place.mkdir()
    for words in (["--bind", str(home.root), str(place)], ["-o", "remount,bind,ro", str(place)]):
        if subprocess.run(["mount", *words], capture_output=True).returncode:
            pytest.skip("this user may not mount anything")
    yield Workspace(place)
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def asked(port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", path)
    return connection.getresponse()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_both_pages_of_a_read_only_home_answer_and_end(read_only: Workspace, tmp_path: Path, sign: int) -> None:
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as output:
        process = begun(read_only, "ui", "--port", str(port), stderr=output)
    try:
        wait_until(lambda: "MLflow is at" in log.read_text() or process.poll() is not None, "MLflow's page")
        assert f"the studies are at http://127.0.0.1:{port}" in log.read_text(), log.read_text()
        assert "budgets" in asked(port, "/").read().decode()
        assert "<h1>budgets" in asked(port, "/studies/budgets").read().decode()
        answer = asked(port, "/mlflow/budgets")
        assert answer.status == 307, answer.read()
        assert "/#/experiments/1/runs?viewStateShareKey=" in (answer.getheader("Location") or "")
        events = asked(port, "/events")  # somebody looks on while it ends
        assert b'"budgets"' in events.readline()
        process.send_signal(sign)
        assert process.wait(120) == 0
        assert gone(read_only, 60), "MLflow's server ends with it"
    finally:
        process.kill()
