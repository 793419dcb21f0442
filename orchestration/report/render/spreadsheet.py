"""Writes a table as CSV that a spreadsheet shows but does not execute."""

from __future__ import annotations

from erat.data import spreadsheets
from orchestration.report.table import Cell, Table


def csv_text(table: Table, line_end: str = "\n") -> str:
    """Return headings and rows, numbers with all their digits; a text that would be a formula gets an apostrophe."""
    head = [column.heading for column in table.columns]
    lines = ([_value(value) for value in row.values] for row in table.rows)
    return spreadsheets.csv_text([head, *lines], line_end)


def _value(value: object) -> object:
    if not isinstance(value, Cell):
        return value
    return value.line if value.tail or value.beside else value.value
