"""Tests leases: one worker at a time writes a run on a storage, and one that has lost it stops and says who has it."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.errors import StorageError
from erat.result import RunResult
from orchestration.run.directory import RunDirectory, stop_request
from orchestration.run.execute import execute_run
from orchestration.run.heartbeat import is_running
from orchestration.storage import exclusive, lease
from orchestration.storage.lease import Lease, LeaseLostError, latest, leased
from orchestration.storage.shared import Storage, storage_at
from orchestration.storage.workspace import Workspace
from tests.servers import s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "memory://", pytest.param("s3://", marks=pytest.mark.apart)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    places = {
        "folder": lambda: str(tmp_path / "shared"),
        "memory://": lambda: f"memory://{tmp_path.name}",
        "s3://": lambda: str(request.getfixturevalue("s3")).replace("/runs?", f"/{tmp_path.name}?"),
    }
    return storage_at(places[request.param]())


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return storage_at(str(tmp_path / "shared"))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


def held_by(storage: Storage, session: str = "") -> Lease:
    made = Lease(storage, "c", session)
    made.take()
    return made


def taking(storage: Storage, session: str = "") -> tuple[threading.Thread, list[int]]:
    """Begin to take the lease in another thread; the list gets the number of the attempt."""
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(held_by(storage, session).attempt))
    thread.start()
    return thread, taken


# --- a file that is written unless it is there -----------------------------------------------------------------------


def test_of_several_that_write_one_succeeds(storage: Storage) -> None:
    barrier, written = threading.Barrier(6), []

    def write(number: int) -> None:
        barrier.wait(300)
        if storage.create("a/x", b"%d" % number):
            written.append(b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert written == [storage.read("a/x")]
    assert not storage.create("a/x", b"again")


@pytest.mark.apart
def test_where_no_write_is_conditional_the_last_one_counts(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "find_spec", lambda name: None)  # boto3 is not installed
    monkeypatch.setattr(exclusive, "SETTLE_SECONDS", 0.5)
    test_of_several_that_write_one_succeeds(storage_at(s3))


@pytest.mark.apart
def test_a_server_that_is_away_is_a_storage_fault(s3: str) -> None:
    away = storage_at("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    with pytest.raises(StorageError, match="cannot be written: "):
        away.create("a/x", b"")


# --- who holds a run -------------------------------------------------------------------------------------------------


def test_a_second_one_waits_for_the_first_to_end(storage: Storage, recwarn: pytest.WarningsRecorder) -> None:
    first = held_by(storage)
    assert first.attempt == 1
    thread, taken = taking(storage)
    thread.join(0.3)
    assert not taken
    first.check()
    first.renew(over=True)
    thread.join(300)
    assert re.match(rf"waiting for process {os.getpid()} on .*\(attempt 1\) in ", str(recwarn.pop(UserWarning).message))
    assert taken == [2], "attempts are counted over all workers"
    assert storage.names("leases/c") == ["000002"]


def test_the_same_session_takes_a_run_over_and_the_earlier_worker_learns_from_whom(storage: Storage) -> None:
    first = held_by(storage, "trial 3 of mine")
    assert held_by(storage, "trial 3 of mine").attempt == 2
    said = (
        rf"^process {os.getpid()} on .* \(trial 3 of mine\) holds this run now \(attempt 2\); "
        r"this worker \(attempt 1\) stops$"
    )
    assert not first.lost
    for act in (first.check, first.renew):
        with pytest.raises(LeaseLostError, match=said):
            act()
    assert first.lost
    record = latest(storage, "c")
    assert record is not None
    assert (record["attempt"], record["over"]) == (2, False)


@pytest.mark.filterwarnings("ignore:waiting for")
def test_one_that_is_not_heard_of_has_lost_the_run(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOST_SECONDS", 60.0)
    first = held_by(folder)
    thread, taken = taking(folder)
    for _ in range(10):
        thread.join(0.1)
        first.renew()
    assert not taken, "as long as it is heard of, it keeps the run"
    monkeypatch.setattr(lease, "LOST_SECONDS", 0.5)
    thread.join(300)
    assert taken == [2]
    with pytest.raises(LeaseLostError):
        first.renew()


def test_a_process_that_died_on_this_machine_is_not_waited_for(folder: Storage) -> None:
    def die() -> None:
        held_by(folder)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(300)
    assert held_by(folder).attempt == 2


def test_a_lease_that_cannot_be_read_is_waited_for(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOST_SECONDS", 0.2)
    folder.write("leases/c/000007", b"half of")
    with pytest.warns(UserWarning, match=r"waiting for another worker, which holds this run \(attempt 7\)"):
        assert held_by(folder).attempt == 8


def test_a_lease_is_renewed_until_it_ends(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    beaten = threading.Event()
    write = Storage.write

    def counted(self: Storage, name: str, content: Any) -> None:
        write(self, name, content)
        beaten.set()

    monkeypatch.setattr(Storage, "write", counted)
    with leased(folder, "c") as mine:
        assert beaten.wait(300)
        mine.check()
    record = latest(folder, "c")
    assert record is not None
    assert record["over"]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(
    make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet], monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    data = replace(make_data(48), manifest={"labels": {}, "images": {}})
    monkeypatch.setattr("erat.training.corrupted_set", lambda *_: data)
    return make_config({"defense.name": "ce", "train.epochs": 3, "data.fingerprint": "0" * 16})


@pytest.fixture
def workspaces(folder: Storage, tmp_path: Path) -> list[Workspace]:
    """Return two workspaces on one storage, with folders of their own."""
    return [Workspace(tmp_path / name).sharing(folder.place) for name in ("one", "other")]


@pytest.mark.filterwarnings("ignore:waiting for")
def test_two_workspaces_do_not_train_the_same_run_at_the_same_time(
    config: RunConfig, workspaces: list[Workspace]
) -> None:
    is_in, go_on = threading.Event(), threading.Event()
    ended: list[RunResult] = []
    told: list[int] = []

    def hold(history: Sequence[Any]) -> bool:
        is_in.set()
        return go_on.wait(300)

    first = threading.Thread(target=lambda: ended.append(execute_run(config, workspaces[0], on_epoch=hold)))
    first.start()
    assert is_in.wait(300)
    assert is_running(RunDirectory(workspaces[1], config.digest()))
    second = threading.Thread(
        target=lambda: ended.append(execute_run(config, workspaces[1], on_epoch=lambda history: bool(told.append(1))))
    )
    second.start()
    second.join(0.3)
    go_on.set()
    first.join(300)
    second.join(300)
    assert [result.status for result in ended] == ["done", "done"]
    assert told == [], "the second one found it done"
    assert not is_running(RunDirectory(workspaces[1], config.digest()))


def test_a_worker_that_lost_its_run_writes_nothing_more_and_the_other_ends_it(
    config: RunConfig, workspaces: list[Workspace], folder: Storage, tmp_path: Path
) -> None:
    cell, before = config.digest(), {}

    def files() -> dict[str, bytes | None]:
        return {name: folder.read(f"cells/{cell}/{name}") for name in folder.names(f"cells/{cell}")}

    def cut_off(history: Sequence[Any]) -> bool:
        if len(history) == 2:
            other = Lease(folder, cell, "trial 0 of mine")
            other.take()
            before.update(files())
            other.renew(over=True)
        return True

    with pytest.raises(LeaseLostError, match=r"holds this run now \(attempt 2\); this worker \(attempt 1\) stops"):
        execute_run(config, workspaces[0], on_epoch=cut_off, session="trial 0 of mine")
    assert files() == before
    assert "result.json" not in before
    ended = execute_run(config, workspaces[1], session="trial 0 of mine")
    undisturbed = execute_run(config, Workspace(tmp_path / "alone"))
    assert ended.val_history == undisturbed.val_history
    run = RunDirectory(Workspace(tmp_path / "driver").sharing(folder.place), cell)
    run.fetch("result.json")
    assert run.read_result() == ended
    assert run.attempt_of_result() == 3
    assert RunDirectory(Workspace(tmp_path / "alone"), cell).attempt_of_result() is None, "nobody else can be there"


def test_a_worker_that_lost_its_run_inside_an_epoch_stops_there(
    config: RunConfig, workspaces: list[Workspace], folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lose() -> bool:
        asked.append(1)
        if len(asked) == 3:
            held = Lease(folder, config.digest(), "mine")
            held.take()
            with pytest.raises(LeaseLostError):
                first[0].renew()  # as its thread does every few seconds
        return False

    first: list[Lease] = []
    take = Lease.take
    monkeypatch.setattr(Lease, "take", lambda self: (take(self), first.append(self))[0])
    monkeypatch.setattr("orchestration.run.execute.requested", lose)
    with pytest.raises(LeaseLostError):
        execute_run(config, workspaces[0], session="mine")
    assert len(asked) == 3
    assert "checkpoint.pt" not in folder.names(f"cells/{config.digest()}")


def test_a_stop_request_is_that_of_one_workspace(workspaces: list[Workspace], tmp_path: Path) -> None:
    requests = [stop_request("mine", workspace) for workspace in workspaces]
    runs = [RunDirectory(workspace, "c") for workspace in workspaces]
    runs[0].ask_to_stop(requests[0], 2)
    assert runs[0].asked_to_stop(stop_request("mine", Workspace(workspaces[0].root).sharing(workspaces[0].place)))
    assert not runs[1].asked_to_stop(requests[1]), "another study of the same name, in another workspace"
    assert stop_request("mine", Workspace(tmp_path)) == "stop-mine"
