"""Tests that workers of one node which want the same crafted set at once download it once and craft nothing."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erat.corruption.store import Arrays
from orchestration.storage.shared import SharedStore, Storage, storage_at

WANTED = {"part": "images", "kind": "up", "epsilon": 0.1}
IMAGES = np.arange(120, dtype=np.uint8).reshape(30, 4)


def make() -> tuple[Arrays, dict[str, Any]]:
    return {"images": IMAGES, "labels": np.arange(30)}, {"noise_rate": 0.5}


def never() -> tuple[Arrays, dict[str, Any]]:
    raise AssertionError("crafted although the storage has it")


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Storage, Path]:
    """Return a storage that has the set and takes its time for each file, and the file that records each download."""
    storage, record = storage_at(str(tmp_path / "shared")), tmp_path / "record"
    SharedStore(tmp_path / "another node", storage).fetch(WANTED, make)
    fetch = Storage.fetch

    def slowly(self: Storage, name: str, file: Path) -> bool:
        with record.open("a") as lines:
            lines.write(f"{file.name}\n")
        time.sleep(0.02)
        return fetch(self, name, file)

    monkeypatch.setattr(Storage, "fetch", slowly)
    return storage, record


def start(storage: Storage, node: Path, processes: int) -> list[int | None]:
    """Start workers of one node, each some milliseconds after the one before, and return their exit statuses."""

    def work(number: int) -> None:
        time.sleep(number * 0.01)
        entry = SharedStore(node, storage).fetch(WANTED, never)
        np.testing.assert_array_equal(entry.arrays["images"], IMAGES)

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    return [worker.exitcode for worker in workers]


@pytest.mark.parametrize(
    ("processes", "starts"), [(4, 1), pytest.param(8, 20, marks=pytest.mark.slow)], ids=["small", "eight x twenty"]
)
def test_workers_of_a_node_download_a_set_once(
    processes: int, starts: int, slow: tuple[Storage, Path], tmp_path: Path
) -> None:
    storage, record = slow
    for number in range(starts):
        record.unlink(missing_ok=True)
        assert start(storage, tmp_path / f"node {number}", processes) == [0] * processes
        assert record.read_text().split() == ["images.npy", "labels.npy", "manifest.json"], "each file once"
        left = {path.name for path in (tmp_path / f"node {number}").iterdir() if path.suffix != ".lock"}
        assert left == {SharedStore(tmp_path, storage).path(WANTED).name}


def test_a_download_that_is_cut_off_is_begun_anew(
    slow: tuple[Storage, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, _ = slow
    fetch = Storage.fetch

    def cut(self: Storage, name: str, file: Path) -> bool:
        if file.name == "labels.npy":
            raise KeyboardInterrupt
        return fetch(self, name, file)

    store = SharedStore(tmp_path / "node", storage)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "fetch", cut)
        with pytest.raises(KeyboardInterrupt):
            store.fetch(WANTED, never)
    assert not store.path(WANTED).exists()
    (tmp_path / "node" / f".{store.path(WANTED).name}.part").mkdir()  # and what a killed process leaves
    assert WANTED in store
    assert store.fetch(WANTED, never).manifest["noise_rate"] == 0.5
