"""Tests the ledger in the background: what counts at once, what is on the disk when, and what an error leaves."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erat.records import append_line
from erat.result import RunResult
from orchestration.study import ledger as ledger_module
from orchestration.study.ledger import Ledger

SPEC = {"space": {"name": "budgets"}, "preset": "demo"}


class Disk:
    """Stands for `append_line`: it waits while it is held, fails while it is full, and counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []  # number of lines in each call
        self.full = False
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()
        monkeypatch.setattr(ledger_module, "append_line", self.append)

    def append(self, path: Path, content: bytes) -> None:
        self.begun.set()
        assert self.free.wait(300)
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append_line(path, content)
        self.calls.append(content.count(b"\n") + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = Ledger(tmp_path / "ledger.jsonl")
    made.append("sweep", name="a", spec=SPEC, trials=99)
    return made.path


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def propose(ledger: Ledger, number: int, then: Callable[[], None] | None = None) -> None:
    cell = f"c{number}"
    ledger.append("proposed", then=then, sweep="a", number=number, params={"x": 0.1}, source="optuna", cell=cell)


def numbers(path: Path) -> list[int]:
    events = map(json.loads, path.read_text().splitlines())
    return [event["number"] for event in events if event["event"] == "proposed"]


def test_what_waits_is_written_in_one_piece_and_in_order(path: Path, disk: Disk) -> None:
    ledger = Ledger(path)
    written: list[int] = []
    with ledger.in_background():
        disk.free.clear()
        propose(ledger, 0)
        assert disk.begun.wait(300)
        for number in range(1, 50):
            propose(ledger, number, lambda number=number: written.append(number))  # type: ignore[misc]
        assert list(ledger.studies["a"].proposals) == list(range(50)), "all count at once"
        assert (numbers(path), written) == ([], []), "none is on the disk"
        disk.free.set()
        ledger.flush()
        assert numbers(path) == list(range(50))
    assert disk.calls == [1, 49]
    assert written == list(range(1, 50))
    assert list(Ledger(path).studies["a"].proposals) == list(range(50))


def test_everything_is_on_the_disk_at_the_end_of_the_block_even_after_an_error(path: Path) -> None:
    def interrupted() -> None:
        ledger = Ledger(path)
        with ledger.in_background():
            propose(ledger, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert numbers(path) == [1]


def test_a_full_disk_is_raised_by_the_next_event_and_nothing_that_counted_is_lost(path: Path, disk: Disk) -> None:
    ledger, before = Ledger(path), path.read_bytes()
    called: list[int] = []

    def filled() -> None:
        with ledger.in_background():
            disk.full = True
            propose(ledger, 0, lambda: called.append(0))
            ledger._background._thread.join(300)  # type: ignore[union-attr]
            with pytest.raises(OSError, match="No space left"):
                ledger.check()
            propose(ledger, 1)

    with pytest.raises(OSError, match="No space left"):
        filled()
    assert (path.read_bytes(), called) == (before, [])
    disk.full = False
    propose(ledger, 2)
    assert (numbers(path), called) == ([0, 2], [0]), "what had been refused is written first; event 1 was refused"


def test_a_disk_that_has_room_again_at_the_end_gets_everything(path: Path, disk: Disk) -> None:
    ledger = Ledger(path)
    with ledger.in_background():
        disk.full = True
        propose(ledger, 0)
        ledger._background._thread.join(300)  # type: ignore[union-attr]
        disk.full = False
    assert numbers(path) == [0]


@pytest.mark.parametrize("torn", [b"", b'{"event": "done", "cell": "torn", "resu'], ids=["whole", "torn"])
def test_what_others_write_meanwhile_is_taken_in(path: Path, disk: Disk, torn: bytes) -> None:
    ledger, other = Ledger(path), Ledger(path)
    with ledger.in_background():
        other.append("sweep", name="b", spec=SPEC, trials=1)
        with path.open("ab") as file:
            file.write(torn)
        propose(ledger, 0)
        ledger.flush()
        other.append("retry", cell="c")
        other.append("sweep", name="c", spec=SPEC, trials=1)
        propose(ledger, 1)
        ledger.flush()
        assert list(ledger.studies) == ["a", "b", "c"]
        assert ledger._offset == path.stat().st_size, "nothing is read twice"
    assert Ledger(path).studies == ledger.studies


def test_threads_append_without_losing_an_event(path: Path) -> None:
    ledger = Ledger(path)

    def some(first: int) -> None:
        for number in range(first, first + 25):
            propose(ledger, number)

    with ledger.in_background():
        threads = [threading.Thread(target=some, args=(25 * each,)) for each in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            ledger.refresh()
        assert len(ledger.studies["a"].proposals) == 200
    assert sorted(numbers(path)) == list(range(200))


def test_a_result_that_is_noted_counts_and_is_not_on_the_disk_before_it_is_finished(path: Path) -> None:
    ledger, result = Ledger(path), RunResult("c", "stopped", 2, 0.5, 0.5, val_history=[0.1, 0.5])
    before = path.read_bytes()
    ledger.note(result, sweep="a", mlflow_run_id="r")
    noted = ledger.outcome("c", "a")
    assert noted is not None
    assert (noted.val_history, noted.mlflow_run_id) == ([0.1, 0.5], "r")
    assert noted.time is not None
    assert path.read_bytes() == before
    called: list[Any] = []
    with ledger.in_background():
        ledger.finish(result, sweep="a", mlflow_run_id="r", noted=True, then=lambda: called.append(numbers(path)))
    assert called == [[]]
    assert Ledger(path).outcome("c", "a").mlflow_run_id == "r"  # type: ignore[union-attr]


def test_the_id_of_a_run_in_mlflow_belongs_to_a_study(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append("tracked", sweep="a", cell="c", mlflow_run_id="r1")
    ledger.append("tracked", sweep="a", cell="c", mlflow_run_id="r2")
    ledger.append("tracked", sweep="gone", cell="d", mlflow_run_id="r3")
    for one in (ledger, Ledger(path)):
        assert one.studies["a"].tracked == {"c": "r2"}


def test_one_wait_for_the_disk_serves_many_events(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    waits: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: waits.append(file) or fsync(file))
    monkeypatch.setattr("orchestration.storage.background.Background.wake", lambda thread: None)
    with ledger.in_background():
        for number in range(100):
            propose(ledger, number)
    assert (len(waits), numbers(path)) == (1, list(range(100)))
