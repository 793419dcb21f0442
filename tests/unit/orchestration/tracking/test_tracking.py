"""Tests tracking on real SQLite stores: names, parents and children, repeated calls, failing servers."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from erat.engine.report import EpochReport
from erat.errors import UserError
from orchestration.storage.workspace import Workspace
from orchestration.tracking.outbox import Spool
from orchestration.tracking.store import relocate
from orchestration.tracking.tracker import EPOCH_METRICS, Ending, Tracker, compare_hint, run_name, serve, stop_server

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


@pytest.fixture(autouse=True)
def _no_foreign_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    # Characters that have a meaning in URIs.
    return Workspace(tmp_path_factory.mktemp("workspace") / "with space & é #1 50%")


@pytest.fixture(scope="module")
def tracker(workspace: Workspace) -> Tracker:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker.open(workspace)


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> str:
    """Return a separate sweep name for each test, since the tests share a store."""
    return str(request.node.name)


def runs(tracker: Tracker, query: str) -> list[Any]:
    return list(tracker._client.search_runs([tracker.experiment_id], query))


def history(tracker: Tracker, run_id: str, name: str = "val_accuracy") -> list[tuple[int, float]]:
    points = tracker._client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def begin(tracker: Tracker, sweep: str, cell: str = "cell", **changes: Any) -> str:
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    return tracker.start_run(cell, CONFIG | changes, parent=parent, sweep=sweep, source="optuna")


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


@pytest.fixture
def faulty(tracker: Tracker) -> tuple[Tracker, Faulty]:
    client = Faulty(tracker._client)
    return Tracker(client, tracker.uri, tracker.experiment_id), client  # type: ignore[arg-type]


# -- The store --------------------------------------------------------------------------------------------------------


def test_default_store_is_an_absolute_sqlite_file_in_write_ahead_mode(tracker: Tracker, workspace: Workspace) -> None:
    assert tracker.uri == f"sqlite:///{workspace.mlflow_database}"
    assert workspace.mlflow_database.is_file()
    with closing(sqlite3.connect(workspace.mlflow_database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert Tracker.open(workspace).experiment_id == tracker.experiment_id


def test_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    tracker = Tracker.open(Workspace(tmp_path / "workspace"))
    assert tracker.uri.endswith("mine.db")
    assert (tmp_path / "mine.db").is_file()
    assert not (tmp_path / "workspace").exists()


def _open(root: Path, answers: Any) -> None:
    try:
        answers.put(Tracker.open(Workspace(root)).experiment_id)
    except BaseException as error:
        answers.put(repr(error))


@pytest.mark.slow
def test_six_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    # The fork server imports MLflow once; the race is in the database.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "orchestration.tracking.tracker"])
    answers = context.Queue()
    processes = [context.Process(target=_open, args=(tmp_path / "fresh", answers)) for _ in range(6)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    assert got == ["1"] * 6


def test_opening_prints_nothing(tmp_path: Path) -> None:
    code = "import sys; from orchestration.tracking import tracker; assert 'mlflow' not in sys.modules; "
    code += f"tracker.Tracker.open(tracker.Workspace(tracker.Path({str(tmp_path)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, uri: str | None = None) -> str:
    """Return the one line with which a store is refused, long before MLflow by itself would give up."""
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        Tracker.open(workspace)
    # It takes 8 seconds; the rest is for a busy machine. MLflow by itself would wait for 4 minutes.
    assert time.monotonic() - begun < 200
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_unreachable_server_is_one_line(scheme: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    message = refused(monkeypatch, workspace, f"{scheme}://me:secret@127.0.0.1:{port}")
    assert message.startswith(f"MLFLOW_TRACKING_URI={scheme}://127.0.0.1:{port} cannot be used: ")
    assert "refused" in message
    assert message.endswith("start that server or mend the address, or unset it for the local store")


def test_silent_server_is_given_up(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "timed out" in refused(monkeypatch, workspace, f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("uri", ["gopher://somewhere", "http://nowhere.invalid:5000", "./mlruns"])
def test_unusable_addresses(uri: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"MLFLOW_TRACKING_URI={uri} cannot be used: " in refused(monkeypatch, workspace, uri)


def test_a_full_disk_is_named_and_leaves_no_half_made_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the half-made file were left behind, it would be refused the next time, when there is room again."""
    workspace = Workspace(tmp_path)

    def fill(client: Any, artifacts: Any) -> str:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("orchestration.tracking.opening._experiment", fill)
        with pytest.raises(UserError, match=r"mlflow\.db cannot be written: the disk is full; free some space$"):
            Tracker.open(workspace)
    assert not list(tmp_path.glob("mlflow.db*[!k]")), "but for the lock"
    Tracker.open(workspace)


