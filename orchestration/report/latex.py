"""The tables for a paper: LaTeX that compiles wherever it is \\input, with booktabs' rules where that is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.report.errata import Footnotes
from orchestration.report.grid import Grid
from orchestration.report.matrix import CAPTION
from orchestration.report.notation import MISSING
from orchestration.report.sections import CellView, TableView, groups_of
from orchestration.report.summary import best, caption, headings, ranked, texts_of
from orchestration.study.trial import Trial

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
    "·": r"$\cdot$",
    "−": r"$-$",
}
_PREAMBLE = r"""% Needs no package; with \usepackage{booktabs} the rules are booktabs' own.
\providecommand{\toprule}{\hline}\providecommand{\midrule}{\hline}\providecommand{\bottomrule}{\hline}
\providecommand{\textquotedbl}{''}
"""


def escape(text: str) -> str:
    """Any text as LaTeX prints it."""
    return "".join(_SPECIAL.get(char, char) for char in text)


def matrix_latex(rows: Sequence[Trial]) -> str:
    """One table per data set and label noise: mean ± std, the paper's in brackets, best bold, second underlined."""
    notes, tables = Footnotes(), []
    for group in groups_of(rows, notes):
        for view in group.tables:
            title = ", ".join(part for part in (view.table.title, group.title) if part)
            body = [[escape(name), *_figures(view, name)] for name in view.table.defenses]
            words = f"{title}. {CAPTION}" + (" In brackets: the paper's." if view.has_paper else "")
            tables.append(tabular(words, ["defense", *view.table.corruptions, "mean"], body))
    listed = [f"% [{number}] {escape(text)}" for number, text in enumerate(notes.texts, 1)]
    return "\n".join([_PREAMBLE, *tables, *listed, *([""] if listed else [])])


def _figures(view: TableView, defense: str) -> list[str]:
    mean, _, rank = view.means[defense]
    return [*map(_figure, view.lines[defense]), _marked(MISSING if mean is None else f"{mean:.1f}", rank)]


def _figure(cell: CellView) -> str:
    if cell.last.mean is None:
        return escape(cell.missing or MISSING)
    text = f"{cell.last.mean:.1f}" if cell.last.planned == 1 else cell.last.text()
    paper = "" if cell.paper is None else f" [{cell.paper:.1f}]"
    return _marked(text, cell.rank) + paper


def _marked(text: str, rank: int | None) -> str:
    words = escape(text)
    return {0: f"\\textbf{{{words}}}", 1: f"\\underline{{{words}}}"}.get(-1 if rank is None else rank, words)


def grid_latex(rows: Sequence[Trial]) -> str:
    """Runs of one defense: data corruption x label noise."""
    heading, *body = Grid.of(rows).texts()
    lines = [[escape(word) for word in line] for line in body]
    return f"{_PREAMBLE}\n{tabular(CAPTION, heading, lines)}\n"


def summary_latex(rows: Sequence[Trial], columns: Sequence[str]) -> str:
    """A search, best validation accuracy first."""
    chosen = best(rows)
    body = [
        [_marked(text, 0 if row is chosen else None) for text in texts_of(row, columns, row is chosen)]
        for row in ranked(rows)
    ]
    return f"{_PREAMBLE}\n{tabular(caption(rows), headings(columns), body)}\n"


def tabular(words: str, heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A floating table. The heading and the caption are escaped here, the body by the caller."""
    lines = [
        r"\begin{table}",
        r"\centering\small",
        f"\\caption{{{escape(words)}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape, heading)) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)
