"""Prints plans, states and results, apart from the live table; each function also returns what `--json` prints."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from erat.errors import UserError
from orchestration.api import load_study
from orchestration.report.documents import tables_of
from orchestration.report.matrix import matrix, summary_sentences
from orchestration.report.notation import accuracy, duration, number_of, validation_words
from orchestration.report.render.terminal import terminal
from orchestration.report.summary import best, confirmed_table, paste_command, summary
from orchestration.report.table import Column, Table
from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import heard, is_driven
from orchestration.storage.workspace import Workspace
from orchestration.study.confirmations import confirmed, winner
from orchestration.study.entries import ANEW, BEFORE_IDENTITY, BEFORE_WINDOW
from orchestration.study.ledger import Ledger
from orchestration.study.settings import setting_values, setting_words, windows_of
from orchestration.study.status import spec_of, trials_of
from orchestration.study.trial import FINISHED, Trial
from orchestration.terminal import program
from orchestration.tracking.store import tracking_uri

WATCH_SECONDS = 2.0
MOST_ROWS = 60  # largest number of rows in a list of trials
_LISTED = ("name", "space", "preset", "trials", "done", "stopped", "running", "paused", "failed", "left")

if TYPE_CHECKING:
    from orchestration.search.launch import StudyEnd


def show_sweep(end: StudyEnd, console: Console) -> None:
    """Print the results of a sweep: the table, the best setting, and the places of all files."""
    driver, rows = end.driver, end.driver.trials
    kind, columns = driver.spec.kind, driver.spec.space.columns
    tables = tables_of(kind, rows, columns, pareto=driver.spec.pareto)
    console.print(*map(terminal, tables), *(summary_sentences(rows) if kind == "matrix" else ()), sep="\n")
    console.print(f"preset {driver.spec.preset} · {validation_words(driver.spec.base)}")
    if driver.spec.search is not None:
        record = driver.ledger.studies[driver.name]
        windows = windows_of(driver.spec, record.totals, record.windows)
        console.print(setting_words(driver.spec.space, windows), markup=False)
    chosen = best(rows)
    if chosen is not None:
        command = paste_command(chosen, driver.spec.preset, driver.spec.overrides_for(chosen.params))
        how = "" if (over := winner(rows)) is None else f", by its mean over {over.val.n} seeds"
        console.print(f"\nbest setting (trial {chosen.number}{how}); to run it again or build on it:")
        console.print(f"  {command}", markup=False)
    console.print("\nwhere everything lies:")
    for path in end.files:
        console.print(f"  {path}", markup=False)
    console.print(f"  a page of all this: {program()} report {driver.name}", markup=False)
    console.print(f"  MLflow: {driver.tracker.uri}", markup=False)
    console.print(f"    {program()} ui shows the study, and its runs in MLflow", markup=False)
    console.print(f"{len(rows)} trials in {duration(end.wall_seconds)}")


def show_run(row: Trial, workspace: Workspace, console: Console) -> None:
    """Print the results of one training."""
    if row.status in FINISHED:
        console.print(
            f"{row.status}: clean test accuracy {accuracy(row.final_test_accuracy)} in the last epoch, "
            f"{accuracy(row.best_val_test_accuracy)} in the best by validation ({duration(row.seconds)} of training)"
        )
    console.print(f"everything of this run: {workspace.run_directory(row.cell)}", markup=False)


def crafted(manifest: dict[str, Any], console: Console) -> dict[str, Any]:
    """Print and return the manifest of a crafted set: its image part, with the noise of its label part."""
    images, labels = manifest["images"], manifest["labels"]
    shown = (
        "path",
        "kind",
        "norm",
        "epsilon",
        "max_norm",
        "mean_norm",
        "share",
        "poisoned_share",
        "source",
        "checksum",
    )
    content = {key: images.get(key) for key in shown}
    content |= {key: labels.get(key) for key in ("noise_rate", "transition")}
    content |= {"labels": labels.get("kind"), "labels_path": labels.get("path"), "labels_checksum": labels["checksum"]}
    if (coupling := manifest.get("coupling")) is not None:
        content |= {"coupling": coupling["kind"], "overlap": coupling["overlap"]}
    for key, value in content.items():
        if key != "transition":
            console.print(f"{key:>16}  {value}", markup=False)
    return content


def of_all(workspace: Workspace, console: Console) -> list[dict[str, Any]]:
    """Print and return every sweep in the ledger."""
    ledger = Ledger(workspace.ledger)
    content: list[dict[str, Any]] = []
    for name in ledger.studies:
        try:
            spec = spec_of(ledger, name)
        except UserError as error:
            warnings.warn(f"sweep {name} is left out: {error}", stacklevel=2)
            continue
        rows, total = trials_of(workspace, ledger, name, spec)
        counts = counts_of(rows, total)
        content.append({"name": name, "space": spec.space.name, "preset": spec.preset, "trials": total} | counts)
        if not spec.identified:
            content[-1]["note"] = BEFORE_IDENTITY
    if content:
        shown = [key for key in _LISTED if key != "paused" or any(entry["paused"] for entry in content)]
        columns = (Column("sweep" if key == "name" else key, "left") for key in shown)
        lines = ([entry[key] for key in shown] for entry in content)
        console.print(terminal(Table.of(columns, lines), rules=False))
        for marked in [entry["name"] for entry in content if "note" in entry]:
            console.print(f"{marked}: {BEFORE_IDENTITY}", markup=False)
    else:
        console.print(f"no sweep yet; begin with: {program()} sweep --space budgets")
    return content


def of_sweep(workspace: Workspace, name: str, console: Console) -> dict[str, Any]:
    """Print and return a sweep, trial by trial.

    Raises:
        UserError: there is no such sweep.
    """
    study = load_study(name, workspace)
    spec, rows, total = study.spec, study.begun_trials(), study.total
    counts = counts_of(rows, total)
    if spec.kind == "matrix" and rows:
        console.print(*map(terminal, matrix(rows)), sep="\n")
        shown = _worth_showing([row for row in rows if row.status not in FINISHED])
    else:
        shown = _worth_showing(rows)
        if len(shown) < len(rows):
            console.print(f"{len(rows) - len(shown)} more are not listed")
    if spec.kind == "search" and (over := confirmed_table(rows, spec.space.columns)) is not None:
        console.print(terminal(over))
    if shown:
        console.print(terminal(summary(shown, spec.space.columns, spec.pareto)))
    console.print(", ".join(f"{number} {status}" for status, number in counts.items()) + f", of {total}")
    if not spec.identified:
        console.print(f"{BEFORE_IDENTITY}: the images of these figures can no longer be identified", markup=False)
    outdated = study.outdated
    if outdated:
        console.print(f"{BEFORE_WINDOW}; {ANEW}", markup=False)
    elif spec.search is not None:
        console.print(setting_words(spec.space, study.windows), markup=False)
    console.print(f"MLflow: {tracking_uri(workspace)}", markup=False)
    heard_of = {row.number: age for row in rows if (age := _heard(workspace, row)) is not None}
    if heard_of:
        beats = ", ".join(
            f"trial {number_of(row)} {duration(heard_of[row.number])} ago" for row in rows if row.number in heard_of
        )
        console.print(f"last heard of: {beats}", markup=False)
    for where, why in study.excluded.items():
        console.print(f"excluded: {where}, because {why}", markup=False)
    if counts["failed"] and spec.identified and not outdated:
        console.print(f"try the failed ones again with: {program()} retry {name}")
    if counts["left"] and spec.identified and not outdated:
        console.print(f"go on with: {program()} resume {name}")
    runs = [
        {"number": row.number, "cell": row.cell, "status": row.status, "epoch": row.epoch}
        | ({"promoted": row.promoted} if row.promoted else {})
        | ({"confirms": row.confirms} if row.confirms is not None else {})
        | ({"heard_seconds": heard_of[row.number]} if row.number in heard_of else {})
        for row in rows
    ]
    note: dict[str, Any] = {} if spec.identified else {"note": BEFORE_IDENTITY}
    over_seeds = [each.content() for each in confirmed(rows)]
    note |= {"confirmed": over_seeds} if over_seeds else {}
    note |= {"excluded": study.excluded} if study.excluded else {}
    settings = {} if spec.search is None or outdated else {"settings": setting_values(spec.space)}
    return {"name": name, "trials": total} | counts | note | settings | {"runs": runs}


def _heard(workspace: Workspace, row: Trial) -> float | None:
    return heard(RunDirectory(workspace, row.cell)) if row.status == "running" else None


def watch(workspace: Workspace, name: str, console: Console) -> dict[str, Any]:
    """Repeat `of_sweep` until nothing runs under this name, and return its last content.

    Raises:
        UserError: there is no such sweep.
    """
    try:
        while True:
            with console.capture() as capture:
                content = of_sweep(workspace, name, console)
            if console.is_terminal:
                console.clear()
            console.print(Text.from_ansi(capture.get()))
            if not is_driven(workspace, name):
                return content
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return content


def _worth_showing(rows: Sequence[Trial]) -> list[Trial]:
    """Return all rows if they are few; otherwise the unfinished ones and the last finished ones."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    open_rows = [row for row in rows if row.status not in FINISHED][:MOST_ROWS]
    room = MOST_ROWS - len(open_rows)
    ended = [row for row in rows if row.status in FINISHED]
    return sorted([*open_rows, *ended[len(ended) - room :]], key=lambda row: row.number)


def counts_of(rows: Sequence[Trial], total: int) -> dict[str, int]:
    """Return the number of trials in each state, and the number that is left to do."""
    states = ("done", "stopped", "running", "paused", "failed")
    counts = {status: sum(row.status == status for row in rows) for status in states}
    return counts | {"left": total - counts["done"] - counts["stopped"] - counts["failed"]}
