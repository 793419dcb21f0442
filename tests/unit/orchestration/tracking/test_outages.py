"""Tests tracking while the server fails: what waits arrives in order, once, whoever sends it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration.storage.workspace import Workspace
from orchestration.tracking.outbox import Spool
from orchestration.tracking.text import compare_hint
from orchestration.tracking.tracker import Tracker
from tests.tracked import CONFIG, Faulty, begin, history, reopened, runs


@pytest.fixture
def away(tracker: Tracker) -> Faulty:
    """Return a client whose server is unreachable."""
    client = Faulty(tracker._sender.client)
    client.error = ConnectionError("away")
    return client


def kill(tracker: Tracker) -> None:
    """Release the lock of what waits, as the kernel does when a process is killed."""
    tracker._outbox._spool._lock.release()  # type: ignore[union-attr]


@pytest.fixture
def faulty(tracker: Tracker) -> tuple[Tracker, Faulty]:
    client = Faulty(tracker._sender.client)
    return reopened(tracker, client), client


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
    assert tracker._sender.client.get_run(run_id).info.status == "FINISHED"


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
    away = Faulty(tracker._sender.client)
    killed = reopened(tracker, away, Spool(folder, "a server"))
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
        return reopened(tracker, tracker._sender.client, Spool(folder, server))

    assert another()._outbox.flush() == 0
    assert spooled.exists(), "its process lives"
    kill(killed)
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
        assert [item.path for item in tracker._sender.client.list_artifacts(child.info.run_id)] == ["a.txt"]


def test_a_second_killed_process_hands_on_what_it_adopted(
    tracker: Tracker, away: Faulty, workspace: Workspace, sweep: str
) -> None:
    folder = workspace.root / "outbox"
    for cell in ("first", "second"):
        killed = reopened(tracker, away, Spool(folder, sweep))
        begin(killed, sweep, cell)
        kill(killed)
    (spooled,) = folder.glob("*.jsonl")
    assert len(spooled.read_text().splitlines()) == 4
    assert reopened(tracker, tracker._sender.client, Spool(folder, sweep)).flush() == 0
    assert len(runs(tracker, compare_hint(sweep))) == 3, "a parent and two children"


def test_an_end_in_a_second_outage_reaches_its_run_after_a_kill(
    tracker: Tracker, away: Faulty, workspace: Workspace, sweep: str
) -> None:
    """The server was away, came back and went again; the driver that knew the ids of the runs was killed then."""
    folder = workspace.root / "outbox"
    killed = reopened(tracker, away, Spool(folder, sweep))
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
    kill(killed)
    assert reopened(tracker, tracker._sender.client, Spool(folder, sweep)).flush() == 0
    [parent] = runs(tracker, f"tags.sweep = '{sweep}' and tags.role = 'parent'")
    for cell, epochs in (("cell", [(1, 0.1)]), ("other", [])):
        [run] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = '{cell}'")
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "done")
        assert history(tracker, run.info.run_id) == epochs


def test_an_epoch_waits_once_however_often_its_driver_is_killed(
    tracker: Tracker, away: Faulty, workspace: Workspace, sweep: str
) -> None:
    """Each driver logs all epochs of the run that it finds, as a resume does."""
    folder = workspace.root / "outbox"
    for last in range(1, 11):
        killed = reopened(tracker, away, Spool(folder, sweep))
        run_id = begin(killed, sweep)
        for epoch in range(1, last + 1):
            killed.log_epoch(run_id, {"val_accuracy": epoch / 100}, epoch)
        kill(killed)
    (spooled,) = folder.glob("*.jsonl")
    names = [json.loads(line)[0] for line in spooled.read_text().splitlines()]
    assert names.count("_send_epoch") == 10
    assert reopened(tracker, tracker._sender.client, Spool(folder, sweep)).flush() == 0
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

    client = Deaf(tracker._sender.client)
    client.error = ConnectionError("lost")
    deaf = reopened(tracker, client)
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
    monkeypatch.setattr(tracker._sender, "_answers", lambda: True)
    assert tracker.flush() == 8, "that it answers now is no refusal"
    client.error = None
    assert tracker.flush() == 0
    assert history(tracker, run_id) == [(epoch, epoch / 10) for epoch in range(1, 9)]


def test_a_call_that_fails_again_and_again_while_the_server_answers_is_given_up(
    faulty: tuple[Tracker, Faulty], sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, client = faulty
    run_id = begin(tracker, sweep)
    monkeypatch.setattr(tracker._sender, "_answers", lambda: True)
    client.error = ConnectionError("sick")
    tracker.log_epoch(run_id, {"val_accuracy": 0.1}, 1)
    assert [tracker.flush() for _ in range(6)] == [1, 1, 1, 1, 1, 0]


def test_what_is_refused_for_good_does_not_block_the_rest(
    tracker: Tracker, sweep: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    gone, stays = begin(tracker, sweep, "gone"), begin(tracker, sweep, "stays")
    tracker._sender.client.delete_run(gone)  # deleted by hand on MLflow's page
    for epoch in (1, 2, 3):
        tracker.log_epoch(gone, {"val_accuracy": 0.1}, epoch)
    tracker.log_epoch(stays, {"val_accuracy": 0.1}, 1)
    tracker.finish(stays, "done", {}, artifacts=tmp_path / "missing")
    assert tracker.flush() == 0
    assert history(tracker, stays) == [(1, 0.1)]
    assert tracker._sender.client.get_run(stays).info.status == "FINISHED"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "MLflow refused to send epoch",
        "MLflow refused to send artifacts",
    ]


def test_what_waits_is_sent_after_a_move(
    tracker: Tracker, away: Faulty, workspace: Workspace, sweep: str, tmp_path: Path
) -> None:
    """An earlier version stored the whole path of an artifact; this one stores it relative to the workspace."""
    old, new = Workspace(tmp_path / "old"), Workspace(tmp_path / "new")
    artifacts = old.run_directory("c") / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "a.txt").write_text("a")
    killed = reopened(tracker, away, Spool(old.root / "outbox", "own", once=tracker.uri))
    run_id = begin(killed, sweep)
    killed.finish(run_id, "done", {}, artifacts)
    kill(killed)
    (spooled,) = (old.root / "outbox").glob("*.jsonl")
    assert str(old.root) not in spooled.read_text()
    with spooled.open("a") as file:
        file.write(json.dumps(["_send_artifacts", [run_id, {"path": str(artifacts)}]]) + "\n")
    old.root.rename(new.root)
    spool = Spool(new.root / "outbox", "own", once="sqlite:////elsewhere")
    assert reopened(tracker, tracker._sender.client, spool).flush() == 0
    [child] = runs(tracker, f"tags.sweep = '{sweep}' and tags.cell = 'cell'")
    assert [item.path for item in tracker._sender.client.list_artifacts(child.info.run_id)] == ["a.txt"]
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
    tracker: Tracker, away: Faulty, workspace: Workspace, sweep: str, tmp_path: Path, foreign: bytes
) -> None:
    folder = tmp_path / "outbox"
    killed = reopened(tracker, away, Spool(folder, sweep))
    begin(killed, sweep)
    kill(killed)
    (spooled,) = folder.glob("*.jsonl")
    spooled.write_bytes(foreign + spooled.read_bytes() if foreign.endswith(b"\n") else spooled.read_bytes() + foreign)
    assert reopened(tracker, tracker._sender.client, Spool(folder, sweep)).flush() == 0
    assert len(runs(tracker, compare_hint(sweep))) == 2
    assert not list(folder.glob("*.jsonl"))
