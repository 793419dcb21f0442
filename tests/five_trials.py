"""Provides a search of which five of six trials are known, one in each state, and a console whose words can be read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from erat.result import RunResult
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec

ETA = "defense.eta"
TINY = {"data.limit": 200, "train.epochs": 4, "corruption.data": "urp"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120, color_system=None)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def spec(overrides: Mapping[str, Any] | None = None) -> StudySpec:
    content = {
        "name": "mine",
        "about": "a test",
        "parameters": {ETA: {"low": 0, "high": 1}},
        "points": [{ETA: 0.1}, {ETA: 0.2}, {ETA: 0.3}, {ETA: 0.4}],
        "baselines": [{"defense.name": "ce"}],
    }
    return StudySpec(parse_space(content, "mine.yaml"), "demo", TINY | dict(overrides or {}))


def propose(ledger: Ledger, made: StudySpec, number: int, params: dict[str, Any], source: str) -> str:
    cell = made.config(params).digest()
    ledger.append("proposed", sweep="a", number=number, params=params, source=source, cell=cell)
    return cell


def result(cell: str, status: str, epochs: int = 4, error: str | None = None) -> RunResult:
    return RunResult(cell, status, epochs, 0.5, 0.6, 0.5, 0.5, train_seconds=3.0, error=error, val_history=[0.6, 0.5])


@pytest.fixture
def ledger(workspace: Workspace) -> Ledger:
    """Make a ledger with five of six trials known: one done, failed, stopped, interrupted and not begun each."""
    made, ledger = spec(), Ledger(workspace.ledger)
    register(ledger, "a", made, 5)
    cells = [
        propose(ledger, made, 0, {"defense.name": "ce"}, "baseline"),
        *(propose(ledger, made, number, {ETA: number / 10}, "paper") for number in (1, 2, 3, 4)),
    ]
    ledger.finish(result(cells[0], "done"), sweep="a")
    ledger.finish(result(cells[1], "failed", epochs=1, error="boom"), sweep="a")
    ledger.finish(result(cells[2], "stopped", epochs=2), sweep="a")
    workspace.run_directory(cells[3]).mkdir(parents=True)
    row = {"epoch": 1, "val_accuracy": 0.3, "test_accuracy": 0.2, "epoch_seconds": 1.0}
    (workspace.run_directory(cells[3]) / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return ledger
