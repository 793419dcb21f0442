"""Outlines an audit before it starts: images, folds, copies, time, memory, and the files that it would write."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from erat.training import threads
from orchestration.audit.copies import copy_groups, copy_sentences
from orchestration.audit.execute import Prepared
from orchestration.audit.files import FILES
from orchestration.audit.plan import memory
from orchestration.report.notation import duration
from orchestration.storage.workspace import Workspace


def outline(ready: Prepared, workspace: Workspace) -> dict[str, Any]:
    """Return all that can be known in advance as plain values; train on a few batches for times; write nothing."""
    plan, config = ready.first, ready.first.robust.flat()
    with threads(plan.robust):
        todo = ready.stages()
    groups = copy_groups(ready.collection, ready.checked)
    folds_done = sum((ready.folder / f"fold-{number}.pt").exists() for number in range(plan.folds))
    return {
        "name": ready.name,
        "root": str(ready.collection.root),
        "images": len(plan.images),
        "trusted": 0 if ready.checked is None else len(ready.checked),
        "classes": list(plan.images.class_names),
        "skipped": [entry._asdict() for entry in ready.collection.skipped],
        "copies": [group.as_json() for group in groups],
        "sentences": copy_sentences(groups),
        "folds": plan.folds,
        "folds_done": folds_done,
        "trainings": sum(stage.kind in ("robust", "plain") for stage in todo),
        "epochs": config["train.epochs"],
        "model": config["model.name"],
        "seconds": sum(sum(stage.seconds) for stage in todo),
        "memory_mb": memory(plan),
        "would_write": [
            str(ready.folder),
            *(str(workspace.report(ready.name) / name) for name in ("index.html", *FILES)),
        ],
    }


def show_outline(content: dict[str, Any], console: Console) -> None:
    """Print an outline in a few lines."""
    need, skipped = content["memory_mb"], len(content["skipped"])
    left_out = f"; {skipped} entries could not be used" if skipped else ""
    trusted = f" and {content['trusted']} trusted ones" if content["trusted"] else ""
    lines = [
        f"images: {content['images']} of {len(content['classes'])} classes{trusted}{left_out}",
        *content["sentences"],
        f"folds: {content['folds']}, {content['folds_done']} of them done; {content['trainings']} trainings to do, of "
        f"{content['epochs']} epochs each, of {content['model']}",
        f"time: about {duration(content['seconds'])}, by a short calibration on this machine",
        "memory: not known" if need is None else f"memory: about {need:.0f} MB of tensors",
        f"would write: {content['would_write'][0]} (what is kept), {content['would_write'][1]} and "
        f"{len(content['would_write']) - 2} more beside it, and a run in MLflow",
        "nothing was written",
    ]
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False)
