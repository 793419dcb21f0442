"""The store: made once, whole or not at all, checked when read, its arrays shared and read-only."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erat.corruption.store import Arrays, Entry, Store
from erat.errors import UserError

WANTED = {"part": "images", "kind": "up", "epsilon": 0.1}


def make() -> tuple[Arrays, dict[str, Any]]:
    return {"images": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": np.array([2, 1, 0])}, {"noise_rate": 0.5}


def never() -> tuple[Arrays, dict[str, Any]]:
    raise AssertionError("made again")


def left_over(root: Path) -> list[str]:
    """What lies in the store but for locks."""
    return [path.name for path in root.iterdir() if path.suffix != ".lock"]


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_made_once_and_read_afterwards(tmp_path: Path) -> None:
    first = Store(tmp_path / "crafted").fetch(WANTED, make)
    again = Store(tmp_path / "crafted").fetch(dict(reversed(WANTED.items())), never)
    for entry in (first, again):
        assert sorted(entry.arrays) == ["images", "labels"]
        np.testing.assert_array_equal(entry.arrays["images"], make()[0]["images"])
        assert entry.manifest["noise_rate"] == 0.5
        assert entry.manifest["parameters"] == WANTED
        assert entry.manifest["path"] == str(entry.path)
    assert again.manifest["checksum"] == first.manifest["checksum"]
    assert left_over(tmp_path / "crafted") == [first.path.name]


def test_other_parameters_are_another_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fetch(WANTED, make)
    assert WANTED in store
    other = WANTED | {"epsilon": 0.2}
    assert other not in store
    store.fetch(other, lambda: ({"images": np.zeros(1)}, {}))
    assert len(left_over(tmp_path)) == 2
    assert store.fetch(WANTED, never).arrays["images"].shape == (3, 4)


def test_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    images = Store(tmp_path).fetch(WANTED, make).arrays["images"]
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0] = 7


def test_a_checksum_covers_content_names_and_nothing_else(tmp_path: Path) -> None:
    def checksum(store: str, arrays: Arrays, **fields: Any) -> str:
        entry: Entry = Store(tmp_path / store).fetch(WANTED, lambda: (arrays, fields))
        return str(entry.manifest["checksum"])

    base = checksum("a", {"x": np.arange(3)}, when="now")
    assert checksum("b", {"x": np.arange(3)}, when="then") == base
    assert checksum("c", {"y": np.arange(3)}) != base
    assert checksum("d", {"x": np.arange(1, 4)}) != base


def test_a_workspace_lies_beside_its_entry_and_goes_when_that_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    workspace = store.workspace(WANTED)
    assert workspace != store.workspace(WANTED | {"epsilon": 0.2})
    assert workspace.parent == tmp_path

    def interrupted() -> tuple[Arrays, dict[str, Any]]:
        workspace.mkdir()
        (workspace / "state.pt").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch(WANTED, interrupted)
    assert (workspace / "state.pt").read_bytes() == b"half"
    assert WANTED not in store
    store.workspace(WANTED | {"epsilon": 0.2}).mkdir()
    entry = store.fetch(WANTED, make)
    assert sorted(left_over(tmp_path)) == sorted([store.workspace(WANTED | {"epsilon": 0.2}).name, entry.path.name])


# --- two at once -----------------------------------------------------------------------------------------------------


def fetch_slowly(root: str, record: str, barrier: Barrier) -> None:
    """One of two processes that want the same entry at the same time."""

    def slowly() -> tuple[Arrays, dict[str, Any]]:
        with Path(record).open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return make()

    barrier.wait(timeout=60)
    entry = Store(Path(root)).fetch(WANTED, slowly)
    np.testing.assert_array_equal(entry.arrays["images"], make()[0]["images"])


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    record = tmp_path / "record"
    arguments = (str(tmp_path / "crafted"), str(record), barrier)
    processes = [context.Process(target=fetch_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert record.read_text() == "made\n"


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_maker_leaves_nothing_and_holds_no_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        Store(tmp_path).fetch(WANTED, lambda: (_ for _ in ()).throw(RuntimeError("no luck")))
    assert left_over(tmp_path) == []
    assert WANTED not in Store(tmp_path)
    Store(tmp_path).fetch(WANTED, make)


def test_a_failure_half_way_through_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []

    def save_one(file: Any, array: Any) -> None:
        saved.append(array)
        if len(saved) == 2:
            raise KeyboardInterrupt
        file.write(b"something")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_one)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).fetch(WANTED, make)
    assert left_over(tmp_path) == []


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = Store(tmp_path).path(WANTED)
    part = tmp_path / f".{path.name}.part"
    part.mkdir()
    (part / "rubbish.npy").write_bytes(b"half")
    assert sorted(Store(tmp_path).fetch(WANTED, make).arrays) == ["images", "labels"]


def damage_pixel(path: Path) -> None:
    raw = bytearray((path / "images.npy").read_bytes())
    raw[-1] ^= 1
    (path / "images.npy").write_bytes(raw)


def cut_off(path: Path) -> None:
    raw = (path / "images.npy").read_bytes()
    (path / "images.npy").write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    "damage",
    [
        damage_pixel,
        cut_off,
        lambda path: (path / "labels.npy").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text('{"checksum": '),
        lambda path: (path / "manifest.json").write_text(json.dumps({"no": "checksum"})),
    ],
    ids=["pixel", "cut off", "array gone", "manifest gone", "manifest cut off", "no checksum"],
)
def test_damage_is_seen_said_and_mended(tmp_path: Path, damage: Any) -> None:
    store = Store(tmp_path)
    path = store.fetch(WANTED, make).path
    damage(path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged.*made again"):
        entry = store.fetch(WANTED, make)
    np.testing.assert_array_equal(entry.arrays["images"], make()[0]["images"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.fetch(WANTED, never)


def test_a_damaged_entry_is_not_there_and_a_missing_one_is_no_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert WANTED not in store
        path = store.fetch(WANTED, make).path
        assert WANTED in store
    damage_pixel(path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged.*made again"):
        assert WANTED not in store
    damage_pixel(path)  # the same bit once more
    assert WANTED in store


def test_a_file_in_the_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / "crafted").write_text("not a folder")
    for root in (tmp_path / "crafted", tmp_path / "crafted" / "deeper"):
        with pytest.raises(UserError, match=rf"^the store {root} cannot be written: "):
            Store(root).fetch(WANTED, make)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written: refused"):
        Store(tmp_path).fetch(WANTED, make)
    assert left_over(tmp_path) == []


def test_other_errors_are_not_dressed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="the disk is broken") as caught:
        Store(tmp_path).fetch(WANTED, make)
    assert not isinstance(caught.value, UserError)
