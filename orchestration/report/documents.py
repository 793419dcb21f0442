"""What a study came to as one text to paste or to work with: its tables in one of the formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestration.report.errata import Footnotes
from orchestration.report.grid import grid
from orchestration.report.matrix import matrix, matrix_records, matrix_tables, note, summary_sentences
from orchestration.report.render.latex import latex_file
from orchestration.report.render.markdown import markdown
from orchestration.report.render.spreadsheet import csv_text
from orchestration.report.sections import groups_of
from orchestration.report.summary import records, summary
from orchestration.report.table import Table
from orchestration.study.spec import Kind
from orchestration.study.trial import Trial

FORMS = ("md", "csv", "latex")


def study_text(kind: Kind, form: str, rows: Sequence[Trial], columns: Sequence[str], remark: str = "") -> str:
    """Return the tables of a study.

    Args:
        form: one of `FORMS`.
        columns: the dotted keys that tell the runs apart.
        remark: what to know of all figures: a column of CSV, a comment of LaTeX, a last paragraph of Markdown.
    """
    if kind == "search" or not rows:
        return search_text(form, rows, columns, remark)
    return matrix_text(form, rows, remark) if kind == "matrix" else grid_text(form, rows, columns, remark)


def search_text(form: str, rows: Sequence[Trial], columns: Sequence[str], remark: str = "") -> str:
    """Return a list of trials, best validation accuracy first; as CSV all that is known of each."""
    if form == "csv":
        return _csv(records(rows, columns), remark)
    return _text(form, summary(rows, columns), remark)


def grid_text(form: str, rows: Sequence[Trial], columns: Sequence[str], remark: str = "") -> str:
    """Return runs of one defense as a table of corruptions; as CSV run by run."""
    return _csv(records(rows, columns), remark) if form == "csv" else _text(form, grid(rows), remark)


def matrix_text(form: str, rows: Sequence[Trial], remark: str = "") -> str:
    """Return runs of several defenses: a table per data set and label noise; in Markdown also who wins where."""
    if form == "csv":
        return _csv(matrix_records(rows), remark)
    if form == "latex":
        return _latex(*_paper(rows), remark)
    has_paper = any(table.paper for table in matrix_tables(rows))
    parts = [*map(markdown, matrix(rows)), note(has_paper), *summary_sentences(rows)]
    return _markdown("\n\n".join(parts), remark)


def _paper(rows: Sequence[Trial]) -> tuple[list[Table], list[str]]:
    """Return the tables as a paper has them, each with a caption of its own, and their footnotes."""
    notes = Footnotes()
    tables = [
        replace(
            view.shown,
            title=", ".join(part for part in (view.shown.title, group.title) if part),
            caption=note(view.table.has_paper),
        )
        for group in groups_of(rows, notes)
        for view in group.tables
    ]
    return tables, notes.texts


def _text(form: str, table: Table, remark: str) -> str:
    return _latex([table], [], remark) if form == "latex" else _markdown(markdown(table), remark)


def _markdown(text: str, remark: str) -> str:
    return f"{text}\n\n{remark}\n" if remark else f"{text}\n"


def _latex(tables: Sequence[Table], notes: Sequence[str], remark: str) -> str:
    return f"% {remark}\n{latex_file(tables, notes)}" if remark else latex_file(tables, notes)


def _csv(table: Table, remark: str) -> str:
    return csv_text(table.with_column("note", remark) if remark else table)
