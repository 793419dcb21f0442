"""Summarises a sweep: its table, the best setting, and the command that runs that setting again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.report.notation import MISSING, accuracy, duration, finite, header, origin, value
from orchestration.report.table import Cell, Column, Row, Table
from orchestration.study.trial import Trial

_CHOICE = "★ chosen by validation accuracy (best epoch); test accuracy is for the record and chooses nothing."
_LEFT = ("source", "status")
_RECORDED = (
    "best_val_accuracy",
    "final_test_accuracy",
    "best_val_test_accuracy",
    "epoch",
    "epochs",
    "seconds",
    "mlflow_run_id",
    "error",
)


def best(rows: Sequence[Trial]) -> Trial | None:
    """Return the best setting: the largest `best_val_accuracy`; of equal ones the lowest number.

    A trial that a scheduler stopped is eligible only if no trial is done. A baseline is never eligible, because it is
    not a setting of the space. Test accuracy plays no part.
    """
    for status in ("done", "stopped"):
        eligible = [row for row in rows if row.status == status and row.source != "baseline" and _rank(row)[0] == 0]
        if eligible:
            return min(eligible, key=_rank)
    return None


def _rank(row: Trial) -> tuple[int, float, int]:
    """Return a sort key: measured before unmeasured, then the better validation accuracy, then the lower number."""
    found = finite(row.best_val_accuracy)
    return (1, 0.0, row.number) if found is None else (0, -found, row.number)


def ranked(rows: Sequence[Trial]) -> list[Trial]:
    """Sort trials by validation accuracy, best first; those without one come last."""
    return sorted(rows, key=_rank)


def caption(rows: Sequence[Trial]) -> str:
    """Say how the choice was made and, if the configurations tell, which the validation images were."""
    said = {(row.config["val.trusted"], row.config.get("val.objective")) for row in rows if "val.trusted" in row.config}
    if len(said) != 1:
        return _CHOICE
    trusted, objective = said.pop()
    kind = "clean, a small checked set" if trusted else "corrupted like the training images"
    attacked = ", judged on perturbed images" if objective == "perturbed" else ""
    return f"{_CHOICE} Validation: {kind}{attacked} (val.trusted={str(bool(trusted)).lower()})."


def summary(rows: Sequence[Trial], columns: Sequence[str]) -> Table:
    """Return all trials, best validation accuracy first.

    Args:
        rows: the trials, in any order.
        columns: the searched dotted keys.
    """
    chosen = best(rows)
    accuracies = ("val (best)", "test (last)", "test (best val)")
    names = ("#", "source", *map(header, columns), *accuracies, "epochs", "status", "time")
    return Table.of(
        (Column(name, "left" if name in _LEFT else "right") for name in names),
        (_line(row, columns, row is chosen) for row in ranked(rows)),
        caption=caption(rows),
        dense=True,
    )


def _line(row: Trial, columns: Sequence[str], chosen: bool) -> Row:
    number = f"★ {row.number}" if chosen else str(row.number)
    values = (
        Cell(number, runs=() if row.status == "queued" else (row.cell,)),
        origin(row),
        *(value(key, row.params.get(key)) for key in columns),
        accuracy(row.best_val_accuracy),
        accuracy(row.final_test_accuracy),
        accuracy(row.best_val_test_accuracy),
        f"{row.epoch}/{row.epochs}" if row.epochs else MISSING,
        Cell(row.status, state=row.status),
        duration(row.seconds or None),
    )
    return Row(values, chosen)


def best_sentence(rows: Sequence[Trial], columns: Sequence[str]) -> str:
    """Say which setting is best, and what it reached."""
    row = best(rows)
    if row is None:
        return "No trial has ended yet."
    settings = ", ".join(f"{header(key)} = {value(key, row.params.get(key))}" for key in columns)
    return (
        f"Best by validation: trial {row.number} with {settings}: {accuracy(row.best_val_accuracy)} in validation, "
        f"{accuracy(row.final_test_accuracy)} on clean test images after the last epoch."
    )


def records(rows: Sequence[Trial], columns: Sequence[str]) -> Table:
    """Return everything about each trial, unrounded, under dotted keys; values that were not measured are empty."""
    lines = []
    for row in ranked(rows):
        settings = [row.params.get(key) for key in columns]
        measured = [getattr(row, name) for name in _RECORDED]
        lines.append([row.number, row.cell, row.source, row.status, *settings, *measured])
    return Table.of(["number", "cell", "source", "status", *columns, *_RECORDED], lines)


def paste_command(row: Trial, preset: str, overrides: Mapping[str, Any]) -> str:
    """Return the shell command that runs the configuration of a trial again.

    Args:
        row: the trial; its searched values take precedence over `overrides`.
        preset: the preset that the sweep started from.
        overrides: the KEY=VALUE settings that the user gave for the sweep.
    """
    settings = {**overrides, **row.params}
    settings.pop("preset", None)
    words = ["python", "orchestrate.py", "train", "--preset", preset]
    return shlex.join(words + [f"{key}={_typed(setting)}" for key, setting in settings.items()])


def _typed(setting: Any) -> str:
    """Write a value so that its key reads it back from a command line.

    Floats keep every digit, so that the digest stays the same.
    """
    if hasattr(setting, "item"):  # numpy's numbers have a repr such as np.float64(...)
        setting = setting.item()
    if isinstance(setting, str):
        return setting
    if isinstance(setting, float):
        return repr(setting)
    return json.dumps(list(setting) if isinstance(setting, tuple) else setting)
