"""Shows what the paper printed beside rankings: its figure for a line of the same setting, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

from orchestration.report.boards import Board, Line, Ranking
from orchestration.report.errata import Footnotes
from orchestration.report.matrix import PAPER_NAMES
from orchestration.report.notation import EPSILON_INF, MISSING, value
from orchestration.report.published import PublishedAccuracy, published
from orchestration.report.table import Cell, Column, Part, Table

_NETWORK, _EPOCHS = "resnet34", 100  # of all its tables


def printed(board: Board, ranking: Ranking, line: Line) -> PublishedAccuracy | None:
    """Return the paper's figure for a line; None unless data, network, schedule and settings are the paper's."""
    settings = board.config
    same = board.preset == "paper" and not board.more and not ranking.more and line.plain
    if not same or (settings["model.name"], settings["train.epochs"]) != (_NETWORK, _EPOCHS):
        return None
    mine = line.config
    names = {line.name} | ({"AT∞" if mine.get("defense.norms") == "linf" else "AT2"} if line.name == "AT" else set())
    for cell in published():
        if (
            cell.dataset == settings["data.name"]
            and cell.label_noise == mine["corruption.labels"]
            and isclose(cell.noise_rate, mine["corruption.rate"] or 0.0)
            and cell.data_corruption.lower() == mine["corruption.data"]
            and (cell.norm is None or cell.norm == mine["corruption.norm"])
            and (cell.norm is None or isclose(cell.epsilon, mine["corruption.epsilon"]))
            and PAPER_NAMES.get(cell.method, cell.method) in names
        ):
            return cell
    return None


def printed_cell(line: Line, cell: PublishedAccuracy | None, notes: Footnotes) -> Cell:
    """Return the paper's figure for a table, with its footnotes and the distance to it."""
    if cell is None:
        return Cell(MISSING)
    marks = notes.of_cell(cell.dataset, cell.label_noise, line.name, cell.data_corruption)
    tail = (Part(f" ({line.mean - cell.test_accuracy:+.1f})", "n", title="this project's mean minus the paper's"),)
    return Cell(f"{cell.test_accuracy:.2f}", tail=tail, notes=tuple(marks))


def published_tables(notes: Footnotes) -> dict[str, list[tuple[str, Table]]]:
    """Return data set -> (label noise, table) of all that the paper printed: methods by data corruptions."""
    found: dict[str, dict[tuple[str, str, float], list[PublishedAccuracy]]] = {}
    for cell in published():
        key = cell.table, cell.label_noise, cell.noise_rate
        found.setdefault(cell.dataset, {}).setdefault(key, []).append(cell)
    return {
        dataset: [(_noise(noise, rate), _as_printed(cells, notes)) for (_, noise, rate), cells in tables.items()]
        for dataset, tables in found.items()
    }


def _noise(kind: str, rate: float) -> str:
    return "none" if kind == "none" else f"{kind} {rate:g}"


def _as_printed(cells: Sequence[PublishedAccuracy], notes: Footnotes) -> Table:
    first = cells[0]
    budgets: dict[str, str] = {}
    lines: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        name = PAPER_NAMES.get(cell.method, cell.method)
        budget = value(EPSILON_INF if cell.norm == "linf" else "", cell.epsilon)
        budgets[cell.data_corruption] = f"{cell.data_corruption} {cell.norm} {budget}" if cell.norm else "clean images"
        marks = notes.of_cell(cell.dataset, cell.label_noise, name, cell.data_corruption)
        lines.setdefault(name, {})[cell.data_corruption] = Cell(f"{cell.test_accuracy:.2f}", notes=tuple(marks))
    noise = _noise(first.label_noise, first.noise_rate)
    return Table.of(
        (Column("method", "left", "name"), *map(Column, budgets.values())),
        ((name, *(line.get(kind, Cell(MISSING)) for kind in budgets)) for name, line in lines.items()),
        title=f"Table {first.table}: {'no' if noise == 'none' else noise} label noise",
        notes=notes.of_table(first.dataset, first.label_noise),
    )
