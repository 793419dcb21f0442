"""Tests tracking in the background: what is sent together, in which order, and what waits for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration.storage.workspace import Workspace
from orchestration.tracking import outbox
from orchestration.tracking.outbox import Outbox, Spool
from orchestration.tracking.tracker import Tracker
from tests.tracked import history, reopened

CONFIG = {"data.name": "mnist", "defense.name": "erat", "train.seed": 1}


class Server:
    """A server that is called, which may be away, refuse some calls, or keep its callers waiting."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.away = False
        self.refused: list[Any] = []
        self.free, self.begun = threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, name: str, arguments: list[Any]) -> None:
        self.begun.set()
        assert self.free.wait(300)
        if self.away:
            raise ConnectionError("away")
        if any(refused in json.dumps(arguments) for refused in self.refused):
            raise ValueError("refused")
        self.calls.append((name, arguments))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(outbox, "_GATHER", 0.01)
    return Server()


def made(server: Server, spool: Spool | None = None) -> Outbox:
    return Outbox(server, lambda error, failures: isinstance(error, ValueError), spool, merged={"epoch": "epochs"})


def test_what_comes_together_goes_as_one_call_a_run_in_order(server: Server) -> None:
    box = made(server)
    with box.in_background():
        server.free.clear()
        box.put("start", "r0")
        assert server.begun.wait(300)
        box.put("start", "r1")
        for epoch in (1, 2, 3):
            for run in ("r0", "r1"):
                box.put("epoch", run, epoch)
        box.put("end", "r0")
        box.put("epoch", "r1", 4)
        box.put("epoch", "r0", 4)
        server.free.set()
    assert server.calls == [
        ("start", ["r0"]),
        ("start", ["r1"]),
        ("epochs", [["r0", 1], ["r0", 2], ["r0", 3]]),
        ("epochs", [["r1", 1], ["r1", 2], ["r1", 3], ["r1", 4]]),
        ("end", ["r0"]),
        ("epoch", ["r0", 4]),
    ]


def test_the_caller_does_not_wait_and_the_end_of_the_block_does(server: Server) -> None:
    box, told = made(server), []
    with box.in_background(before=lambda: told.append("before")):
        server.free.clear()
        box.put("end", "r")
        box.then(lambda: told.append("after"))
        assert server.begun.wait(300)
        assert (server.calls, told) == ([], ["before"])
        threading.Timer(0.05, server.free.set).start()
    assert server.calls == [("end", ["r"])]
    assert told == ["before", "after"]


def test_one_refused_call_costs_the_others_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    box = made(server)
    server.refused = ["bad"]
    with box.in_background():
        for value in (1, "bad", 3):
            box.put("epoch", "r", value)
    assert server.calls[-1] == ("epoch", ["r", 3])
    assert [arguments for _, arguments in server.calls] == [["r", 1], ["r", 3]]
    assert len(caplog.records) == 1


def test_during_an_outage_each_call_is_kept_once_before_anything_relies_on_it(server: Server, tmp_path: Path) -> None:
    server.away = True
    spool, kept = Spool(tmp_path / "outbox", "s"), []

    def lines() -> list[Any]:
        return [json.loads(line) for file in (tmp_path / "outbox").glob("*.jsonl") for line in file.open()]

    box = made(server, spool)
    with box.in_background():
        for epoch in range(100):
            box.put("epoch", "r", epoch)
            box.then(lambda epoch=epoch: kept.append(["epoch", ["r", epoch]] in lines()))  # type: ignore[misc]
    assert kept == [True] * 100
    assert lines() == [["epoch", ["r", epoch]] for epoch in range(100)], "as many lines as epochs"
    assert box.flush() == 100
    server.away = False
    assert box.flush() == 0
    assert server.calls == [("epochs", [["r", epoch] for epoch in range(100)])]
    assert lines() == []


def test_a_disk_that_cannot_keep_what_waits_is_told_and_nothing_relies_on_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.away = True
    box, told = made(server, Spool(tmp_path / "outbox", "s")), []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def filled() -> None:
        with box.in_background():
            box.put("end", "r")
            box.then(lambda: told.append("kept"))
            box._background._thread.join(300)  # type: ignore[union-attr]
            with pytest.raises(OSError, match="No space left"):
                box.put("epoch", "r", 1)

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "append_line", full)
        with pytest.raises(OSError, match="No space left"):
            filled()
    assert told == []
    server.away = False
    box.flush()
    assert told == ["kept"]
    assert ("end", ["r"]) in server.calls


# -- MLflow -----------------------------------------------------------------------------------------------------------


class Counting:
    """A client that counts the calls by name."""

    def __init__(self, client: Any) -> None:
        self.client, self.names = client, []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.names.append(name)
        return getattr(self.client, name)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def counted(workspace: Workspace) -> tuple[Tracker, Counting]:
    opened = Tracker.open(workspace)
    client = Counting(opened._sender.client)
    return reopened(opened, client), client


def begin(tracker: Tracker, parent: str, cell: str, **more: Any) -> str:
    return tracker.start_run(cell, CONFIG, parent=parent, sweep="s", source="optuna", **more)


def test_no_run_is_searched_for_that_is_new_or_whose_id_is_known(counted: tuple[Tracker, Counting]) -> None:
    tracker, client = counted
    parent = tracker.start_parent("s", kind="sweep", tags={})
    client.names.clear()
    with tracker.in_background():
        runs = [begin(tracker, parent, f"c{number}", fresh=True) for number in range(3)]
        assert not any(map(tracker.is_known, runs)), "nothing was sent yet"
        for epoch in (1, 2):
            for run in runs:
                tracker.log_epoch(run, {"val_accuracy": epoch / 10}, epoch)
    ids = [tracker.id_of(run) for run in runs]
    assert all(map(tracker.is_known, runs))
    assert "search_runs" not in client.names
    assert client.names.count("log_batch") == 2 * 3, "params and epochs"
    client.names.clear()
    assert [begin(tracker, parent, f"c{number}", known=known) for number, known in enumerate(ids)] == ids
    assert "search_runs" not in client.names
    assert history(tracker, ids[0]) == [(1, 0.1), (2, 0.2)]


@pytest.mark.parametrize("wrong", ["0" * 32, "another", "deleted"])
def test_an_id_that_leads_to_no_such_run_is_no_obstacle(counted: tuple[Tracker, Counting], wrong: str) -> None:
    tracker, client = counted
    parent = tracker.start_parent("s", kind="sweep", tags={})
    mine, other = begin(tracker, parent, f"mine {wrong}"), begin(tracker, parent, f"other {wrong}")
    known = other if wrong == "another" else wrong
    if wrong == "deleted":
        client.client.delete_run(mine)
        assert begin(tracker, parent, f"mine {wrong}", known=mine) not in (mine, other), "a new one"
    else:
        assert begin(tracker, parent, f"mine {wrong}", known=known) == mine, "found by its tags"


def test_a_new_run_whose_answer_was_lost_is_searched_for(counted: tuple[Tracker, Counting]) -> None:
    tracker, client = counted
    parent = tracker.start_parent("s", kind="sweep", tags={})
    create = client.client.create_run

    def deaf(*args: Any, **options: Any) -> Any:
        create(*args, **options)
        raise ConnectionError("lost")

    client.client.create_run = deaf
    run = begin(tracker, parent, "lost", fresh=True)
    client.client.create_run = create
    assert tracker.flush() == 0
    found = client.client.search_runs([tracker._sender.experiment_id], "tags.cell = 'lost'")
    assert [each.info.run_id for each in found] == [tracker.id_of(run)]
