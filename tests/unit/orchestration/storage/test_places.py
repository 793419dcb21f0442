"""Tests a workspace on a full disk, on a read-only place, or moved; on real mounts where these are allowed."""

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
from orchestration.commands import overview
from orchestration.commands.plan import plan
from orchestration.crafting.sets import missing_sets
from orchestration.report.document import write_report
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.run.heartbeat import is_driven, is_running
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.tracking.outbox import Spool
from orchestration.tracking.tracker import Tracker

TINY = {"data.limit": 120, "data.image_size": 8, "train.epochs": 2, "train.batch_size": 16, "corruption.data": "urp"}


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a separate disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "none", str(place))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Return a function that shows a folder at a second place, where it cannot be written."""
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
    """Use up all free space except for this many bytes."""
    free = os.statvfs(disk)
    file = disk / "filler"
    file.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def spec() -> StudySpec:
    return StudySpec.listing("list", "", [{"defense.name": "ce"}], "demo", TINY)


@pytest.fixture
def config(spec: StudySpec) -> RunConfig:
    return spec.config({"defense.name": "ce"})


@pytest.fixture
def finished(spec: StudySpec, config: RunConfig, tmp_path: Path) -> Workspace:
    """Make a workspace with a finished sweep of one run."""
    workspace = Workspace(tmp_path / "workspace")
    ledger = Ledger(workspace.ledger)
    register(ledger, "s", spec, 0)
    cell = config.digest()
    ledger.append("proposed", sweep="s", number=0, params={"defense.name": "ce"}, source="baseline", cell=cell)
    result = execute_run(config, workspace)
    ledger.finish(result, sweep="s")
    return workspace


def test_a_full_disk_costs_nothing_finished_and_tears_nothing(
    disk: Path, finished: Workspace, config: RunConfig, spec: StudySpec
) -> None:
    workspace = Workspace(disk / "workspace")
    shutil.copytree(finished.root, workspace.root)
    before = files(workspace.root)
    filler = fill(disk)
    ledger, other = Ledger(workspace.ledger), config.with_seed(7)

    def refused(act: Callable[[], Any]) -> None:
        with pytest.raises(OSError, match="No space left") as caught:
            act()
        assert is_storage_fault(caught.value)
        assert caught.value.errno == errno.ENOSPC

    refused(lambda: execute_run(other, workspace))
    refused(lambda: ledger.append("sweep", name="wide", spec={"x": "y" * 10_000}, trials=1))
    refused(lambda: Spool(workspace.root / "outbox", "server").append(("_send_end", ["x" * 10_000])))
    refused(lambda: corrupted_set(spec.config({"defense.name": "ce", "corruption.seed": 1}), workspace.store()))
    with pytest.raises(UserError, match="cannot be written: No space left"):
        write_report(workspace, "s", "html", None)
    with pytest.raises(UserError, match=r"the disk is full; free some space$"):
        Tracker.open(workspace)
    after = files(workspace.root)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if ".part" in name]

    filler.unlink()
    assert execute_run(other, workspace).status == "done"
    assert not workspace.mlflow_database.exists(), "half made, it would be taken for a damaged one"
    ledger.append("sweep", name="wide", spec=spec.content(), trials=1)
    assert list(Ledger(workspace.ledger).studies) == ["s", "wide"]


def test_a_run_that_meets_a_full_disk_goes_on(disk: Path, config: RunConfig, tmp_path: Path) -> None:
    workspace, reference = Workspace(disk / "workspace"), Workspace(tmp_path / "reference")
    execute_run(config, reference)
    fillers: list[Path] = []

    def fill_after_one(history: Any) -> bool:
        if len(history) == 1:
            fillers.append(fill(disk, 0))
        return True

    with pytest.raises(OSError, match="No space left"):
        execute_run(config, workspace, on_epoch=fill_after_one)
    run = RunDirectory(workspace, config.digest())
    assert run.read_result() is None
    assert len(run.read_metrics()) == 1
    fillers[0].unlink()
    epochs: list[int] = []
    assert (
        execute_run(config, workspace, on_epoch=lambda history: not epochs.append(history[-1].epoch)).status == "done"
    )
    assert epochs == [1, 2], "the first is told again, not trained again"
    weights = [
        torch.load(one.run_directory(config.digest()) / "artifacts" / "model.pt") for one in (workspace, reference)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_what_reads_works_where_nothing_can_be_written(
    finished: Workspace,
    read_only: Callable[[Path], Path],
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Tracker.open(finished)
    before = files(finished.root)
    monkeypatch.setenv("ERAT_HOME", str(read_only(finished.root)))
    workspace = Workspace.from_environment(reading=True)
    console = Console(file=io.StringIO(), width=120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert overview.of_all(workspace, console)[0]["done"] == 1
        assert overview.of_sweep(workspace, "s", console)["done"] == 1
        assert not is_driven(workspace, "s")
        assert not is_running(RunDirectory(workspace, config.digest()))
        assert missing_sets([config], workspace) == []
        assert plan([config], workspace, Ledger(workspace.ledger), console)["done"] == 1
    for form in ("html", "csv", "md", "latex"):
        assert write_report(workspace, "s", form, str(tmp_path / f"report.{form}")).is_file()
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        write_report(workspace, "s", "html", None)
    with pytest.raises(UserError, match="is not writable"):
        Workspace.from_environment()
    with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
        workspace.store().fetch({"part": "images"}, lambda: ({}, {}))
    assert files(finished.root) == before


def test_a_moved_workspace_goes_on_from_its_checkpoint(config: RunConfig, tmp_path: Path) -> None:
    old, new = Workspace(tmp_path / "old"), Workspace(tmp_path / "new" / "workspace")
    execute_run(config, old, on_epoch=lambda history: False)
    (old.run_directory(config.digest()) / "result.json").unlink()
    new.root.parent.mkdir()
    old.root.rename(new.root)
    old.root.write_text("a trap: nothing may be made here")
    epochs: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = execute_run(config, new, on_epoch=lambda history: not epochs.append(history[-1].epoch))
    assert (result.status, epochs) == ("done", [1, 2])
    assert old.root.read_text().startswith("a trap")
    assert isinstance(new.store(), Store)
