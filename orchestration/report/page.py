"""Writes a sweep or matrix as one HTML file without network or other files, for light, dark, print and phone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from markupsafe import Markup

from orchestration.report.assets import asset, library
from orchestration.report.chance import Guesses, is_chance
from orchestration.report.colours import palette
from orchestration.report.detail import Pool
from orchestration.report.drawings import own_figures
from orchestration.report.errata import FIGURE_5, Footnotes
from orchestration.report.notation import MISSING, accuracy, baseline_name, duration, number_of, percent, validated
from orchestration.report.plots import matrix
from orchestration.report.plots.confirmations import lead
from orchestration.report.plots.figure import Figure, contents
from orchestration.report.render.html import page
from orchestration.report.sections import Group, TableView, groups_of, missing_rows, place_of, reason
from orchestration.report.summary import best, best_sentence, confirmed_table, summary
from orchestration.report.table import Cell, Column, Table
from orchestration.report.trends import seconds_per_epoch, selections_of, trends_of
from orchestration.study.confirmations import confirmed
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
        figures: the figures of a search.
        left_out: a sentence on each figure of a search that its trials do not carry.
        curves: test accuracies over epochs, of the finished runs.
        selection: run -> its `selection.json`, of the runs that Fig. 2 compares.
        search: the filter that finds the runs in MLflow.
        detail: packs the drill-down of one run.
        images: the data sets that were really used, in words.
        guesses: what guessing reaches on each data set.
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
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    curves: Epochs = field(default_factory=dict)
    selection: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pareto: bool = False
    images: str = ""
    guesses: Guesses = field(default_factory=dict)


def html_page(subject: Subject) -> str:
    """Return the whole file as text."""
    notes = Footnotes()
    groups = [] if subject.searched else groups_of(subject.rows, notes, subject.guesses)
    views = [view for group in groups for view in group.tables]
    cells = [cell for view in views for line in view.lines.values() for cell in line]
    general = list(notes.general()) if any(view.table.has_paper for view in views) else []
    if set(subject.columns) >= {"defense.epsilon_inf", "defense.epsilon_2"} and subject.searched:
        general.append(notes.mark(FIGURE_5))
    kept, data = _kept(subject)
    drawn, over = _figures_of(subject, groups)
    every = [*subject.figures, *_each(drawn), *_each(over)]
    return page(
        "page.html",
        subject=subject,
        style=asset("page.css"),
        script=asset("figures.js", "specs.js", "page.js", "list.js"),
        library=library(),
        data=Markup(data),
        drawings=Markup(_json(contents(every) | {"palette": palette()})),
        groups=groups,
        drawn=drawn,
        over=over,
        several_seeds=any(cell.last.planned > 1 for cell in cells),
        has_paper=any(view.table.has_paper for view in views),
        has_best=any(cell.best.mean is not None for cell in cells),
        search=summary(subject.rows, subject.columns, subject.pareto) if subject.searched else None,
        over_seeds=confirmed_table(subject.rows, subject.columns) if subject.searched else None,
        lead=_headline(subject) if subject.searched else "",
        certainty=_certainty(subject.rows) if subject.searched else "",
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


# --- the headline of a search ----------------------------------------------------------------------------------------


def _headline(subject: Subject) -> str:
    chosen = best(subject.rows)
    guess = subject.guesses.get(str(chosen.config.get("data.name"))) if chosen is not None else None
    if chosen is not None and guess is not None and is_chance(validated(chosen), guess):
        reached = accuracy(chosen.best_val_accuracy)
        return f"No trial is above {guess.words}: the highest validation accuracy is {reached} (trial {chosen.number})."
    return best_sentence(subject.rows, subject.columns)


def _certainty(rows: Sequence[Trial]) -> str:
    """Say how sure it is that the chosen trial is ahead of the next one."""
    candidates = confirmed(rows)
    if candidates:
        return lead(candidates)
    if best(rows) is None:
        return ""
    return "Each setting was trained once, so nothing here says how much of a lead is chance; --confirm 3x3 does."


# --- figures of a matrix ---------------------------------------------------------------------------------------------


Drawn = list[tuple[str, list[Figure]]]  # headings and the figures below them


def every_figure(subject: Subject) -> list[Figure]:
    """Return all figures of a page in their order."""
    groups = [] if subject.searched else groups_of(subject.rows, Footnotes(), subject.guesses)
    return [*subject.figures, *(figure for drawn in _figures_of(subject, groups) for figure in _each(drawn))]


def _figures_of(subject: Subject, groups: Sequence[Group]) -> tuple[Drawn, Drawn]:
    """Return the figures of each group of a matrix under their headings, and those over all groups."""
    if subject.searched:
        return [], []
    drawn: Drawn = []
    for number, group in enumerate(groups):
        title = f"{group.title}: " if group.title else ""
        drawn += [(title + words, figures) for words, figures in _figures(group, subject.curves, number) if figures]
    return drawn, _over_settings(subject)


def _each(drawn: Drawn) -> list[Figure]:
    return [figure for _, figures in drawn for figure in figures]


def _figures(group: Group, curves: Epochs, number: int) -> Drawn:
    """Draw heat maps and curves, one per table, and the bars over all tables."""
    names = list(dict.fromkeys(name for view in group.tables for name in view.table.defenses))
    reached = {
        name: [
            cell.last.mean for view in group.tables for cell in view.lines.get(name, []) if cell.last.mean is not None
        ]
        for name in names
    }
    places = list(enumerate(group.tables))
    heat = [matrix.heat_map(view, f"heat-{number}-{place}") for place, view in places if view.begun]
    about = (
        "Bar: mean over the finished cells, which need not be the same for all defenses before all are. Dots: cells; "
        "with many, a box for the middle half. Line: from the worst to the best."
    )
    means = [matrix.bars(reached, f"means-{number}", about, "accuracy, %")] if any(reached.values()) else []
    lines = [(place, view, found) for place, view in places if (found := _lines(view, curves))]
    over_epochs = [
        matrix.curves(found, f"curves-{number}-{place}", view.table.title, names) for place, view, found in lines
    ]
    return [
        ("Where each defense holds", heat),
        ("Mean over all cells, and the spread", means),
        ("On the way there", over_epochs),
    ]


def _over_settings(subject: Subject) -> Drawn:
    """Return headings and figures of what the tables do not show: the paper's Figures 2 to 8 and RQ5."""
    names = list(dict.fromkeys(map(baseline_name, subject.rows)))
    sections: dict[str, list[Figure]] = {}
    for place, panel in enumerate(trends_of(subject.rows)):
        if any(cell.mean is not None for cells in panel.lines.values() for cell in cells):
            figure = matrix.trend(panel, f"trend-{place}", names)
            sections.setdefault(f"Accuracy over {panel.axis}", []).append(figure)
    for place, chosen in enumerate(selections_of(subject.rows, subject.selection)):
        figure = matrix.selection(chosen, f"selection-{place}")
        sections.setdefault("Which labels are believed, by class", []).append(figure)
    times = seconds_per_epoch(subject.rows)
    if len(times) > 1:
        sections["Seconds of an epoch"] = [matrix.seconds(times)]
    return list(sections.items())


def _lines(view: TableView, curves: Epochs) -> list[matrix.Curve]:
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
            lines.append(matrix.Curve(name, [100 * mean(column) for column in columns]))
    return lines
