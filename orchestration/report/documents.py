"""Writes the results of a study as one text to paste or to process: its tables in one of the formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestration.report.errata import Footnotes
from orchestration.report.grid import grid
from orchestration.report.matrix import matrix, matrix_records, matrix_tables, note, summary_sentences
from orchestration.report.render.latex import latex_file
from orchestration.report.render.markdown import markdown
from orchestration.report.render.spreadsheet import csv_text
from orchestration.report.sections import Group, TableView, groups_of
from orchestration.report.summary import confirmed_table, records, summary
from orchestration.report.table import Table
from orchestration.study.spec import Kind
from orchestration.study.trial import Trial


def study_text(
    kind: Kind, form: str, rows: Sequence[Trial], columns: Sequence[str], remark: str = "", *, pareto: bool = False
) -> str:
    """Return the tables of a study.

    Args:
        kind: the kind of the study.
        form: md, csv or latex.
        rows: its trials.
        columns: the dotted keys that distinguish the runs.
        remark: a note on all figures: a column of CSV, a comment of LaTeX, a last paragraph of Markdown.
        pareto: whether it is a search with two objectives.
    """
    if kind == "search" or not rows:
        return search_text(form, rows, columns, remark, pareto=pareto)
    return matrix_text(form, rows, remark) if kind == "matrix" else grid_text(form, rows, columns, remark)


def tables_of(kind: Kind, rows: Sequence[Trial], columns: Sequence[str], *, pareto: bool = False) -> list[Table]:
    """Return the tables of a study as a reader sees them; arguments are those of `study_text`."""
    if kind == "matrix":
        return matrix(rows)
    if kind == "list":
        return [grid(rows)]
    over = confirmed_table(rows, columns)  # of the best trials, if these are confirmed
    return [*([over] if over else []), summary(rows, columns, pareto)]


def search_text(
    form: str, rows: Sequence[Trial], columns: Sequence[str], remark: str = "", *, pareto: bool = False
) -> str:
    """Return a list of trials, best validation accuracy first; CSV has everything that is known of each trial.

    If the best trials are confirmed, a table of their means over seeds comes before it, except in CSV.
    """
    if form == "csv":
        return _text(form, [records(rows, columns, pareto)], remark)
    return _text(form, tables_of("search", rows, columns, pareto=pareto), remark)


def grid_text(form: str, rows: Sequence[Trial], columns: Sequence[str], remark: str = "") -> str:
    """Return the runs of one defense as a table of corruptions; CSV has a line per run."""
    return _text(form, [records(rows, columns) if form == "csv" else grid(rows)], remark)


def matrix_text(form: str, rows: Sequence[Trial], remark: str = "") -> str:
    """Return the runs of several defenses: a table per data set and label noise; Markdown also says who wins."""
    if form == "csv":
        return _text(form, [matrix_records(rows)], remark)
    if form == "latex":
        notes = Footnotes()
        groups = groups_of(rows, notes)
        tables = [_of_a_paper(view, group) for group in groups for view in group.tables]
        return _text(form, tables, remark, notes.texts)
    has_paper = any(table.has_paper for table in matrix_tables(rows))
    return _text(form, matrix(rows), remark, [note(has_paper), *summary_sentences(rows)])


def _of_a_paper(view: TableView, group: Group) -> Table:
    """Return a table that stands alone, with its own caption."""
    title = ", ".join(part for part in (view.shown.title, group.title) if part)
    return replace(view.shown, title=title, caption=note(view.table.has_paper))


def _text(form: str, tables: Sequence[Table], remark: str, notes: Sequence[str] = ()) -> str:
    """Return the tables in a format, followed by `notes` if the format has room for words."""
    match form:
        case "csv":
            return "".join(csv_text(table.with_column("note", remark) if remark else table) for table in tables)
        case "latex":
            return (f"% {remark}\n" if remark else "") + latex_file(tables, notes)
        case _:
            return "\n\n".join([*map(markdown, tables), *notes, *([remark] if remark else [])]) + "\n"