def test_file_that_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Workspace(tmp_path).mlflow_database.write_text("a text " * 1000)
    message = refused(monkeypatch, Workspace(tmp_path))
    assert "mlflow.db cannot be used: file is not a database; move it away" in message


def test_deleted_experiment_says_how_to_bring_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker.open(Workspace(tmp_path))
    tracker._client.delete_experiment(tracker.experiment_id)
    assert "mlflow experiments restore --experiment-id 1" in refused(monkeypatch, Workspace(tmp_path))


# -- Names ------------------------------------------------------------------------------------------------------------


def test_child_has_the_tags_and_params_of_the_design(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep, "c0ffee")
    run = tracker._client.get_run(run_id)
    [parent] = runs(tracker, f"tags.sweep = '{sweep}' and tags.role = 'parent'")
    assert run.data.tags == {
        "dataset": "mnist",
        "data_corruption": "uhp",
        "label_noise": "symmetric",
        "noise_rate": "0.6",
        "defense": "erat",
        "backbone": "small",
        "seed": "3",
        "cell": "c0ffee",
        "sweep": sweep,
        "source": "optuna",
        "status": "running",
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.runName": "erat uhp+symmetric60% eps_inf=0.1 eps_2=0.8 eta=0.3 seed=3",
    }
    assert run.data.params == {key: str(value) for key, value in CONFIG.items()} | {
        "data.root": "none",
        "data.flip": "false",
    }
    assert run.info.status == "RUNNING"
    assert (parent.data.tags["kind"], parent.info.run_name) == ("sweep", sweep)
    assert {found.info.run_id for found in runs(tracker, compare_hint(sweep))} == {run_id, parent.info.run_id}


def test_run_names() -> None:
    assert run_name({"defense.name": "ce", "corruption.data": "none"}) == "ce clean seed=0"
    assert run_name({"defense.name": "ce", "corruption.data": "up", "train.seed": 1}) == "ce up seed=1"
    assert run_name({"defense.name": "erat", "defense.epsilon_inf": 8 / 255}) == "erat clean eps_inf=0.03137 seed=0"
    # An ablation must not pass for the whole method, with which it shares all other settings.
    assert run_name({"defense.name": "erat", "defense.adversarial": False}) == "ERAT w/o AT clean seed=0"


def test_odd_names_and_values_survive(tracker: Tracker) -> None:
    long = "x" * 7000
    config = {f"key.{number}": number for number in range(250)} | {
        "a@b(c)|d,e/f": "8/255",
        "empty": "",
        "long": long,
        "unicode": "é ∞\nnext line",
    }
    sweep = "it's a sweep"
    parent = tracker.start_parent(sweep, kind="matrix", tags={"grid": None, "note": long, "what(ever)": 1})
    run_id = tracker.start_run("cell", config, parent=parent, sweep=sweep, source="paper")
    params = tracker._client.get_run(run_id).data.params
    assert len(params) == len(config)
    assert params["a_b_c__d_e_f"] == "8/255"
    assert params["empty"] == ""
    assert params["unicode"] == config["unicode"]
    assert (len(params["long"]), params["long"][-5:]) == (6000, "xx...")
    tags = tracker._client.get_run(parent).data.tags
    assert (tags["grid"], tags["what_ever_"], len(tags["note"])) == ("none", "1", 5000)
    assert {run.info.run_id for run in runs(tracker, compare_hint(sweep))} == {parent, run_id}
    assert tracker.start_parent(sweep, kind="matrix", tags={}) == parent


def test_run_without_a_parent(tracker: Tracker, sweep: str) -> None:
    child = begin(tracker, sweep, "shared-cell")
    alone = tracker.start_run("shared-cell", CONFIG, parent=None, sweep=None, source="train")
    assert alone != child
    assert tracker.start_run("shared-cell", CONFIG, parent=None, sweep=None, source="train") == alone
    assert "sweep" not in tracker._client.get_run(alone).data.tags


# -- Going on ---------------------------------------------------------------------------------------------------------


def test_reopening_makes_no_second_run(tracker: Tracker, workspace: Workspace, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "failed", {}, error="boom")
    later = Tracker.open(workspace)
    # The same run elsewhere: a param cannot change, and a new one is added.
    assert begin(later, sweep, **{"data.root": "/elsewhere", "new.key": 1}) == run_id
    run = later._client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"]) == ("RUNNING", "running")
    assert "error" not in run.data.tags
    assert (run.data.params["data.root"], run.data.params["new.key"]) == ("none", "1")
    assert len(runs(later, compare_hint(sweep))) == 2
    assert begin(later, sweep, "another cell") != run_id


