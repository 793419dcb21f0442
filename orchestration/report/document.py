"""Writes the report of a study, finished or not, from the ledger and the run directories, as one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from erat.errors import UserError, unknown_name
from erat.files import write_atomic
from erat.paths import user_path
from orchestration.report.chance import Guess
from orchestration.report.detail import Pool, detail_of
from orchestration.report.documents import study_text
from orchestration.report.notation import baseline_name, duration, validation_words
from orchestration.report.page import Epochs, Subject, every_figure, html_page
from orchestration.report.plots.figure import Figure, file_of
from orchestration.report.sections import reason
from orchestration.report.summary import paste_command
from orchestration.run.directory import RunDirectory
from orchestration.storage.forms import Selection
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import BEFORE_IDENTITY
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.study.status import not_begun, spec_of, trials_of
from orchestration.study.trial import FINISHED, Trial
from orchestration.tracking.store import tracking_uri
from orchestration.tracking.text import compare_hint

_STATES = ("done", "stopped", "failed", "running", "paused", "promoted", "interrupted")
SUFFIXES = {"html": "html", "csv": "csv", "latex": "tex", "md": "md"}
FIGURE_FORMS = ("svg", "pdf")  # a file for each figure, in a folder


def write_report(
    workspace: Workspace,
    name: str,
    form: str,
    out: str | Path | None,
    *,
    ledger: Ledger | None = None,
    what: str = "--out",
) -> Path:
    """Write the report of a study, and return the file, or the folder with a file for each figure.

    Args:
        form: html, csv, latex or md; svg or pdf for the figures of the page.
        out: the file to write, or the folder; by default one in the study's report folder.
        ledger: the ledger of the workspace, if the caller has read it.
        what: the option or argument that `out` came from, for messages.

    Raises:
        UserError: there is no such study or format, or the file cannot be written.
    """
    if form in FIGURE_FORMS:
        folder = user_path(out, what) if out else workspace.report(name) / "figures"
        return _write_figures(_subject(*_found(workspace, name, ledger)), form, folder, what)
    text = report_text(workspace, name, form, ledger)
    return save(text, user_path(out, what) if out else workspace.report(name) / f"report.{SUFFIXES[form]}", what)


def report_text(workspace: Workspace, name: str, form: str, ledger: Ledger | None = None) -> str:
    """Return the report of a study as `write_report` writes it, with its arguments and errors."""
    if form not in SUFFIXES:
        raise unknown_name("format", form, (*SUFFIXES, *FIGURE_FORMS))
    study = _found(workspace, name, ledger)
    if form == "html":
        return html_page(_subject(*study))
    *_, spec, rows, _ = study
    remark = "" if spec.identified else BEFORE_IDENTITY
    return study_text(spec.kind, form, rows, spec.space.columns, remark, pareto=spec.pareto)


def _found(
    workspace: Workspace, name: str, ledger: Ledger | None
) -> tuple[Workspace, Ledger, str, StudySpec, list[Trial], int]:
    """Return the study with all its trials, those that have not begun too, and their number in all."""
    ledger = ledger or Ledger(workspace.ledger)
    spec = spec_of(ledger, name)
    rows, total = trials_of(workspace, ledger, name, spec)
    rows = sorted([*rows, *not_begun(spec, ledger.studies[name].trials, rows)], key=lambda row: row.number)
    return workspace, ledger, name, spec, rows, total


def save(text: str | bytes, path: Path, what: str) -> Path:
    """Write a document, and return the absolute path of its file.

    Raises:
        UserError: the file cannot be written; `what` is the option or argument that the path came from.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text if isinstance(text, bytes) else text.encode())
    except OSError as error:
        raise UserError(f"{what} {path} cannot be written: {error.strerror}") from error
    return path.resolve()


def _write_figures(subject: Subject, form: str, folder: Path, what: str) -> Path:
    """Write each figure of a study as a file, and return the folder.

    Raises:
        UserError: there is no figure yet, or the folder cannot be written.
    """
    figures = every_figure(subject)
    if not figures:
        raise UserError(f"{subject.name} has no figures yet, because no run has ended: nothing to write as {form}")
    for figure in figures:
        save(file_of(figure, form), folder / f"{figure.name}.{form}", what)
    return folder.resolve()


def _images(rows: Sequence[Trial]) -> str:
    """Return the data sets that the runs really used, with the number of images if it was limited."""
    found = {(str(row.config.get("data.name")), row.config.get("data.limit")) for row in rows}
    words = [f"{name} ({limit:,} images)" if isinstance(limit, int) else name for name, limit in sorted(found, key=str)]
    return " and ".join(words)


def _guesses(workspace: Workspace, rows: Sequence[Trial]) -> dict[str, Guess]:
    """Return what guessing reaches on each data set, from the confusion matrix of its first finished run."""
    found: dict[str, Guess] = {}
    tried: Counter[str] = Counter()
    for row in rows:
        name = str(row.config.get("data.name"))
        if row.status in FINISHED and name not in found and tried[name] < 20:  # older runs may lack the file
            tried[name] += 1
            confusion = RunDirectory(workspace, row.cell).read_confusion()
            if confusion is not None and len(confusion["classes"]) > 1:
                found[name] = Guess(len(confusion["classes"]), sum(map(sum, confusion["counts"])))
    return found


