"""Writes a table for a paper: LaTeX that compiles wherever it is \\input, with booktabs' rules if that is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestration.report.table import Cell, Mark, Row, Table
from orchestration.terminal import one_line

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "∞": r"$_\infty$",
    "ε": r"$\varepsilon$",
    "η": r"$\eta$",
    "λ": r"$\lambda$",
    "★": r"$\star$",
    "◆": r"$\diamond$",
    "↑": r"$\uparrow$",
    "·": r"$\cdot$",
    "−": r"$-$",
}
_MARKS = {Mark.BEST: r"\textbf{%s}", Mark.SECOND: r"\underline{%s}", None: "%s"}
_PREAMBLE = r"""% Needs no package; with \usepackage{booktabs} the rules are booktabs' own.
\providecommand{\toprule}{\hline}\providecommand{\midrule}{\hline}\providecommand{\bottomrule}{\hline}
\providecommand{\textquotedbl}{''}
"""


def escape(text: str) -> str:
    """Return any text as one line that LaTeX prints literally."""
    return "".join(_SPECIAL.get(char, char) for char in one_line(text))


def latex(table: Table) -> str:
    """Return the table as a float, with title and caption above it."""
    words = ". ".join(part for part in (table.title, table.caption) if part)
    lines = [
        r"\begin{table}",
        r"\centering\small",
        *([f"\\caption{{{escape(words)}}}"] if words else []),
        f"\\begin{{tabular}}{{{''.join(column.align[0] for column in table.columns)}}}",
        r"\toprule",
        _line(escape(column.heading) for column in table.columns),
        r"\midrule",
        *(_line(_cell(cell, row) for cell in row.cells) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def latex_file(tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """Return a file to \\input: what the tables need, the tables, and the footnotes as comments, numbered from 1."""
    listed = [f"% [{number}] {escape(text)}\n" for number, text in enumerate(notes, 1)]
    return "\n".join([_PREAMBLE, *map(latex, tables), "".join(listed)])


def _line(cells: Iterable[str]) -> str:
    line = " & ".join(cells) + r" \\"
    # either would be read as an argument of the \\ before it
    return f"{{}}{line}" if line.startswith(("[", "*")) else line


def _cell(cell: Cell, row: Row) -> str:
    mark = Mark.BEST if row.chosen else cell.mark
    parts = (_MARKS[mark] % escape(cell.figure) if cell.figure else "", escape(cell.others))
    return " ".join(part for part in parts if part)
