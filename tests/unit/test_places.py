"""A home on a full disk, at a place that cannot be written, or moved elsewhere; on real mounts, where allowed."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from erat.config import RunConfig
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.errors import StoreError, UserError, is_storage_fault
from orchestration import overview
from orchestration._outbox import Spool
from orchestration.crafting import missing_sets
from orchestration.home import Home
from orchestration.presence import is_driven, is_running
from orchestration.reporting import write_report
from orchestration.spaces import SearchSpace
from orchestration.state import Ledger
from orchestration.sweep import SweepSpec, register
from orchestration.tracking import Tracker
from orchestration.trial import read_metrics, read_result, run_cell

TINY = {"data.limit": 120, "data.image_size": 8, "train.epochs": 2, "train.batch_size": 16, "corruption.data": "urp"}


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "none", str(place))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Shows a folder at a second place, where it cannot be written."""
    place = tmp_path / "read-only"
    place.mkdir()
    mounted = []

    def show(folder: Path) -> Path:
        mount("--bind", str(folder), str(place))
        mounted.append(place)
        mount("-o", "remount,bind,ro", str(place))
        return place

    yield show
    for one in mounted:
        subprocess.run(["umount", "--lazy", str(one)], check=True)


def fill(disk: Path, left: int = 4096) -> Path:
    """Take all room but this many bytes."""
    free = os.statvfs(disk)
    file = disk / "filler"
    file.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def spec() -> SweepSpec:
    space = SearchSpace(name="list", about="", proposals=0, baselines=[{"defense.name": "ce"}])
    return SweepSpec(space, "demo", TINY)


@pytest.fixture
def config(spec: SweepSpec) -> RunConfig:
    return spec.config({"defense.name": "ce"})


@pytest.fixture
def finished(spec: SweepSpec, config: RunConfig, tmp_path: Path) -> Home:
    """A home with a sweep of one run, done."""
    home = Home(tmp_path / "home")
    ledger = Ledger(home.ledger)
    register(ledger, "s", spec, 0)
    cell = config.digest()
    ledger.append("proposed", sweep="s", number=0, params={"defense.name": "ce"}, source="baseline", cell=cell)
    result = run_cell(config, home)
    ledger.finish(cell, "done", vars(result), sweep="s", error=None)
    return home


def test_a_full_disk_costs_nothing_finished_and_tears_nothing(
    disk: Path, finished: Home, config: RunConfig, spec: SweepSpec
) -> None:
    home = Home(disk / "home")
    shutil.copytree(finished.root, home.root)
    before = files(home.root)
    filler = fill(disk)
    ledger, other = Ledger(home.ledger), config.with_seed(7)

    def refused(act: Callable[[], Any]) -> None:
        with pytest.raises(OSError, match="No space left") as caught:
            act()
        assert is_storage_fault(caught.value)
        assert caught.value.errno == errno.ENOSPC

    refused(lambda: run_cell(other, home))
    refused(lambda: ledger.append("sweep", name="wide", spec={"x": "y" * 10_000}, trials=1))
    refused(lambda: Spool(home.root / "outbox", "server").append(("_send_end", ["x" * 10_000])))
    refused(lambda: corrupted_set(spec.config({"defense.name": "ce", "corruption.seed": 1}), home.store()))
    with pytest.raises(UserError, match="cannot be written: No space left"):
        write_report(home, "s", "html", None)
    with pytest.raises(UserError, match=r"the disk is full; free some space$"):
        Tracker.open(home)
    after = files(home.root)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if ".part" in name]

    filler.unlink()
    assert run_cell(other, home).status == "done"
    assert not home.mlflow_database.exists(), "half made, it would be taken for a damaged one"
    ledger.append("sweep", name="wide", spec=spec.content(), trials=1)
    assert list(Ledger(home.ledger).sweeps) == ["s", "wide"]


def test_a_run_that_meets_a_full_disk_goes_on(disk: Path, config: RunConfig, tmp_path: Path) -> None:
    home, reference = Home(disk / "home"), Home(tmp_path / "reference")
    run_cell(config, reference)
    fillers: list[Path] = []

    def fill_after_one(history: Any) -> bool:
        if len(history) == 1:
            fillers.append(fill(disk, 0))
        return True

    with pytest.raises(OSError, match="No space left"):
        run_cell(config, home, on_epoch=fill_after_one)
    folder = home.cell(config.digest())
    assert read_result(folder) is None
    assert len(read_metrics(folder)) == 1
    fillers[0].unlink()
    epochs: list[int] = []
    assert run_cell(config, home, on_epoch=lambda history: not epochs.append(history[-1].epoch)).status == "done"
    assert epochs == [1, 2], "the first is told again, not trained again"
    weights = [torch.load(one.cell(config.digest()) / "artifacts" / "model.pt") for one in (home, reference)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_what_reads_works_where_nothing_can_be_written(
    finished: Home,
    read_only: Callable[[Path], Path],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Tracker.open(finished)
    before = files(finished.root)
    monkeypatch.setenv("ERAT_HOME", str(read_only(finished.root)))
    home = Home.from_environment(reading=True)
    console = Console(file=io.StringIO(), width=120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert overview.of_all(home, console)[0]["done"] == 1
        assert overview.of_sweep(home, "s", console)["done"] == 1
        assert not is_driven(home, "s")
        assert not is_running(home.cell(config.digest()))
        assert missing_sets([config], home) == []
        assert overview.plan([config], home, Ledger(home.ledger), console, slots=1)["done"] == 1
    for form in ("html", "csv", "md", "latex"):
        assert write_report(home, "s", form, str(tmp_path / f"report.{form}")).is_file()
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        write_report(home, "s", "html", None)
    with pytest.raises(UserError, match="is not writable"):
        Home.from_environment()
    with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
        home.store().fetch({"part": "images"}, lambda: ({}, {}))
    assert files(finished.root) == before


def test_a_moved_home_goes_on_from_its_checkpoint(config: RunConfig, tmp_path: Path) -> None:
    old, new = Home(tmp_path / "old"), Home(tmp_path / "new" / "home")
    run_cell(config, old, on_epoch=lambda history: False)
    (old.cell(config.digest()) / "result.json").unlink()
    new.root.parent.mkdir()
    old.root.rename(new.root)
    old.root.write_text("a trap: nothing may be made here")
    epochs: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = run_cell(config, new, on_epoch=lambda history: not epochs.append(history[-1].epoch))
    assert (result.status, epochs) == ("done", [1, 2])
    assert old.root.read_text().startswith("a trap")
    assert isinstance(new.store(), Store)
