"""Writes a sweep or matrix as one HTML file without network or other files, for light, dark, print and phone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10
from statistics import mean
from typing import Any

from markupsafe import Markup

from orchestration.report import svg, trend_svg
from orchestration.report.detail import Pool
from orchestration.report.drawings import own_figures
from orchestration.report.errata import FIGURE_5, Footnotes
from orchestration.report.notation import MISSING, baseline_name, duration, number_of, percent
from orchestration.report.render.html import asset, page
from orchestration.report.sections import Group, TableView, groups_of, missing_rows, place_of, reason
from orchestration.report.summary import best_sentence, confirmed_table, summary
from orchestration.report.table import Cell, Column, Table
from orchestration.report.trends import seconds_per_epoch, selections_of, trends_of
from orchestration.study.trial import FINISHED, Trial

MOST_BYTES = 3_400_000  # most bytes of the details of single runs; with tables and figures a page stays below 5 MB
Detail = Callable[[Trial, Pool], dict[str, Any]]
Epochs = Mapping[str, Sequence[float]]  # run -> test accuracy after each epoch, in [0, 1]


@dataclass
class Subject:
    """The content of a page.

    Attributes:
        rows: all runs, including those that have not begun.
        facts: (name, words) of what was run, in order.
        columns: the dotted keys that distinguish the runs.
        searched: whether Optuna searched; otherwise the runs are those of a table.
        pareto: whether the search has two objectives.
        figures: (caption, SVG) of a search.
        curves: test accuracies over epochs, of the finished runs.
        selection: run -> its `selection.json`, of the runs that Fig. 2 compares.
        search: the filter that finds the runs in MLflow.
        detail: packs the drill-down of one run.
    """

    name: str
    about: str
    rows: list[Trial]
    facts: list[tuple[str, str]]
    counts: dict[str, int]
    columns: list[str]
    searched: bool
    search: str
    detail: Detail
    figures: list[tuple[str, str]] = field(default_factory=list)
    curves: Epochs = field(default_factory=dict)
    selection: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pareto: bool = False


def html_page(subject: Subject) -> str:
    """Return the whole file as text."""
    notes = Footnotes()
    groups = [] if subject.searched else groups_of(subject.rows, notes)
    views = [view for group in groups for view in group.tables]
    cells = [cell for view in views for line in view.lines.values() for cell in line]
    general = list(notes.general()) if any(view.table.has_paper for view in views) else []
    if set(subject.columns) >= {"defense.epsilon_inf", "defense.epsilon_2"} and subject.searched:
        general.append(notes.mark(FIGURE_5))
    kept, data = _kept(subject)
    return page(
        "page.html",
        subject=subject,
        style=asset("page.css"),
        script=asset("page.js"),
        data=Markup(data),
        groups=groups,
        drawn=[(group, _figures(group, subject.curves)) for group in groups],
        over=[] if subject.searched else _over_settings(subject),
        several_seeds=any(cell.last.planned > 1 for cell in cells),
        has_paper=any(view.table.has_paper for view in views),
        has_best=any(cell.best.mean is not None for cell in cells),
        search=summary(subject.rows, subject.columns, subject.pareto) if subject.searched else None,
        over_seeds=confirmed_table(subject.rows, subject.columns) if subject.searched else None,
        lead=best_sentence(subject.rows, subject.columns) if subject.searched else "",
        figures=[(words, Markup(drawn)) for words, drawn in subject.figures],
        bar=Markup(svg.colour_bar()),
        missing=missing_rows(subject.rows),
        kept=len(kept),
        runs=_runs(kept),
        total=len(subject.rows),
        notes=notes.texts,
        general=general,
        own=own_figures(subject.rows),
    )


def _runs(rows: Sequence[Trial]) -> Table:
    """Return a table with a line per run, which opens the drill-down of the run."""
    words = ("run", "data", "labels", "defense", "images", "seed", "last", "best by val.", "state", "time")
    lines = (
        (
            Cell(number_of(row), runs=(row.cell,)),
            *place_of(row),
            row.config.get("train.seed", MISSING),
            *(_percent(share) for share in (row.final_test_accuracy, row.best_val_test_accuracy)),
            Cell(reason(row), state=row.status),
            duration(row.seconds),
        )
        for row in rows
    )
    return Table.of(
        (Column(name, "left" if place < 5 else "right") for place, name in enumerate(words)),
        lines,
        caption="Accuracies in percent on clean test images; choose a run to see its curves, selection, confusion "
        "matrix, configuration and command.",
    )


def _percent(share: float | None) -> str:
    number = percent(share)
    return MISSING if number is None else f"{number:.1f}"


def _kept(subject: Subject) -> tuple[list[Trial], str]:
    """Return the runs whose drill-downs fit, and their data as JSON that is safe inside a script element.

    Failed runs come first, then the first seeds, so that only repetitions are left out.
    """
    pool, kept, packed, size = Pool(), [], [], 0
    order = sorted(
        (row for row in subject.rows if row.status != "queued" or row.epoch),
        key=lambda row: (row.status != "failed", row.config.get("train.seed") or 0, row.number),
    )
    for row in order:
        before = len(pool.values)
        text = _json(subject.detail(row, pool))
        # 400: the line of the run in the list
        size += len(text) + 400 + sum(len(_json(value)) for value in pool.values[before:])
        if size > MOST_BYTES:
            break
        kept.append(row)
        packed.append(text)
    kept.sort(key=lambda row: row.number)
    return kept, f'{{"pool":{_json(pool.values)},"cells":[{",".join(packed)}]}}'


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), default=str).replace("<", "\\u003c").replace("&", "\\u0026")


# --- figures of a matrix ---------------------------------------------------------------------------------------------


def _figures(group: Group, curves: Epochs) -> dict[str, Any]:
    """Draw heat maps and curves, one per table, and the bars over all tables."""
    names = list(dict.fromkeys(name for view in group.tables for name in view.table.defenses))
    reached = {
        name: [
            cell.last.mean for view in group.tables for cell in view.lines.get(name, []) if cell.last.mean is not None
        ]
        for name in names
    }
    finished = any(reached.values())
    return {
        "heat": [(view.table.title, Markup(svg.heat_map(view.table))) for view in group.tables if view.begun],
        "bars": Markup(svg.bars(reached, "Mean accuracy over cells, per defense")) if finished else "",
        "curves": [
            (view.table.title, Markup(trend_svg.curves(lines, f"Test accuracy over epochs, {view.table.title}", names)))
            for view in group.tables
            if (lines := _lines(view, curves))
        ],
    }


def _over_settings(subject: Subject) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Return (heading, figures with captions) of what the tables do not show: the paper's Figures 2 to 8 and RQ5."""
    names = list(dict.fromkeys(map(baseline_name, subject.rows)))
    sections: dict[str, list[tuple[str, Markup]]] = {}
    for trend in trends_of(subject.rows):
        reached = {name: [cell.mean for cell in cells] for name, cells in trend.lines.items()}
        if not any(value is not None for values in reached.values() for value in values):
            continue
        if trend.ordered:
            spreads = {name: [cell.spread for cell in cells] for name, cells in trend.lines.items()}
            lines = [trend_svg.Curve(name, values, spreads[name]) for name, values in reached.items()]
            drawn = trend_svg.trend(lines, f"{trend.title} over {trend.axis}", names, trend.ticks, trend.axis)
        else:
            groups = {
                tick: {name: value for name, values in reached.items() if (value := values[place]) is not None}
                for place, tick in enumerate(trend.ticks)
            }
            drawn = trend_svg.columns(groups, f"{trend.title} over {trend.axis}", names)
        sections.setdefault(f"Accuracy over {trend.axis}", []).append((trend.title, Markup(drawn)))
    for chosen in selections_of(subject.rows, subject.selection):
        drawn = trend_svg.selection(chosen.classes, chosen.stacks, chosen.title)
        sections.setdefault("Which labels are believed, by class", []).append((chosen.title, Markup(drawn)))
    times = seconds_per_epoch(subject.rows)
    if len(times) > 1:
        words = "Bar: mean over the finished runs; dots: runs. As they ran, side by side with others."
        drawn = svg.bars(times, "Seconds of an epoch, per defense", _round_up(max(map(max, times.values()))))
        sections["Seconds of an epoch"] = [(words, Markup(drawn))]
    return list(sections.items())


def _round_up(number: float) -> float:
    """Return the next larger number that is 1, 2 or 5 times a power of ten."""
    scale = 10.0 ** floor(log10(number))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= number)


def _lines(view: TableView, curves: Epochs) -> list[trend_svg.Curve]:
    """Return each defense's mean over finished runs after each epoch, without runs whose length differs from most."""
    lines = []
    for name, cells in view.lines.items():
        runs = [
            curves[row.cell] for cell in cells for row in cell.runs if row.status in FINISHED and row.cell in curves
        ]
        lengths = [len(run) for run in runs if len(run) > 1]
        if lengths:
            usual = max(set(lengths), key=lengths.count)
            columns = zip(*(run for run in runs if len(run) == usual), strict=True)
            lines.append(trend_svg.Curve(name, [100 * mean(column) for column in columns]))
    return lines
