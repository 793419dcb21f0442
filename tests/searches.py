"""Writes searches that never trained: the project's own queue decides, and ledger and run directories say what it did.

The accuracies follow from the settings, so that searches are the same on every machine.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from erat.result import RunResult, summarise
from orchestration.run.directory import RunDirectory
from orchestration.search.driver import make_queue
from orchestration.search.launch import make_sampler
from orchestration.search.simulate import simulate
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial

ETA, LAMBDA = "defense.eta", "defense.lambda_u"
SPACE: dict[str, Any] = {
    "name": "toy",
    "about": "η and λ, imagined",
    "parameters": {ETA: {"low": 0.0, "high": 1.0}, LAMBDA: {"low": 0.0, "high": 50.0}},
    "proposals": 12,
    "sampler": "random",
    "pruner": "halving",
    "rungs": [4, 12],
    "block": 12,
    "window": 4,
    "confirm": "none",
}


class _EnoughError(Exception):
    """Raised when as many epochs were trained as asked for."""


def search_spec(overrides: Mapping[str, Any] | None = None, **changes: Any) -> StudySpec:
    """Return the specification of a search over two settings with 36 epochs and rungs after 4 and 12 of them.

    Args:
        overrides: further dotted keys.
        changes: other entries of the space.
    """
    return StudySpec(parse_space(SPACE | changes, "the test"), "demo", {"train.epochs": 36, **(overrides or {})})


def write_search(
    workspace: Workspace, name: str, spec: StudySpec, trials: int, *, slots: int = 4, most: int | None = None,
    failing: Sequence[int] = (),
) -> Ledger:  # fmt: skip
    """Write a search into a workspace as a driver leaves it that ran to the end, or was killed.

    Args:
        workspace: the workspace.
        name: name of the study.
        spec: its specification.
        trials: number of trials of the search.
        slots: number of trials that run at a time.
        most: number of epochs in all, over all trials, after which the driver is killed; None: it runs to the end.
        failing: numbers of trials that fail at the end.

    Returns:
        The ledger.
    """
    spec, ledger = begin_as(spec, slots, trials), Ledger(workspace.ledger)
    workspace.root.mkdir(parents=True, exist_ok=True)
    register(ledger, name, spec, trials)

    def proposed(trial: Trial) -> None:
        if trial.number not in ledger.studies[name].proposals:
            event = {"number": trial.number, "params": trial.params, "source": trial.source, "cell": trial.cell}
            ledger.append("proposed", sweep=name, **event)

    queue = make_queue(
        spec,
        trials,
        name,
        ledger,
        make_sampler(spec),
        on_proposed=proposed,
        on_promoted=lambda trial, epoch: ledger.append("promoted", sweep=name, number=trial.number, epoch=epoch),
        on_stopped=lambda trial: ledger.finish(trial.so_far, sweep=name, mlflow_run_id=f"run{trial.cell}"),
    )
    keep, trained = queue.record, 0

    def record(number: int, result: RunResult, mlflow_run_id: str | None = None) -> Trial:
        nonlocal trained
        trial = queue.trials[number]
        if result.epochs > trial.epoch:
            trained += 1
        if most is not None and trained > most:
            raise _EnoughError
        rows = _rows(trial, result.epochs)
        run = RunDirectory(workspace, trial.cell)
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = summarise(trial.cell, result.status, rows)
        if number in failing and result.status == "done":
            result = RunResult(trial.cell, "failed", result.epochs, error="ValueError: it was to fail")
        kept = keep(number, result, f"run{trial.cell}")
        if result.status in ("done", "stopped", "failed", "paused"):
            ledger.finish(result, sweep=name, mlflow_run_id=f"run{trial.cell}")
        return kept

    queue.record = record  # type: ignore[method-assign]
    with contextlib.suppress(_EnoughError):
        simulate(queue, slots, _seconds, lambda trial: [row["val_accuracy"] for row in _rows(trial, trial.epochs)])
    return ledger


def _seconds(trial: Trial) -> float:
    return round(1.0 + 3.0 * float(trial.params.get(LAMBDA, 25.0)) / 50, 3)


def _rows(trial: Trial, epochs: int) -> list[dict[str, Any]]:
    """Return rows of metrics.jsonl: curves that rise to a level that the settings decide, with noise of each seed."""
    eta, weight = float(trial.params.get(ETA, 0.1)), float(trial.params.get(LAMBDA, 25.0))
    level = 0.95 - 0.25 * (eta - 0.4) ** 2 - 0.15 * (1 - weight / 50) ** 2
    noise = random.Random(f"{trial.cell} {trial.config['train.seed']}")
    level += 0.01 * noise.gauss(0, 1)
    rows = []
    for epoch in range(1, epochs + 1):
        reached = min(
            1.0, max(0.0, level * (1 - 0.8 * exp(-epoch / (3 + 4 * weight / 50))) + 0.004 * noise.gauss(0, 1))
        )
        rows.append(
            {
                "epoch": epoch,
                "train_loss": 2.3 * exp(-epoch / 8),
                "val_accuracy": round(reached, 4),
                "test_accuracy": round(max(0.0, reached - 0.02), 4),
                "epoch_seconds": _seconds(trial),
            }
        )
    return rows
