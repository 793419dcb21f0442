"""Writes in seconds workspaces full of runs that never ran: ledger and run directories as a study leaves them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.storage.workspace import Workspace
from orchestration.study.spec import StudySpec

EPOCHS = 16
CLASSES = [str(k) for k in range(10)]
LEVELS = {"ce": 0.3, "at": 0.4, "iss": 0.35, "dat": 0.3, "dividemix": 0.45, "unicon": 0.5, "mspl": 0.6, "erat": 0.9}


def write_workspace(
    workspace: Workspace,
    name: str,
    spec: StudySpec,
    runs: Iterable[tuple[Mapping[str, Any], str, str]],
    trials: int = 0,
) -> list[str]:
    """Write a study and its runs into a workspace.

    Args:
        workspace: the workspace.
        name: name of the study.
        spec: its specification.
        runs: for each run its settings, its source, and its state: done, failed, interrupted or proposed.
        trials: number of trials to be searched.

    Returns:
        The digests of the runs, in their order.
    """
    events = [{"event": "sweep", "time": 1.7e9, "name": name, "spec": spec.content(), "trials": trials}]
    templates: dict[str, Path] = {}
    cells = []
    for number, (params, source, state) in enumerate(runs):
        cell = spec.config(params).digest()
        cells.append(cell)
        level = LEVELS.get(str(params.get("defense.name", "erat")), 0.5) + 0.004 * (number % 13)
        proposal = {"event": "proposed", "time": 1.7e9, "sweep": name, "number": number, "params": dict(params)}
        events.append(proposal | {"source": source, "cell": cell})
        if state == "interrupted":
            workspace.run_directory(cell).mkdir(parents=True)
            begun = _epochs(level)[: EPOCHS // 3]
            (workspace.run_directory(cell) / "metrics.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in begun)
            )
        if state not in ("done", "failed"):
            continue
        error = "RuntimeError: the loss <left> the finite numbers & more" if state == "failed" else None
        result = _result(cell, state, level, error)
        events.append({"event": state, "time": 1.7e9 + 60 * number, "cell": cell, "sweep": name, "result": result})
        events[-1]["error"] = error
        kind = str(params.get("defense.name"))
        if kind not in templates:
            templates[kind] = workspace.run_directory(cell)
            _write_run(workspace.run_directory(cell), level)
        else:
            _link(templates[kind], workspace.run_directory(cell))
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.ledger.write_text("".join(json.dumps(event, default=str) + "\n" for event in events))
    return cells


def _result(cell: str, state: str, level: float, error: str | None) -> dict[str, Any]:
    last, best = (None, None) if error else (round(level, 3), round(level + 0.01, 3))
    return {
        "cell": cell,
        "status": state,
        "epochs": EPOCHS,
        "val_accuracy": last,
        "best_val_accuracy": best,
        "final_test_accuracy": last,
        "best_val_test_accuracy": best,
        "train_seconds": 40.0,
        "peak_memory_mb": 900.0,
        "noise_rate": 0.6,
        "checksum": "ab" * 32,
        "error": error,
        "val_history": [level] * EPOCHS,
        "mlflow_run_id": f"run{cell}",
    }


def _epochs(level: float) -> Sequence[dict[str, Any]]:
    """Return rows of metrics.jsonl that are as long as real ones."""
    per_class = {
        f"{part}_per_class": [150 + k for k in range(10)] for part in ("labelled", "correct", "wrong", "caught")
    }
    return [
        {
            "epoch": epoch,
            "train_loss": 2.3 - 0.0912345678 * epoch,
            "val_accuracy": level * epoch / EPOCHS,
            "test_accuracy": level * epoch / EPOCHS,
            "selection_precision": 0.39777777777,
            "selection_recall": 1.0,
            "labelled_fraction": 1.0,
            "epoch_seconds": 1.7813752880028915,
            "images_per_second": 4023.857324323882,
            "learning_rate": 0.0040000000000000036,
            "loss_terms": {"label": 2.1795496259416853 / epoch, "consistency": 0.1},
            "numbers": {"lambda_u": 25.0 * epoch / EPOCHS, "label_trust": 0.7123456},
            **per_class,
            "pseudo_label_accuracy": 0.37,
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def _write_run(folder: Path, level: float) -> None:
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)  # two studies may share a run
    epochs = _epochs(level)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    selection = [{key: row[key] for key in row if key.endswith("_class") or key == "epoch"} for row in epochs]
    counts = [[90 if k == seen else 1 for seen in range(10)] for k in range(10)]
    documents = {
        "selection.json": {"classes": CLASSES, "epochs": selection},
        "confusion.json": {"classes": CLASSES, "counts": counts},
        "environment.json": {"git_commit": "c" * 40, "git_dirty": False, "device": "cpu", "versions": {"torch": "2"}},
    }
    for name, content in documents.items():
        (artifacts / name).write_text(json.dumps(content, indent=1))


def _link(template: Path, folder: Path) -> None:
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    for file in ("metrics.jsonl", *(f"artifacts/{name}.json" for name in ("selection", "confusion", "environment"))):
        if not (folder / file).exists():
            os.link(template / file, folder / file)
