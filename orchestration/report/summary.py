"""The end of a sweep in words: the table, the best setting, and the command that runs it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from erat.data import spreadsheets
from orchestration.report.notation import MISSING, accuracy, duration, finite, header, origin, value
from orchestration.study.rows import TrialRow

STATUS_STYLES = {"queued": "dim", "running": "cyan", "done": "green", "stopped": "yellow", "failed": "bold red"}
_CHOICE = "★ chosen by validation accuracy (best epoch); test accuracy is for the record and chooses nothing."
_LEFT = ("source", "status")
_CSV_FIELDS = (
    "best_val_accuracy",
    "final_test_accuracy",
    "best_val_test_accuracy",
    "epoch",
    "epochs",
    "seconds",
    "mlflow_run_id",
    "error",
)


def best(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The setting to take: largest `best_val_accuracy`, ties to the lower number.

    A trial that a scheduler stopped is eligible only where no trial is done. A baseline never is: it is not a
    setting of the space. Test accuracy plays no part.
    """
    for status in ("done", "stopped"):
        eligible = [row for row in rows if row.status == status and row.source != "baseline" and _rank(row)[0] == 0]
        if eligible:
            return min(eligible, key=_rank)
    return None


def _rank(row: TrialRow) -> tuple[int, float, int]:
    """Sort key: measured before unmeasured, then the better validation accuracy, then the lower number."""
    found = finite(row.best_val_accuracy)
    return (1, 0.0, row.number) if found is None else (0, -found, row.number)


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Best validation accuracy first; what has none comes last."""
    return sorted(rows, key=_rank)


def caption(rows: Sequence[TrialRow]) -> str:
    """How the choice was made, and what the validation images were if the configurations say it."""
    said = {(row.config["val.trusted"], row.config.get("val.objective")) for row in rows if "val.trusted" in row.config}
    if len(said) != 1:
        return _CHOICE
    trusted, objective = said.pop()
    kind = "clean, a small checked set" if trusted else "corrupted like the training images"
    attacked = ", judged on perturbed images" if objective == "perturbed" else ""
    return f"{_CHOICE} Validation: {kind}{attacked} (val.trusted={str(bool(trusted)).lower()})."


def summary_table(rows: Sequence[TrialRow], columns: Sequence[str]) -> Table:
    """All trials, best validation accuracy first.

    Args:
        rows: the trials, in any order.
        columns: the searched dotted keys.
    """
    # Narrow headings and, for many columns, narrow gaps: four searched values fit into 80 characters.
    gap = 1 if len(columns) <= 2 else 0
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), caption=Text(caption(rows)), caption_justify="left")
    for name in headings(columns):
        heading = Text(name.replace(" ", "\n"))
        table.add_column(heading, justify="left" if name in _LEFT else "right", vertical="bottom", no_wrap=True)
    chosen = best(rows)
    for row in ranked(rows):
        cells = [Text(cell) for cell in texts_of(row, columns, row is chosen)]
        cells[-2].stylize(STATUS_STYLES.get(row.status, ""))
        table.add_row(*cells, style="bold" if row is chosen else None)
    return table


def headings(columns: Sequence[str]) -> list[str]:
    """Of the columns of `texts_of`."""
    accuracies = ["val (best)", "test (last)", "test (best val)"]
    return ["#", "source", *map(header, columns), *accuracies, "epochs", "status", "time"]


def texts_of(row: TrialRow, columns: Sequence[str], chosen: bool) -> list[str]:
    """One trial as the words of a line of the table."""
    return [
        f"★ {row.number}" if chosen else str(row.number),
        origin(row),
        *(value(key, row.params.get(key)) for key in columns),
        accuracy(row.best_val_accuracy),
        accuracy(row.final_test_accuracy),
        accuracy(row.best_val_test_accuracy),
        f"{row.epoch}/{row.epochs}" if row.epochs else MISSING,
        row.status,
        duration(row.seconds or None),
    ]


def markdown(rows: Sequence[TrialRow], columns: Sequence[str]) -> str:
    """The same table for a README or an issue."""
    chosen = best(rows)
    names = headings(columns)
    rule = [":--" if name in _LEFT else "--:" for name in names]
    lines = [names, rule, *(texts_of(row, columns, row is chosen) for row in ranked(rows))]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{table}\n\n{caption(rows)}\n"


def csv_text(rows: Sequence[TrialRow], columns: Sequence[str]) -> str:
    """Everything about each trial, unrounded, under dotted keys; empty where nothing was measured."""
    lines: list[list[Any]] = [["number", "cell", "source", "status", *columns, *_CSV_FIELDS]]
    for row in ranked(rows):
        settings = [row.params.get(key) for key in columns]
        lines.append([row.number, row.cell, row.source, row.status, *settings, *(getattr(row, f) for f in _CSV_FIELDS)])
    return spreadsheets.csv_text(lines, "\n")


def paste_command(row: TrialRow, preset: str, overrides: Mapping[str, Any]) -> str:
    """The shell line that runs this trial's configuration again.

    Args:
        row: the trial; its searched values win over `overrides`.
        preset: the preset that the sweep started from.
        overrides: what the user gave the sweep as KEY=VALUE.
    """
    settings = {**overrides, **row.params}
    settings.pop("preset", None)
    words = ["python", "orchestrate.py", "train", "--preset", preset]
    return shlex.join(words + [f"{key}={_typed(setting)}" for key, setting in settings.items()])


def _typed(setting: Any) -> str:
    """A value as one types it, to be read as its key wants it. Floats keep every digit: the same digest results."""
    if hasattr(setting, "item"):  # numpy's numbers, whose repr says np.float64(...)
        setting = setting.item()
    if isinstance(setting, str):
        return setting
    if isinstance(setting, float):
        return repr(setting)
    return json.dumps(list(setting) if isinstance(setting, tuple) else setting)
