"""Tests MLflow's stores: which one is opened, what is no store, stores that were moved, and the page."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from erat.errors import UserError
from orchestration.storage.workspace import Workspace
from orchestration.tracking.opening import serve
from orchestration.tracking.store import relocate, stop_server
from orchestration.tracking.text import compare_hint
from orchestration.tracking.tracker import Tracker
from tests.tracked import begin, history


def test_default_store_is_an_absolute_sqlite_file_in_write_ahead_mode(tracker: Tracker, workspace: Workspace) -> None:
    assert tracker.uri == f"sqlite:///{workspace.mlflow_database}"
    assert workspace.mlflow_database.is_file()
    with closing(sqlite3.connect(workspace.mlflow_database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert Tracker.open(workspace)._sender.experiment_id == tracker._sender.experiment_id


def test_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    tracker = Tracker.open(Workspace(tmp_path / "workspace"))
    assert tracker.uri.endswith("mine.db")
    assert (tmp_path / "mine.db").is_file()
    assert not (tmp_path / "workspace").exists()


def _open(root: Path, answers: Any) -> None:
    try:
        answers.put(Tracker.open(Workspace(root))._sender.experiment_id)
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


@pytest.mark.slow
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
    tracker._sender.client.delete_experiment(tracker._sender.experiment_id)
    assert "mlflow experiments restore --experiment-id 1" in refused(monkeypatch, Workspace(tmp_path))


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
        assert [item.path for item in later._sender.client.list_artifacts(run_id)] == ["table.csv"]
        run = later._sender.client.get_run(run_id)
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
    before = tracker._sender.client.get_experiment(tracker._sender.experiment_id).artifact_location
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert Tracker.open(Workspace(tmp_path))._sender.experiment_id == tracker._sender.experiment_id
    assert tracker._sender.client.get_experiment(tracker._sender.experiment_id).artifact_location == before


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


# -- The page ----------------------------------------------------------------------------------------------------------


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

    query = json.dumps(
        {"experiment_ids": [tracker._sender.experiment_id], "filter": compare_hint("over http")}
    ).encode()
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        assert len(json.load(answer)["runs"]) == 2
    stop_server(processes[0])
    assert group_is_gone(processes[0])
