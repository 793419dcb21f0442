"""Tests a run by `erat.train`: it has the same figures as on the command line, and resumes after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import erat
from erat.config import RunConfig
from orchestration.run.execute import execute_run
from orchestration.storage.workspace import Workspace

Make = Callable[..., RunConfig]
WANTED = {"data.name": "toy", "defense.name": "ce", "corruption.data": "urp", "corruption.labels": "symmetric"}


@pytest.fixture
def config(make_config: Make, toy: object) -> RunConfig:
    return make_config(WANTED)


def figures(result: erat.RunResult) -> erat.RunResult:
    """Return a result without what differs from one execution to the next."""
    return replace(result, train_seconds=0.0, peak_memory_mb=0.0)


def test_it_is_what_a_run_in_a_workspace_is(config: RunConfig, tmp_path: Path) -> None:
    known = Workspace(tmp_path / "workspace")
    told: list[int] = []
    result = erat.train(config, folder=tmp_path / "mine", on_epoch=lambda history: told.append(len(history)))
    other = execute_run(known.fingerprints()(config), known)
    assert figures(result) == figures(other)
    assert (result.status, told) == ("done", [1, 2, 3])
    mine = torch.load(tmp_path / "mine" / "model.pt", weights_only=True)
    theirs = torch.load(known.run_directory(result.cell) / "artifacts" / "model.pt", weights_only=True)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_it_goes_on_from_its_folder(config: RunConfig, tmp_path: Path) -> None:
    whole = erat.train(config, folder=tmp_path / "whole")

    def leave(history: list[erat.EpochReport]) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erat.train(config, folder=tmp_path / "cut", on_epoch=leave)
    told: list[int] = []
    rest = erat.train(config, folder=tmp_path / "cut", on_epoch=lambda history: told.append(len(history)))
    assert told == [1, 2, 3], "the first epoch is told again, not trained again"
    assert figures(rest) == figures(whole)
    assert erat.load_config(tmp_path / "cut" / "config.json").digest() == rest.cell


def test_another_run_s_folder_is_refused_and_stays(config: RunConfig, tmp_path: Path) -> None:
    erat.train(config, folder=tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(erat.UserError, match="is of another run"):
        erat.train(config.with_seed(1), folder=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_false_ends_it(config: RunConfig) -> None:
    result = erat.train(config, on_epoch=lambda history: np.bool_(len(history) < 2))
    assert (result.status, result.epochs) == ("stopped", 2)


def test_runs_share_a_store(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = erat.train(config, store=tmp_path / "sets")
    monkeypatch.setattr("erat.corruption.pipeline._craft", lambda *_: pytest.fail("crafted again"))
    assert erat.train(config.with_seed(1), store=tmp_path / "sets").checksum == first.checksum
    assert not (tmp_path / "crafted").exists()


def test_several_workers_need_a_study(make_config: Make) -> None:
    with pytest.raises(erat.UserError, match=r"train.workers must be 1 in erat.train, got 2"):
        erat.train(make_config({"train.workers": 2}))


def test_a_folder_that_cannot_be_one_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(erat.UserError, match=r"folder must be a folder that can be written, got .*file: File exists"):
        erat.train(config, folder=tmp_path / "file")
