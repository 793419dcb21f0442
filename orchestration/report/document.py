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
from orchestration.report.detail import Pool, detail_of
from orchestration.report.documents import study_text
from orchestration.report.notation import baseline_name, duration, validation_words
from orchestration.report.page import Epochs, Subject, html_page
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


def write_report(
    workspace: Workspace,
    name: str,
    form: str,
    out: str | Path | None,
    *,
    ledger: Ledger | None = None,
    what: str = "--out",
) -> Path:
    """Write the report of a study, and return the file.

    Args:
        form: html, csv, latex or md.
        out: the file to write; by default one in the study's report folder.
        ledger: the ledger of the workspace, if the caller has read it.
        what: the option or argument that `out` came from, for messages.

    Raises:
        UserError: there is no such study or format, or the file cannot be written.
    """
    if form not in SUFFIXES:
        raise unknown_name("format", form, SUFFIXES)
    ledger = ledger or Ledger(workspace.ledger)
    spec = spec_of(ledger, name)
    rows, total = trials_of(workspace, ledger, name, spec)
    rows = sorted([*rows, *not_begun(spec, ledger.studies[name].trials, rows)], key=lambda row: row.number)
    if form == "html":
        text = _page(workspace, ledger, name, spec, rows, total)
    else:
        remark = "" if spec.identified else BEFORE_IDENTITY
        text = study_text(spec.kind, form, rows, spec.space.columns, remark, pareto=spec.pareto)
    return save(text, user_path(out, what) if out else workspace.report(name) / f"report.{SUFFIXES[form]}", what)


def save(text: str, path: Path, what: str) -> Path:
    """Write a document, and return the absolute path of its file.

    Raises:
        UserError: the file cannot be written; `what` is the option or argument that the path came from.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise UserError(f"{what} {path} cannot be written: {error.strerror}") from error
    return path.resolve()


def _page(workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec, rows: list[Trial], total: int) -> str:
    searched = spec.kind == "search"
    figures: list[tuple[str, str]] = []
    if searched:
        from orchestration.report.study import search_figures

        figures = search_figures(spec.space.name, rows, spec.space.distributions(spec.base.data.name), spec.pareto)
    return html_page(
        Subject(
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
            curves={} if searched else _curves(workspace, rows),
            selection={} if searched else _selections(workspace, rows),
        )
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
