"""Tests storage that nodes share: a folder, URLs of several kinds, a local S3 server; and what a failure loses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from erat.config import RunConfig, build
from erat.corruption.pipeline import stored_parts
from erat.corruption.store import Store
from erat.engine.checkpoint import load
from erat.errors import StorageError, UserError, is_storage_fault
from erat.files import _replacing, write_atomic
from erat.result import RunResult
from orchestration.cluster.progress import CraftProgress
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.storage.shared import Storage, node_folder, storage_at
from orchestration.storage.workspace import Workspace
from tests.servers import s3_server

Run = Callable[[dict[str, Any]], RunConfig]


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Return the URL of a bucket on a server of this machine."""
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "file://", "memory://", pytest.param("s3://", marks=pytest.mark.apart)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    places = {
        "folder": lambda: str(tmp_path / "shared"),
        "file://": lambda: (tmp_path / "shared").as_uri(),
        "memory://": lambda: f"memory://{tmp_path.name}",
        "s3://": lambda: str(request.getfixturevalue("s3")).replace("/runs?", f"/{tmp_path.name}?"),
    }
    return storage_at(places[request.param]())


# --- files by name ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    assert storage.read("cells/a/result.json") is None
    assert storage.names("cells") == []
    storage.write("cells/a/result.json", b"first")
    storage.write("cells/a/result.json", b"second")
    storage.write("cells/b/artifacts/model.pt", b"\0" * 2_000_000)
    assert storage.read("cells/a/result.json") == b"second"
    assert storage.names("cells") == ["a/result.json", "b/artifacts/model.pt"]
    assert storage.names("cells/b") == ["artifacts/model.pt"]
    assert storage.fetch("cells/b/artifacts/model.pt", tmp_path / "x" / "model.pt")
    assert (tmp_path / "x" / "model.pt").stat().st_size == 2_000_000
    storage.remove("cells/a/result.json")
    storage.remove("cells/a/result.json")
    assert storage.read("cells/a/result.json") is None


def test_fetching_what_is_gone_takes_the_copy_away(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "stale").write_text("of another day")
    assert not storage.fetch("cells/stale", tmp_path / "stale")
    assert not (tmp_path / "stale").exists()


