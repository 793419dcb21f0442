"""Writes a table for a README or an issue, in GitHub's Markdown."""

from __future__ import annotations

import re

from orchestration.report.table import Cell, Mark, Table
from orchestration.terminal import one_line

# Characters that Markdown would read as markup; not an underscore inside a word, or an & or bracket that begins
# nothing.
_SPECIAL = re.compile(r"[\\`*|<~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|\[(?=[^]]*][(\[])")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}
_MARKS = {Mark.BEST: "**{}**", Mark.SECOND: "<u>{}</u>", None: "{}"}
_RULES = {"left": ":--", "right": "--:"}


def escape(text: str) -> str:
    """Return any text as one line that Markdown shows literally."""
    return _SPECIAL.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), one_line(text))


def markdown(table: Table) -> str:
    """Return the table under its title, with its caption below; the text does not end with a line break."""
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
