"""Measures what the default sweep takes besides the training of its trials, in five minutes (if named, or `--long`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestration.storage.workspace import Workspace
from tests.benchmarks.harness import Comparison, Pairs

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Spent:
    """The slot-seconds of a finished sweep: `total` is slots x wall-clock time, the other attributes are its parts."""

    total: float
    training: float
    start: float
    crafting: float
    first_trial: float
    in_cells: float
    idle: float
    end: float


def comparisons() -> Iterator[Comparison]:
    """Yield the whole and its parts; `in trials, not training` is evaluation, checkpoints, waiting for the driver."""
    with TemporaryDirectory() as folder:
        spent = _spent(Path(folder), _swept(Path(folder)), slots=os.cpu_count() or 1)
    lines = {
        "default sweep, slots x wall": (spent.total, 1.15),
        "- start: tracker and Ray": (spent.start, None),
        "- crafting, on one slot": (spent.crafting, None),
        "- Tune's start, up to the first trial": (spent.first_trial, None),
        "- in trials, not training": (spent.in_cells, None),
        "- slots without a trial": (spent.idle, None),
        "- end: tables and figures": (spent.end, None),
    }
    for name, (seconds, bound) in lines.items():
        yield Comparison(name, "its trials' training", bound, note="one run", pairs=partial(_once, seconds, spent))


def _once(seconds: float, spent: Spent, repeats: int) -> Pairs:
    return [(seconds, spent.training)]


def _swept(folder: Path) -> dict[str, Any]:
    """Run `sweep --json` and return what it prints at its end; its view goes to standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    ended = subprocess.run(
        [sys.executable, "orchestrate.py", "sweep", "--space", "budgets", "--json"],
        cwd=ROOT,
        env=environment | {"ERAT_HOME": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    content: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return content


def _spent(folder: Path, content: dict[str, Any], slots: int) -> Spent:
    """Compute where the time went, from the figures of the sweep and the times of its files."""
    wall, workspace = content["wall_seconds"], Workspace(folder)
    training = sum(run["train_seconds"] for run in content["runs"])
    cells = [workspace.run_directory(run["cell"]) for run in content["runs"]]
    begun = [(cell / "config.json").stat().st_mtime for cell in cells]
    ended = [(cell / "result.json").stat().st_mtime for cell in cells]
    in_cells = sum(ended) - sum(begun)
    events = [json.loads(line) for line in workspace.ledger.read_text().splitlines()]
    crafted = min(file.stat().st_mtime for file in workspace.crafted.glob(".*.lock"))  # created when the crafting began
    registered = next(event["time"] for event in events if event["event"] == "sweep")
    over = max(file.stat().st_mtime for file in workspace.report(content["name"]).iterdir())
    return Spent(
        total=slots * wall,
        training=training,
        start=slots * (crafted - (over - wall)),
        crafting=slots * (registered - crafted),
        first_trial=slots * (min(begun) - registered),
        in_cells=in_cells - training,
        idle=slots * (max(ended) - min(begun)) - in_cells,
        end=slots * (over - max(ended)),
    )