@pytest.mark.parametrize("name", ["../other", "cells//x", "cells/../../x", "./x", ""])
def test_no_name_leaves_the_storage(name: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="would leave the storage"):
        storage_at(str(tmp_path)).write(name, b"")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at(str(tmp_path / "shared"))
    storage.write("cells/a", b"old")

    class Full:
        """A disk that takes a few bytes and then no more."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner
            self.type_name = inner.type_name

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def move(self, *_: str) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_files", Full(storage._files))
    with pytest.raises(StorageError, match="cannot be written: No space left on device") as caught:
        storage.write("cells/a", b"new and longer")
    assert is_storage_fault(caught.value)
    assert storage.read("cells/a") == b"old"
    assert [file.name for file in (tmp_path / "shared" / "cells").iterdir()] == ["a"]


def test_a_place_that_is_no_folder_is_a_storage_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"the storage {tmp_path}/file cannot be written: "):
        storage_at(str(tmp_path / "file")).write("cells/a", b"")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://key:secret@bucket/runs", "must hold no credentials"),
        ("nonsense://bucket/runs", "storage.path=nonsense://bucket/runs cannot be used: "),
    ],
)
def test_places_that_are_refused(place: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        storage_at(place)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.apart
def test_a_server_that_is_away_is_a_storage_fault(s3: str) -> None:
    away = "s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(StorageError, match=r"cannot be read: .*connect") as caught:
        storage_at(away).read("cells/a")
    assert "\n" not in str(caught.value)


def test_a_node_s_folder_is_this_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = node_folder("s3://bucket/a")
    assert folder != node_folder("s3://bucket/b")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    os.chmod(folder.parent, 0o755)
    with pytest.raises(UserError, match="must be a folder that only this user can enter"):
        node_folder("s3://bucket/a")


# --- runs and sets over several nodes --------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Workspace]:
    """Return `node("a", place)`, which makes the workspace of a worker on node a.

    A node shares nothing with the others but the storage.
    """

    def of(name: str, place: str) -> Workspace:
        (tmp_path / f"node {name}").mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / f"node {name}"))
        return Workspace(tmp_path / "the driver's").sharing(place).on_this_node()

    return of


def test_a_run_goes_on_elsewhere_to_the_same_bits(
    storage: Storage, node: Callable[[str, str], Workspace], configure: Run, tmp_path: Path
) -> None:
    config = configure({"defense.name": "ce", "train.epochs": 3, "storage.path": None})
    name, alone = config.digest(), Workspace(tmp_path / "alone")
    undisturbed = execute_run(config, alone)
    weights = load(alone.run_directory(name) / "checkpoint.pt", torch.device("cpu"))["defense"]

    first = node("a", storage.place)
    taken = execute_run(config, first, on_epoch=lambda history: len(history) < 2)
    assert (taken.status, taken.epochs) == ("stopped", 2)
    assert not (first.run_directory(name) / "checkpoint.pt").exists(), "nothing stays on a node"
    assert b"checkpoint" not in storage.names(f"cells/{name}")
    assert {"checkpoint.pt", "metrics.jsonl", "result.json", "config.json"} <= set(storage.names(f"cells/{name}"))

    second = node("b", storage.place)
    ended = execute_run(config, second)
    assert (ended.status, ended.val_history) == ("done", undisturbed.val_history)
    assert ended.final_test_accuracy == undisturbed.final_test_accuracy
    driver = Workspace(tmp_path / "the driver's").sharing(storage.place)
    run = RunDirectory(driver, name)
    run.fetch("result.json", "metrics.jsonl", "checkpoint.pt")
    run.fetch_artifacts()
    read = run.read_result()
    assert isinstance(read, RunResult) and read.status == "done"
    assert len(run.read_metrics()) == 3
    assert (driver.run_directory(name) / "artifacts" / "confusion.json").exists()
    restored = load(driver.run_directory(name) / "checkpoint.pt", torch.device("cpu"))["defense"]
    assert all(torch.equal(restored[key], value) for key, value in weights.items())

    third = node("c", storage.place)
    assert execute_run(config, third).status == "done"
    assert not (third.run_directory(name) / "artifacts").exists(), "what is done is only read"


def test_a_checkpoint_that_is_damaged_on_the_storage_costs_an_epoch(
    storage: Storage, node: Callable[[str, str], Workspace], configure: Run, tmp_path: Path
) -> None:
    config = configure({"defense.name": "ce", "train.epochs": 4, "storage.path": None})
    name = config.digest()
    undisturbed = execute_run(config, Workspace(tmp_path / "alone"))
    execute_run(config, node("a", storage.place), on_epoch=lambda history: len(history) < 3)
    content = bytearray(storage.read(f"cells/{name}/checkpoint.pt") or b"")
    content[len(content) // 2] ^= 1
    storage.write(f"cells/{name}/checkpoint.pt", bytes(content))
    told: list[int] = []
    with pytest.warns(UserWarning, match="going on from the one before it"):
        ended = execute_run(config, node("b", storage.place), on_epoch=lambda h: bool(told.append(h[-1].epoch)) or True)
    assert told == [2, 3, 4]
    assert ended.val_history == undisturbed.val_history
    assert "previous-checkpoint.pt" not in storage.names(f"cells/{name}"), "once it is done there is no use for it"


def test_what_was_there_before_is_kept_by_the_storage(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    storage.send(tmp_path / "file", "a/x.pt", keep_previous=True)
    assert storage.names("a") == ["x.pt"]
    (tmp_path / "file").write_bytes(b"second")
    storage.send(tmp_path / "file", "a/x.pt", keep_previous=True)
    assert (storage.read("a/x.pt"), storage.read("a/previous-x.pt")) == (b"second", b"first")


def test_what_is_overtaken_is_given_up_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.storage.shared.PIECE_BYTES", 4)
    storage, asked = storage_at(str(tmp_path / "shared")), iter([False, False, False, True])
    storage.write("a/x.pt", b"first")
    (tmp_path / "file").write_bytes(b"second, of which two pieces are written")
    storage.send(tmp_path / "file", "a/x.pt", keep_previous=True, overtaken=lambda: next(asked))
    assert (storage.read("a/x.pt"), storage.names("a")) == (b"first", ["x.pt"])
    storage.send(tmp_path / "file", "a/x.pt", keep_previous=True, overtaken=lambda: False)
    assert storage.names("a") == ["previous-x.pt", "x.pt"]
    assert storage.read("a/x.pt") == (tmp_path / "file").read_bytes()


@pytest.mark.slow
@pytest.mark.apart
def test_two_that_train_the_same_run_leave_what_one_would(s3: str, tmp_path: Path) -> None:
    """Two sweeps use an object store: one holds the run, and the other waits for it."""
    place = s3.replace("/runs?", f"/{tmp_path.name}?")
    brief = {"data.limit": 200, "corruption.data": "urp", "train.epochs": 4, "defense.warmup_epochs": 2}
    config = build("demo", brief)
    undisturbed = execute_run(config, Workspace(tmp_path / "alone"))
    script = (
        "import sys\nfrom pathlib import Path\nfrom erat.config import RunConfig\n"
        "from orchestration.storage.workspace import Workspace\n"
        "from orchestration.run.execute import execute_run\n"
        "workspace = Workspace(Path(sys.argv[2])).sharing(sys.argv[3]).on_this_node()\n"
        "execute_run(RunConfig.model_validate_json(sys.argv[1]), workspace)\n"
    )
    both = []
    for name in "ab":
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", script, config.model_dump_json(), str(tmp_path / name / "workspace"), place]
        environment = os.environ | {"TMPDIR": str(tmp_path / name), "PYTHONPATH": str(Path(__file__).parents[4])}
        both.append(subprocess.Popen(command, env=environment))
    assert [process.wait(600) for process in both] == [0, 0]
    driver = Workspace(tmp_path / "the driver's").sharing(place)
    run = RunDirectory(driver, config.digest())
    run.fetch("result.json", "metrics.jsonl")
    result = run.read_result()
    assert result is not None and result.status == "done"
    assert result.val_history == undisturbed.val_history
    assert result.final_test_accuracy == undisturbed.final_test_accuracy
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3, 4]


def there(config: RunConfig, store: Store) -> bool:
    """Return whether the store holds everything that `corrupted_set` would read."""
    images, labels = stored_parts([config])[0]
    return (images is None or images in store) and labels in store


def test_a_set_is_crafted_once_for_all_nodes(
    storage: Storage, node: Callable[[str, str], Workspace], configure: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from erat.corruption import pipeline

    config = configure({"corruption.data": "urp"})
    made: list[int] = []
    craft = pipeline._craft

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return craft(*arguments)

    monkeypatch.setattr(pipeline, "_craft", counted)
    sets = [pipeline.corrupted_set(config, node(name, storage.place).store()) for name in "ab"]
    assert len(made) == 1
    assert torch.equal(sets[0].train.images, sets[1].train.images)
    assert torch.equal(sets[0].train.labels, sets[1].train.labels)
    assert there(config, node("c", storage.place).store())


def test_a_crafting_goes_on_elsewhere_to_the_same_bits(
    storage: Storage,
    node: Callable[[str, str], Workspace],
    configure: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from erat.corruption import pipeline, scratch
    from orchestration.storage import shared as module

    config = configure({"corruption.data": "uap", "corruption.steps": 20, "corruption.source_epochs": 1})
    undisturbed = pipeline.corrupted_set(config, Workspace(tmp_path / "alone").store())
    monkeypatch.setattr(scratch, "SECONDS", 0.0)
    monkeypatch.setattr(module, "SEND_SECONDS", 0.0)
    told: list[int] = []

    def killed(what: str, done: int, total: int) -> None:
        told.append(done)
        if what == "class vectors" and done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.corrupted_set(config, node("a", storage.place).store(), killed)
    told.clear()
    made = pipeline.corrupted_set(config, node("b", storage.place).store(), lambda what, done, total: told.append(done))
    assert 1 < told[0] < 20, "it began where the other one was"
    assert torch.equal(made.train.images, undisturbed.train.images)
    assert storage.names("crafting") == [], "what it went on from is gone"


def test_a_node_s_crafting_is_followed_from_the_driver(
    storage: Storage,
    node: Callable[[str, str], Workspace],
    configure: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, now = configure({"corruption.data": "uap"}), [0.0]
    monkeypatch.setattr("orchestration.cluster.progress.time.monotonic", lambda: now[0])
    task = CraftProgress(config, node("a", storage.place))
    driver = CraftProgress(config, Workspace(tmp_path / "the driver's").sharing(storage.place))
    assert driver.read() is None
    task.write("class vectors", 1, 9)
    now[0] += 6
    assert driver.read() == ("class vectors", 1, 9)
    task.write("class vectors", 2, 9)
    assert driver.read() is None, "a storage is not asked at each turn"
    now[0] += 6
    assert driver.read() == ("class vectors", 2, 9)
    driver.remove()
    now[0] += 6
    assert driver.read() is None
    assert storage.names("crafting") == []


def test_half_a_set_on_the_storage_is_none(
    tmp_path: Path, node: Callable[[str, str], Workspace], configure: Run
) -> None:
    """A node died while it sent a set: the manifest, which completes the set, is sent last."""
    from erat.corruption import pipeline

    config, place = configure({"corruption.data": "urp"}), str(tmp_path / "shared")
    pipeline.corrupted_set(config, node("a", place).store())
    for manifest in (tmp_path / "shared").rglob("manifest.json"):
        manifest.unlink()
    assert not there(config, node("b", place).store())
    pipeline.corrupted_set(config, node("b", place).store())
    assert there(config, node("c", place).store())


def test_a_full_storage_stops_a_run_that_then_goes_on(
    tmp_path: Path, node: Callable[[str, str], Workspace], configure: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place = configure({"defense.name": "ce", "train.epochs": 3}), str(tmp_path / "shared")
    workspace, full = node("a", place), []
    send = RunDirectory.send

    def refusing(self: RunDirectory, *names: str, **how: Any) -> None:
        if full and "checkpoint.pt" in names:
            raise StorageError(28, "the storage cannot be written: No space left on device")
        send(self, *names, **how)

    monkeypatch.setattr(RunDirectory, "send", refusing)

    def fill_up(history: Any) -> bool:
        full.append(1)
        return True

    with pytest.raises(StorageError):
        execute_run(config, workspace, on_epoch=fill_up)
    names = storage_at(place).names(f"cells/{config.digest()}")
    assert "result.json" not in names and "error.txt" not in names, "it has not failed"
    full.clear()
    ended = execute_run(config, node("b", place))
    assert ended.status == "done"
    assert ended.val_history == execute_run(config, Workspace(tmp_path / "alone")).val_history


def test_two_threads_of_a_driver_may_fetch_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "here" / "metrics.jsonl"
    with _replacing(file) as slower:
        slower.write(b"slower")
        faster = threading.Thread(target=write_atomic, args=(file, b"faster"))
        faster.start()
        faster.join()
        assert file.read_bytes() == b"faster"
    assert [(path.name, path.read_bytes()) for path in file.parent.iterdir()] == [("metrics.jsonl", b"slower")]


def test_where_it_lies_is_no_part_of_a_run(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    elsewhere = make_config({"storage.path": "s3://bucket/runs"})
    assert elsewhere.digest() == make_config().digest()
    assert make_config({"storage.path": "~/x"}).storage.path == str(Path.home() / "x")
