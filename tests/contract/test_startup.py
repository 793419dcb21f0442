"""Tests what commands that only read or explain may load, so that they answer at once and in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erat.config import build
from erat.result import RunResult
from orchestration.cli import app
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.grids import load_grid, specification
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec

ROOT = Path(__file__).parents[2]
HEAVY = {
    "matplotlib",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "torch",
    "torchvision",
}
# Runs commands one after another in one process; the last line names the heavy packages that were loaded.
RUN = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from orchestration.commands.console import guarded
from orchestration.cli import app
codes, said = [], []
for words in json.loads(sys.argv[1]):
    with io.StringIO() as out, redirect_stdout(out), redirect_stderr(out):
        codes.append(guarded(lambda: app(words, standalone_mode=False)))
        said.append(out.getvalue())
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(json.loads(sys.argv[2])))
print(json.dumps([codes, heavy, said]))
"""
FIGURES = {"val_accuracy": 0.5, "best_val_accuracy": 0.6, "final_test_accuracy": 0.5, "best_val_test_accuracy": 0.5}
EPOCH = {"epoch": 1, "val_accuracy": 0.5, "test_accuracy": 0.5, "epoch_seconds": 1.0}


def fill(workspace: Workspace, name: str, spec: StudySpec, trials: int) -> None:
    """Add a study to the ledger whose runs are done, failed, stopped, interrupted and not begun, in turn."""
    ledger = Ledger(workspace.ledger)
    register(ledger, name, spec, trials)
    points = spec.space.scaled_points(spec.base.data.name)
    planned = [("baseline", entry) for entry in spec.space.baselines] + [("paper", point) for point in points]
    for number, (source, params) in enumerate(planned):
        digest, state = spec.config(params).digest(), ("done", "failed", "stopped", "interrupted", "none")[number % 5]
        if state == "none":
            continue
        ledger.append("proposed", sweep=name, number=number, params=params, source=source, cell=digest)
        run = RunDirectory(workspace, digest)
        run.prepare()
        folder = run.path
        (folder / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n")
        if state != "interrupted":
            result = {"cell": digest, "status": state, "epochs": 16, "train_seconds": 3.0, **FIGURES}
            (folder / "result.json").write_text(json.dumps(result))
            error = "RuntimeError: a test" if state == "failed" else None
            ledger.finish(RunResult.of(result | {"error": error}), sweep=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a workspace with a search and the whole of Table III, 168 runs."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    fill(workspace, "budgets", StudySpec(load_space("budgets"), "demo", {}), 9)
    fill(workspace, "table3", specification(load_grid("table3"), "demo", {}), 0)
    return workspace.root


def loaded(folder: Path, *commands: list[str]) -> tuple[list[int], list[str], list[str]]:
    """Return (exit statuses, heavy packages that are loaded in the end, output of each)."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands), json.dumps(sorted(HEAVY))],
        cwd=ROOT,
        env=os.environ | {"ERAT_HOME": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    codes, heavy, said = json.loads(done.stdout)
    return codes, heavy, said


def test_help_loads_nothing_heavy(folder: Path) -> None:
    verbs = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
    assert {"status", "report", "train"} <= set(verbs)
    codes, heavy, said = loaded(folder, ["--help"], *([verb, "--help"] for verb in verbs))
    assert (set(codes), heavy) == ({0}, [])
    assert all("Examples" in each for each in said[1:])


def test_reading_a_workspace_loads_nothing_heavy(folder: Path) -> None:
    """All in one process: what none of them has loaded in the end, each of them does without."""
    commands = [
        (["status"], 0, "budgets"),
        (["status", "--json"], 0, '"table3"'),
        (["status", "budgets"], 0, "retry budgets"),
        (["status", "table3"], 0, "of 168"),
        (["status", "table3", "--json"], 0, '"trials": 168'),
        (["status", "nobody"], 2, "unknown sweep 'nobody'"),
        (["leaderboard", "table3"], 0, "index.html"),
        (["cancel", "table3"], 2, "nothing runs under 'table3'"),
    ]
    codes, heavy, said = loaded(folder, *(words for words, _, _ in commands))
    assert (codes, heavy) == ([status for _, status, _ in commands], [])
    for (words, _, shows), told in zip(commands, said, strict=True):
        assert shows in told, words


def test_a_configuration_is_made_without_torch() -> None:
    keys: list[dict[str, Any]] = [{}, {"corruption.data": "l2c", "defense.name": "unicon"}, {"data.name": "folder"}]
    wanted = [(preset, entry) for preset in ("demo", "paper", "official") for entry in keys]
    made = "[c.build(preset, keys, quiet=True).digest() for preset, keys in json.loads(sys.argv[1])]"
    code = f"import sys, json, erat.config as c; print(json.dumps([{made}, list(sys.modules)]))"
    words = [sys.executable, "-c", code, json.dumps(wanted)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    digests, modules = json.loads(done.stdout)
    assert digests == [build(preset, entry, quiet=True).digest() for preset, entry in wanted]
    assert not HEAVY & set(modules)