def test_epochs_are_logged_under_the_names_of_the_design(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    row = dict.fromkeys(EPOCH_METRICS, 0.5)
    tracker.log_epoch(run_id, row, 1)
    infinite = {"val_accuracy": float("nan"), "train_loss": float("inf"), "selection_recall": None}
    tracker.log_epoch(run_id, row | infinite, 2)
    assert tracker._client.get_run(run_id).data.metrics == dict.fromkeys(EPOCH_METRICS, 0.5)
    assert history(tracker, run_id, "test_accuracy") == [(1, 0.5), (2, 0.5)]
    for name in infinite:
        assert history(tracker, run_id, name) == [(1, 0.5)]


def test_the_design_names_every_number_of_a_report() -> None:
    numbers = {entry.name for entry in fields(EpochReport) if entry.type in ("float", "float | None")}
    assert numbers == set(EPOCH_METRICS)


def test_every_finite_number_of_an_epoch_is_logged(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    row = {
        "epoch": 1,
        "val_accuracy": 0.5,
        "private_number": 1,
        "labelled_per_class": [1, 2],
        "flag": True,
        "loss_terms": {"ce": 0.25, "of/main": 1.0, "nan": float("nan"), "none": None},
        "numbers": {"lambda_u": 12.5, "inf": float("inf"), "val_accuracy": 0.9, "odd: %": 2.0},
    }
    tracker.log_epoch(run_id, row, 1)
    tracker.log_epoch(run_id, row | {"loss_terms": {}, "numbers": {"lambda_u": 25.0}}, 2)
    logged = {"val_accuracy": 0.5, "private_number": 1, "lambda_u": 25.0, "odd_ _": 2.0}
    assert tracker._client.get_run(run_id).data.metrics == logged | {"loss/ce": 0.25, "loss/of/main": 1.0}
    assert history(tracker, run_id, "lambda_u") == [(1, 12.5), (2, 25.0)]
    assert history(tracker, run_id, "loss/ce") == [(1, 0.25)]


def test_a_name_that_mlflow_would_refuse_costs_no_epoch(tracker: Tracker, sweep: str) -> None:
    """If one metric has a bad name, MLflow refuses all metrics that are sent with it."""
    run_id = begin(tracker, sweep)
    names = ["", ".", "..", "../up", "/", "a//b", "a/../b", "a/./b", "/root", "x" * 300, "y" * 244 + "/", "ä ö-ü.1"]
    row = {"val_accuracy": 0.5, "loss_terms": dict.fromkeys(names, 1.0), "numbers": dict.fromkeys(names, 2.0)}
    tracker.log_epoch(run_id, row, 1)
    metrics = tracker._client.get_run(run_id).data.metrics
    assert history(tracker, run_id) == [(1, 0.5)]
    expected = {"_", "_/up", "_/_", "a/_/b", "_/root", "x" * 250, "y" * 244 + "/_", "ä ö-ü.1"}
    assert metrics.keys() == {"val_accuracy"} | expected | {f"loss/{name}"[:250].rstrip("/") for name in expected}


def test_more_numbers_than_mlflow_takes_at_once(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.log_epoch(run_id, {"val_accuracy": 0.5, "numbers": {f"n{i}": float(i) for i in range(2100)}}, 1)
    metrics = tracker._client.get_run(run_id).data.metrics
    assert len(metrics) == 2101 and metrics["n2099"] == 2099
    assert history(tracker, run_id) == [(1, 0.5)]


def test_replays_add_only_what_is_missing(tracker: Tracker, workspace: Workspace, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    assert history(tracker, run_id) == []
    for epoch in (1, 2, 3):
        tracker.log_epoch(run_id, {"val_accuracy": epoch / 10, "train_loss": 1.0}, epoch)
    assert history(tracker, run_id) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    later = Tracker.open(workspace)
    assert begin(later, sweep) == run_id
    for epoch in range(1, 6):
        later.log_epoch(run_id, {"val_accuracy": epoch / 10}, epoch)
    assert history(later, run_id) == [(epoch, epoch / 10) for epoch in range(1, 6)]


@pytest.mark.parametrize(
    ("status", "in_mlflow"),
    [
        ("done", "FINISHED"),
        ("stopped", "FINISHED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
        ("paused", "SCHEDULED"),
    ],
)
def test_endings(tracker: Tracker, sweep: str, status: Ending, in_mlflow: str) -> None:
    run_id = begin(tracker, sweep)
    summary = {"final_test_accuracy": 0.9, "best_val_test_accuracy": 0.8, "best_val_accuracy": float("nan")}
    tracker.finish(run_id, status, summary, error="head " + "." * 9000 + " tail" if status == "failed" else None)
    run = tracker._client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"]) == (in_mlflow, status)
    assert run.data.metrics == {"final_test_accuracy": 0.9, "best_val_test_accuracy": 0.8}
    assert run.data.tags.get("error", " tail").endswith(" tail")
    assert run.info.end_time is not None


def test_a_run_that_pauses_says_where_and_goes_on_as_the_same_run(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "paused", {}, tags={"rung": 30})
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    again = tracker.start_run(
        "cell", CONFIG, parent=parent, sweep=sweep, source="optuna", tags={"promoted": 30, "status": "not so"}
    )
    assert again == run_id
    run = tracker._client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert {key: run.data.tags[key] for key in ("status", "rung", "promoted")} == {
        "status": "running",
        "rung": "30",
        "promoted": "30",
    }


def test_what_is_known_only_later_is_added_to_a_run_that_has_ended(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "done", {"final_test_accuracy": 0.9})
    tracker.add(run_id, {"val_accuracy_mean": 0.8, "val_accuracy_std": None, "seeds_done": 3}, {"note": 1})
    run = tracker._client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"], run.data.tags["note"]) == ("FINISHED", "done", "1")
    assert run.data.metrics == {"final_test_accuracy": 0.9, "val_accuracy_mean": 0.8, "seeds_done": 3.0}


def test_a_confirmation_names_its_candidate_and_a_study_its_best_trial(tracker: Tracker, sweep: str) -> None:
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    child = tracker.start_run("c1", CONFIG, parent=parent, sweep=sweep, source="confirm", tags={"confirms": 7})
    assert tracker._client.get_run(child).data.tags["confirms"] == "7"
    tracker.finish_parent(parent, summary={}, ok=True, tags={"best_trial": 7, "best_cell": "c0"})
    tags = tracker._client.get_run(parent).data.tags
    assert (tags["best_trial"], tags["best_cell"], tags["status"]) == ("7", "c0", "done")


def test_artifacts_lie_in_the_workspace(tracker: Tracker, workspace: Workspace, sweep: str, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "tables" / "selection.json").write_text("{}")
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "done", {"train_seconds": 1.0}, tmp_path)
    assert {item.path for item in tracker._client.list_artifacts(run_id)} == {"config.yaml", "tables"}
    stored = workspace.mlflow_artifacts / run_id / "artifacts"
    assert (stored / "tables" / "selection.json").read_text() == "{}"


@pytest.fixture
def moved(tracker: Tracker, workspace: Workspace, sweep: str, tmp_path: Path) -> Iterator[tuple[Workspace, str]]:
    """Return a copy of the workspace at another place, and the id of a run in it with an artifact.

    Afterwards it is checked that nothing was written into the old place.
    """
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "files").mkdir()
    os.replace(tmp_path / "table.csv", tmp_path / "files" / "table.csv")
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "done", {}, tmp_path / "files")
    there = Workspace(tmp_path / "moved & é #2")
    shutil.copytree(workspace.root, there.root)
    before = contents(workspace.root)
    yield there, run_id
    assert contents(workspace.root) == before, "nothing is written into the old place"


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".db-shm"]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_moved_workspace_finds_its_artifacts_and_leaves_the_old_place(
    moved: tuple[Workspace, str], tmp_path: Path
) -> None:
    there, run_id = moved
    for _ in range(2):
        later = Tracker.open(there)
        assert [item.path for item in later._client.list_artifacts(run_id)] == ["table.csv"]
        run = later._client.get_run(run_id)
        assert run.info.artifact_uri == f"{there.mlflow_artifacts.as_uri()}/{run_id}/artifacts"
    fresh = begin(later, "after the move")
    later.finish(fresh, "done", {}, tmp_path / "files")
    assert (there.mlflow_artifacts / fresh / "artifacts" / "table.csv").is_file()


def test_artifacts_at_a_place_of_one_s_own_stay_there(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (artifact_location TEXT)")
        places = ["s3://bucket/mlartifacts", "file:///data/chosen", "mlflow-artifacts:/1", "file:///old/mlartifacts"]
        connection.executemany("INSERT INTO experiments VALUES (?)", [(place,) for place in places])
    relocate(database, tmp_path / "mlartifacts")
    with closing(sqlite3.connect(database)) as connection:
        found = [place for (place,) in connection.execute("SELECT artifact_location FROM experiments")]
    assert found == [*places[:3], (tmp_path / "mlartifacts").as_uri()]


def test_another_workspace_s_database_is_not_taken_over(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tracker._client.get_experiment(tracker.experiment_id).artifact_location
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert Tracker.open(Workspace(tmp_path)).experiment_id == tracker.experiment_id
    assert tracker._client.get_experiment(tracker.experiment_id).artifact_location == before


def test_a_workspace_that_cannot_be_written_is_served_from_a_copy(
    moved: tuple[Workspace, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, run_id = moved
    started: dict[str, Any] = {}

    class Server:
        """A stand-in for the server process."""

    def start(uri: str, artifacts: Path, log: Path, host: str, port: int) -> Server:
        from mlflow import MlflowClient

        started.update(uri=uri, log=log, artifacts=artifacts)
        started["seen"] = [item.path for item in MlflowClient(uri).list_artifacts(run_id)]
        return Server()

    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != there.root and access(path, mode))
    monkeypatch.setattr("orchestration.tracking.opening.start_server", start)
    before = contents(there.root)
    server = serve(there)
    assert started["seen"] == ["table.csv"]
    assert started["artifacts"] == there.mlflow_artifacts
    assert contents(there.root) == before
    folder = Path(started["log"]).parent
    assert not folder.is_relative_to(there.root)
    assert folder.is_dir()
    del server
    gc.collect()
    assert not folder.exists()


def test_what_waits_is_sent_after_a_move(tracker: Tracker, workspace: Workspace, sweep: str, tmp_path: Path) -> None:
    """An earlier version stored the whole path of an artifact; this one stores it relative to the workspace."""
    old, new = Workspace(tmp_path / "old"), Workspace(tmp_path / "new")
    artifacts = old.run_directory("c") / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "a.txt").write_text("a")
    away = Faulty(tracker._client)
    away.error = ConnectionError("away")
    killed = Tracker(
        away,  # type: ignore[arg-type]
        tracker.uri,
        tracker.experiment_id,
        Spool(old.root / "outbox", "own", once=tracker.uri),
    )
    run_id = begin(killed, sweep)
    killed.finish(run_id, "done", {}, artifacts)
    killed._outbox._spool._lock.release()  # type: ignore[union-attr]
    (spooled,) = (old.root / "outbox").glob("*.jsonl")
    assert str(old.root) not in spooled.read_text()
    with spooled.open("a") as file:
        file.write(json.dumps(["_send_artifacts", [run_id, {"path": str(artifacts)}]]) + "\n")
    old.root.rename(new.root)
    spool = Spool(new.root / "outbox", "own", once="sqlite:////elsewhere")
    assert Tracker(tracker._client, tracker.uri, tracker.experiment_id, spool).flush() == 0
    [child] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = 'cell'")
    assert [item.path for item in tracker._client.list_artifacts(child.info.run_id)] == ["a.txt"]
    assert not old.root.exists()


@pytest.mark.parametrize(
    "foreign",
    [
        *(b"5\n", b"null\n", b"[]\n", b'["_send_end"]\n', b'["flush", []]\n', b'["_client", []]\n', b"\xff\0\n"),
        b"[" * 3000,
        b'["_send_epoch", ["x", 5, "y", null]]\n',
        b'["_send_artifacts", [{"path": 5}, 5]]\n',
        b'["_send_start", [1]]\n',
    ],
)
def test_foreign_calls_are_dropped_and_the_others_sent(
    tracker: Tracker, workspace: Workspace, sweep: str, tmp_path: Path, foreign: bytes
) -> None:
    away = Faulty(tracker._client)
    away.error = ConnectionError("away")
    folder = tmp_path / "outbox"
    killed = Tracker(away, tracker.uri, tracker.experiment_id, Spool(folder, sweep))  # type: ignore[arg-type]
    begin(killed, sweep)
    killed._outbox._spool._lock.release()  # type: ignore[union-attr]
    (spooled,) = folder.glob("*.jsonl")
    spooled.write_bytes(foreign + spooled.read_bytes() if foreign.endswith(b"\n") else spooled.read_bytes() + foreign)
    assert Tracker(tracker._client, tracker.uri, tracker.experiment_id, Spool(folder, sweep)).flush() == 0
    assert len(runs(tracker, compare_hint(sweep))) == 2
    assert not list(folder.glob("*.jsonl"))


def test_a_damaged_database_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    workspace.mlflow_database.write_bytes(b"no database at all" * 1000)
    for act in (Tracker.open, serve):
        with pytest.raises(UserError, match=r"^MLflow's store .* cannot be used: file is not a database; move it away"):
            act(workspace)
    assert workspace.mlflow_database.read_bytes().startswith(b"no database"), "it stays for its owner to look at"
    monkeypatch.setattr("orchestration.tracking.opening.FULL_BYTES", 2**62)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        Tracker.open(workspace)


@pytest.mark.parametrize(("ok", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_parent_ends(tracker: Tracker, sweep: str, tmp_path: Path, ok: bool, status: str) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    tracker.finish_parent(parent, summary={"best_val_accuracy": 0.7}, artifacts=tmp_path, ok=ok)
    run = tracker._client.get_run(parent)
    assert (run.info.status, run.data.metrics) == (status, {"best_val_accuracy": 0.7})
    assert [item.path for item in tracker._client.list_artifacts(parent)] == ["table.csv"]
    assert tracker.start_parent(sweep, kind="sweep", tags={}) == parent
    assert tracker._client.get_run(parent).info.status == "RUNNING"


# -- A server that fails ----------------------------------------------------------------------------------------------


def test_entries_wait_and_arrive_in_order_once(
    faulty: tuple[Tracker, Faulty], sweep: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, client = faulty
    run_id = begin(tracker, sweep)
    client.error = ConnectionError("away")
    for epoch in (1, 2, 3):
        tracker.log_epoch(run_id, {"val_accuracy": epoch / 10}, epoch)
    tracker.finish(run_id, "done", {"final_test_accuracy": 0.5})
    assert tracker.flush() == 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # a single warning for the whole outage
    client.error = None
    client.arrived.clear()
    assert tracker.flush() == 0
    assert client.arrived == ["log_batch"] * 2 + ["set_terminated"], "the epochs go as one, figures and tags too"
    assert history(tracker, run_id) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert tracker._client.get_run(run_id).info.status == "FINISHED"


def test_runs_begun_while_the_server_is_away(faulty: tuple[Tracker, Faulty], sweep: str) -> None:
    tracker, client = faulty
    client.error = ConnectionError("away")
    run_id = begin(tracker, sweep)
    tracker.log_epoch(run_id, {"val_accuracy": 0.1}, 1)
    assert tracker.flush() > 0
    client.error = None
    tracker.log_epoch(run_id, {"val_accuracy": 0.2}, 2)
    assert tracker.flush() == 0
    [child] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = 'cell'")
    [parent] = runs(tracker, f"tags.sweep = '{sweep}' and tags.role = 'parent'")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert history(tracker, child.info.run_id) == [(1, 0.1), (2, 0.2)]


def test_what_waits_outlives_its_process(tracker: Tracker, workspace: Workspace, sweep: str, tmp_path: Path) -> None:
    """The server was unreachable, then the driver was killed: the next driver sends everything, in order, once."""
    folder = workspace.root / "outbox"
    away = Faulty(tracker._client)
    killed = Tracker(away, tracker.uri, tracker.experiment_id, Spool(folder, "a server"))  # type: ignore[arg-type]
    known = begin(killed, sweep, "begun before")
    killed.log_epoch(known, {"val_accuracy": 0.1}, 1)
    assert not list(folder.glob("*")), "nothing touches the disk while the server answers"
    away.error = ConnectionError("away")
    killed.log_epoch(known, {"val_accuracy": 0.2}, 2)
    fresh = begin(killed, sweep, "begun while away")
    killed.log_epoch(fresh, {"val_accuracy": float("nan"), "test_accuracy": 0.3}, 1)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "a.txt").write_text("a")
    killed.finish(fresh, "done", {"final_test_accuracy": 0.3}, artifacts=tmp_path / "artifacts")
    (spooled,) = folder.glob("*.jsonl")
    assert len(spooled.read_text().splitlines()) == 7

    def another(server: str = "a server") -> Tracker:
        return Tracker(tracker._client, tracker.uri, tracker.experiment_id, Spool(folder, server))

    assert another()._outbox.flush() == 0
    assert spooled.exists(), "its process lives"
    killed._outbox._spool._lock.release()  # type: ignore[union-attr]  # as the kernel does for a killed process
    with spooled.open("a") as file:
        file.write('["_send_epoch", ["')  # an incomplete line
    assert another("another server")._outbox.flush() == 0
    assert spooled.exists(), "what waits for one server is not sent to another"
    for _ in range(2):
        assert another().flush() == 0
        assert not list(folder.glob("*"))
        assert history(tracker, known) == [(1, 0.1), (2, 0.2)]
        [child] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = 'begun while away'")
        assert history(tracker, child.info.run_id, "test_accuracy") == [(1, 0.3)]
        assert child.info.status == "FINISHED"
        assert child.data.metrics["final_test_accuracy"] == 0.3
        assert [item.path for item in tracker._client.list_artifacts(child.info.run_id)] == ["a.txt"]


def test_a_second_killed_process_hands_on_what_it_adopted(tracker: Tracker, workspace: Workspace, sweep: str) -> None:
    folder = workspace.root / "outbox"
    away = Faulty(tracker._client)
    away.error = ConnectionError("away")
    for cell in ("first", "second"):
        killed = Tracker(away, tracker.uri, tracker.experiment_id, Spool(folder, sweep))  # type: ignore[arg-type]
        begin(killed, sweep, cell)
        killed._outbox._spool._lock.release()  # type: ignore[union-attr]
    (spooled,) = folder.glob("*.jsonl")
    assert len(spooled.read_text().splitlines()) == 4
    assert Tracker(tracker._client, tracker.uri, tracker.experiment_id, Spool(folder, sweep)).flush() == 0
    assert len(runs(tracker, compare_hint(sweep))) == 3, "a parent and two children"


def test_an_end_in_a_second_outage_reaches_its_run_after_a_kill(
    tracker: Tracker, workspace: Workspace, sweep: str
) -> None:
    """The server was away, came back and went again; the driver that knew the ids of the runs was killed then."""
    folder = workspace.root / "outbox"
    away = Faulty(tracker._client)
    away.error = ConnectionError("away")
    killed = Tracker(away, tracker.uri, tracker.experiment_id, Spool(folder, sweep))  # type: ignore[arg-type]
    run_id = begin(killed, sweep)
    away.error = None
    assert killed.flush() == 0
    away.error = ConnectionError("away again")
    killed.log_epoch(run_id, {"val_accuracy": 0.1}, 1)
    other = killed.start_run(
        "other", CONFIG, parent=killed.start_parent(sweep, kind="sweep", tags={}), sweep=sweep, source=""
    )
    for each in (run_id, other):
        killed.finish(each, "done", {"final_test_accuracy": 0.5})
    killed._outbox._spool._lock.release()  # type: ignore[union-attr]  # as the kernel does for a killed process
    assert Tracker(tracker._client, tracker.uri, tracker.experiment_id, Spool(folder, sweep)).flush() == 0
    [parent] = runs(tracker, f"tags.sweep = '{sweep}' and tags.role = 'parent'")
    for cell, epochs in (("cell", [(1, 0.1)]), ("other", [])):
        [run] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = '{cell}'")
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "done")
        assert history(tracker, run.info.run_id) == epochs


def test_an_epoch_waits_once_however_often_its_driver_is_killed(
    tracker: Tracker, workspace: Workspace, sweep: str
) -> None:
    """Each driver logs all epochs of the run that it finds, as a resume does."""
    folder = workspace.root / "outbox"
    away = Faulty(tracker._client)
    away.error = ConnectionError("away")
    for last in range(1, 11):
        killed = Tracker(away, tracker.uri, tracker.experiment_id, Spool(folder, sweep))  # type: ignore[arg-type]
        run_id = begin(killed, sweep)
        for epoch in range(1, last + 1):
            killed.log_epoch(run_id, {"val_accuracy": epoch / 100}, epoch)
        killed._outbox._spool._lock.release()  # type: ignore[union-attr]
    (spooled,) = folder.glob("*.jsonl")
    names = [json.loads(line)[0] for line in spooled.read_text().splitlines()]
    assert names.count("_send_epoch") == 10
    assert Tracker(tracker._client, tracker.uri, tracker.experiment_id, Spool(folder, sweep)).flush() == 0
    [child] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = 'cell'")
    assert history(tracker, child.info.run_id) == [(epoch, epoch / 100) for epoch in range(1, 11)]


def test_an_epoch_waits_once_however_often_its_worker_dies(faulty: tuple[Tracker, Faulty], sweep: str) -> None:
    tracker, client = faulty
    client.error = ConnectionError("away")
    for last in range(1, 8):
        run_id = begin(tracker, sweep)
        for epoch in range(1, last + 1):
            tracker.log_epoch(run_id, {"val_accuracy": epoch / 100}, epoch)
    waiting = [name for name, _ in tracker._outbox.waiting]
    assert waiting.count("_send_epoch") == 7
    client.error = None
    assert tracker.flush() == 0
    assert len(history(tracker, tracker.id_of(run_id))) == 7


def test_an_answer_lost_on_its_way_doubles_nothing(tracker: Tracker, sweep: str) -> None:
    class Deaf(Faulty):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                answer = getattr(self.client, name)(*args, **kwargs)
                if name in self.writes and self.error is not None:
                    raise self.error
                return answer

            return call

    client = Deaf(tracker._client)
    client.error = ConnectionError("lost")
    deaf = Tracker(client, tracker.uri, tracker.experiment_id)  # type: ignore[arg-type]
    run_id = begin(deaf, sweep)
    for epoch in (1, 2):
        deaf.log_epoch(run_id, {"val_accuracy": epoch / 10}, epoch)
    client.error = None
    assert deaf.flush() == 0
    assert len(runs(tracker, compare_hint(sweep))) == 2
    [child] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = 'cell'")
    assert history(tracker, child.info.run_id) == [(1, 0.1), (2, 0.2)]
    assert child.data.params["defense.eta"] == "0.3"


def test_a_hanging_server_is_not_asked_at_every_call(
    faulty: tuple[Tracker, Faulty], sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, client = faulty
    run_id = begin(tracker, sweep)
    clock = iter(range(0, 1000, 8))  # eight seconds pass between any two looks at the clock
    monkeypatch.setattr("orchestration.tracking.outbox.time.monotonic", lambda: next(clock))
    client.error = ConnectionError("timed out")
    for epoch in range(1, 11):
        tracker.log_epoch(run_id, {"val_accuracy": 0.1}, epoch)
    assert client.refusals == 1


def test_a_server_that_is_back_a_moment_after_a_call_failed_has_refused_nothing(
    faulty: tuple[Tracker, Faulty], sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds however long the server was away: the call is repeated, not given up."""
    tracker, client = faulty
    run_id = begin(tracker, sweep)
    client.error = ConnectionError("away")
    for epoch in range(1, 9):
        tracker.log_epoch(run_id, {"val_accuracy": epoch / 10}, epoch)
    monkeypatch.setattr(tracker, "_answers", lambda: True)
    assert tracker.flush() == 8, "that it answers now is no refusal"
    client.error = None
    assert tracker.flush() == 0
    assert history(tracker, run_id) == [(epoch, epoch / 10) for epoch in range(1, 9)]


def test_a_call_that_fails_again_and_again_while_the_server_answers_is_given_up(
    faulty: tuple[Tracker, Faulty], sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, client = faulty
    run_id = begin(tracker, sweep)
    monkeypatch.setattr(tracker, "_answers", lambda: True)
    client.error = ConnectionError("sick")
    tracker.log_epoch(run_id, {"val_accuracy": 0.1}, 1)
    assert [tracker.flush() for _ in range(6)] == [1, 1, 1, 1, 1, 0]


def test_what_is_refused_for_good_does_not_block_the_rest(
    tracker: Tracker, sweep: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    gone, stays = begin(tracker, sweep, "gone"), begin(tracker, sweep, "stays")
    tracker._client.delete_run(gone)  # deleted by hand on MLflow's page
    for epoch in (1, 2, 3):
        tracker.log_epoch(gone, {"val_accuracy": 0.1}, epoch)
    tracker.log_epoch(stays, {"val_accuracy": 0.1}, 1)
    tracker.finish(stays, "done", {}, artifacts=tmp_path / "missing")
    assert tracker.flush() == 0
    assert history(tracker, stays) == [(1, 0.1)]
    assert tracker._client.get_run(stays).info.status == "FINISHED"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "MLflow refused to send epoch",
        "MLflow refused to send artifacts",
    ]


# -- The page ---------------------------------------------------------------------------------------------------------


def test_nothing_to_serve_where_a_server_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@tracking.example/")
    with pytest.raises(UserError, match=r"open https://tracking\.example/$"):
        serve(workspace)


def test_address_is_checked(tracker: Tracker, workspace: Workspace) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"port \d+ cannot be used"):
            serve(workspace, port=taken.getsockname()[1])
    with pytest.raises(UserError, match=r"must be 127\.0\.0\.1, got 0\.0\.0\.0"):
        serve(workspace, host="0.0.0.0")
    with pytest.raises(UserError, match=r"port must be in \[1, 65535\], got 70000"):
        serve(workspace, port=70000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Workspace, int, list[subprocess.Popen[bytes]]]]:
    workspace, port = Workspace(tmp_path), free_port()
    processes = [serve(workspace, port=port)]
    yield workspace, port, processes
    for process in processes:
        stop_server(process)


def group_is_gone(process: subprocess.Popen[bytes]) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.apart
def test_page_loads_and_outlives_an_outage(
    server: tuple[Workspace, int, list[subprocess.Popen[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, port, processes = server
    url = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(url, timeout=300) as page:
        assert b"<title>MLflow</title>" in page.read()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    tracker = Tracker.open(workspace)
    run_id = begin(tracker, "over http")
    tracker.log_epoch(run_id, {"val_accuracy": 0.1}, 1)

    stop_server(processes.pop())
    tracker.log_epoch(run_id, {"val_accuracy": 0.2}, 2)
    tracker.finish(run_id, "done", {"final_test_accuracy": 0.5})
    assert tracker.flush() == 3
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    processes.append(serve(workspace, port=port))
    assert tracker.flush() == 0
    assert history(tracker, run_id) == [(1, 0.1), (2, 0.2)]

    query = json.dumps({"experiment_ids": [tracker.experiment_id], "filter": compare_hint("over http")}).encode()
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        assert len(json.load(answer)["runs"]) == 2
    stop_server(processes[0])
    assert group_is_gone(processes[0])