def _subject(
    workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec, rows: list[Trial], total: int
) -> Subject:
    """Return what the page of a study shows."""
    searched = spec.kind == "search"
    figures: list[Figure] = []
    left_out: list[str] = []
    if searched:
        from orchestration.report.study import search_figures

        figures, left_out = search_figures(rows, spec.space.distributions(spec.base.data.name), spec.pareto)
    return Subject(
        name=name,
        about=spec.space.about,
        rows=rows,
        facts=_facts(workspace, ledger, name, spec, rows),
        counts=_counts(rows, total),
        columns=spec.space.columns,
        searched=searched,
        pareto=spec.pareto,
        search=compare_hint(name),
        detail=partial(_detail, workspace, ledger, name, spec),
        figures=figures,
        left_out=left_out,
        images=_images(rows or [spec.trial(0, "baseline", {})]),
        guesses=_guesses(workspace, rows),
        curves={} if searched else _curves(workspace, rows),
        selection={} if searched else _selections(workspace, rows),
    )


def _detail(workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec, row: Trial, pool: Pool) -> dict[str, Any]:
    command = paste_command(row, spec.preset, spec.overrides_for(row.params))
    return detail_of(row, RunDirectory(workspace, row.cell), command, pool)


def _curves(workspace: Workspace, rows: Sequence[Trial]) -> Epochs:
    return {
        row.cell: [entry["test_accuracy"] for entry in RunDirectory(workspace, row.cell).read_metrics()]
        for row in rows
        if row.status in FINISHED
    }


def _selections(workspace: Workspace, rows: Sequence[Trial]) -> dict[str, Selection]:
    """Return the selections of each ERAT run, if it also ran without rebalancing: otherwise there is no comparison."""
    names = {row.cell: baseline_name(row) for row in rows if row.status in FINISHED}
    if not {"ERAT", "ERAT w/o RB"} <= set(names.values()):
        return {}
    found = {
        cell: RunDirectory(workspace, cell).read_selection()
        for cell, name in names.items()
        if name in ("ERAT", "ERAT w/o RB")
    }
    return {cell: content for cell, content in found.items() if content and content["epochs"]}


def _counts(rows: Sequence[Trial], total: int) -> dict[str, int]:
    """Return the number of trials in each state; the last state is "not begun"."""
    words = [reason(row).split(" ")[0] for row in rows]
    counts = {state: words.count(state) for state in _STATES}
    return counts | {"not begun": max(total, len(rows)) - sum(counts.values())}


def _facts(
    workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec, rows: Sequence[Trial]
) -> list[tuple[str, str]]:
    """Return what was run, when, where and with which code."""
    base, images = spec.base, sorted(set(spec.images.values()))
    seeds = sorted({row.config["train.seed"] for row in rows if "train.seed" in row.config})
    shown = ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    outcomes = [outcome for row in rows if (outcome := ledger.outcome(row.cell, name)) is not None]
    ends = [outcome.time for outcome in outcomes if outcome.time is not None]
    dates = [("begun", ledger.studies[name].began), ("last run ended", max(ends, default=None))]
    given = ", ".join(f"{key}={value}" for key, value in spec.overrides.items())
    memory = max((outcome.peak_memory_mb for outcome in outcomes), default=0)
    facts = [
        ("preset", spec.preset + (f", with {given}" if given else "")),
        ("data set, backbone", f"{base.data.name}, {base.model.name}"),
        ("images", ", ".join(f"fingerprint {found}" for found in images) if spec.identified else BEFORE_IDENTITY),
        ("schedule", f"{base.train.epochs} epochs, batches of {base.train.batch_size}"),
        ("seeds of training", shown),
        *((words, _date(moment)) for words, moment in dates if moment is not None),
        ("training in all", duration(sum(row.seconds for row in rows))),
        ("most memory of a run", f"{memory:.0f} MB" if memory else ""),
        *_machines(workspace, rows),
        ("excluded", "; ".join(f"{where}, because {why}" for where, why in ledger.studies[name].out.items())),
        ("validation", validation_words(base).removeprefix("validation: ")),
        ("MLflow", tracking_uri(workspace)),
        ("MLflow, search runs for", compare_hint(name)),
    ]
    return [(words, text) for words, text in facts if text]


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _machines(workspace: Workspace, rows: Sequence[Trial], most: int = 400) -> list[tuple[str, str]]:
    """Return the commits and devices of the finished runs, of the first `most` if there are more."""
    commits: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for row in [row for row in rows if row.status in FINISHED][:most]:
        environment = RunDirectory(workspace, row.cell).read_environment()
        if environment:
            commit = str(environment.get("git_commit") or "unknown")[:12]
            commits[commit + (" with changes" if environment.get("git_dirty") else "")] += 1
            devices[str(environment.get("device"))] += 1

    def words(counter: Counter[str]) -> str:
        return ", ".join(f"{name} ({count})" if len(counter) > 1 else name for name, count in counter.most_common())

    return [("git commit", words(commits)), ("device", words(devices))]
