"""A table for a README or an issue, in GitHub's Markdown."""

from __future__ import annotations

import re

from orchestration.report.table import Cell, Mark, Table
from orchestration.terminal import one_line

# What Markdown would take for a mark; an underscore inside a word, an & or a bracket that begins nothing, is none.
_SPECIAL = re.compile(r"[\\`*|<~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|\[(?=[^]]*][(\[])")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}
_MARKS = {Mark.BEST: "**{}**", Mark.SECOND: "<u>{}</u>", None: "{}"}
_RULES = {"left": ":--", "right": "--:"}


def escape(text: str) -> str:
    """Return any text as one line that Markdown shows as it is."""
    return _SPECIAL.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), one_line(text))


def markdown(table: Table) -> str:
    """Return the table under its title, and its caption below; no line end behind it."""
    lines = [
        [escape(column.heading) for column in table.columns],
        [_RULES[column.align] for column in table.columns],
        *([_cell(cell) for cell in row.cells] for row in table.rows),
    ]
    title = f"**{escape(table.title)}**" if table.title else ""
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(part for part in (title, drawn, escape(table.caption)) if part)


def _cell(cell: Cell) -> str:
    return _MARKS[cell.mark].format(escape(cell.line.strip()))
