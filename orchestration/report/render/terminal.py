"""Writes a table for the terminal, drawn by rich."""

from __future__ import annotations

import rich.table
from rich import box
from rich.text import Text

from orchestration.report.table import Cell, Mark, Table
from orchestration.terminal import one_line

STATUS_STYLES = {
    "queued": "dim",
    "running": "cyan",
    "paused": "magenta",
    "done": "green",
    "stopped": "yellow",
    "failed": "bold red",
}
_MARKS = {Mark.BEST: "bold", Mark.SECOND: "underline", None: ""}
# Columns; a dense table with more has no gaps and short states, so that four searched values fit into 80 characters.
_MANY = 10


def terminal(table: Table, rules: bool = True, wrap: bool = True) -> rich.table.Table:
    """Return a table that rich prints; no text of the table is interpreted as rich's markup.

    Args:
        table: the table.
        rules: whether there is a rule below the headings.
        wrap: whether cells that do not fit continue on a second line; otherwise they are cut, as in a dense table
            always.
    """
    tight = table.dense and len(table.columns) > _MANY
    gap = 0 if tight else 1
    drawn = rich.table.Table(
        title=Text(one_line(table.title), style="italic") if table.title else None,
        title_justify="left",
        caption=Text(one_line(table.caption)) if table.caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD if rules else None,
        padding=(0, gap, 0, 0) if rules else (0, 1),
    )
    for column in table.columns:
        heading = one_line(column.heading)
        drawn.add_column(
            Text(heading.replace(" ", "\n") if table.dense else heading),
            justify=column.align,
            vertical="bottom" if table.dense else "top",
            no_wrap=table.dense or not wrap,
        )
    for row in table.rows:
        style = "bold" if row.chosen else STATUS_STYLES[row.state] if row.state else None
        drawn.add_row(*(_cell(cell, tight) for cell in row.cells), style=style)
    return drawn


def _cell(cell: Cell, tight: bool) -> Text:
    pieces = [(cell.text, ""), *((part.line, STATUS_STYLES.get(part.kind, "")) for part in cell.tail)]
    if tight and cell.state:
        pieces = [(cell.text.replace(" at ", "@"), "")]
    if cell.others:
        pieces.append((" " + cell.others if cell.figure else cell.others, ""))
    style = STATUS_STYLES.get(cell.state, _MARKS[cell.mark])
    return Text.assemble(*((one_line(words), of) for words, of in pieces), style=style)
