"""Arranges a matrix for a page: groups of tables, with both figures, the paper's, or the reason why one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestration.report.chance import Guesses, is_chance, lead
from orchestration.report.errata import RECONSTRUCTION, Footnotes
from orchestration.report.grid import Score, column_name
from orchestration.report.matrix import (
    MatrixTable,
    Ranking,
    corruption_name,
    drawn,
    figure,
    matrix_tables,
    ranking,
    runs_of,
    summary_sentences,
)
from orchestration.report.notation import MISSING, baseline_name, header, state, value
from orchestration.report.table import Cell, Table
from orchestration.study.trial import FINISHED, Trial

# The keys of tables, their lines and columns; another key that varies divides the tables into groups.
_AXES = ("defense.name", "data.name", "corruption.data", "corruption.labels", "corruption.rate")
_SEEDS = ("train.seed", "corruption.seed")
MOST_RUNS = 12  # runs of a table cell that can be opened
NOTHING_KNOWN: Guesses = {}
Place = tuple[str, str, str, str]  # data set, label noise, defense, data corruption


@dataclass
class CellView:
    """A table cell: its runs, their scores in the last epoch and in the best by validation, and how it is shown."""

    runs: list[Trial]
    last: Score
    best: Score
    shown: Cell


@dataclass
class TableView:
    """A table: `lines[defense]` has its cells in the order of the corruptions."""

    table: MatrixTable
    lines: dict[str, list[CellView]]
    shown: Table

    @property
    def begun(self) -> bool:
        """Return whether any cell has a figure."""
        return any(cell.last.mean is not None for cells in self.lines.values() for cell in cells)


@dataclass
class Group:
    """A group of tables that differ only in data set and label noise."""

    title: str  # the settings of the group; empty if there is only one
    rows: list[Trial]
    tables: list[TableView]
    sentences: list[str]


def reason(row: Trial) -> str:
    """Return why a run has no result: "failed", "running 4/10", "not begun", …"""
    if row.status == "running":
        return f"running {row.epoch}/{row.epochs}"
    if row.status == "queued":
        if row.promoted and row.epoch == row.promoted:
            return state(row)
        return f"interrupted {row.epoch}/{row.epochs}" if row.epoch else "not begun"
    return state(row)


def groups_of(rows: Sequence[Trial], notes: Footnotes, guesses: Guesses = NOTHING_KNOWN) -> list[Group]:
    """Return the groups in the order of the rows.

    Args:
        rows: the runs.
        notes: the footnotes of the page.
        guesses: what guessing reaches on each data set; what is no better is called best nowhere.
    """
    keys = _extra_keys(rows)
    found: dict[str, list[Trial]] = {}
    for row in rows:
        title = ", ".join(f"{header(key)} {value(key, row.config.get(key))}" for key in keys)
        found.setdefault(title, []).append(row)
    return [
        Group(
            title,
            members,
            _tables(members, notes, guesses),
            [*_sentences(members, guesses), *_winners(members, guesses)],
        )
        for title, members in found.items()
    ]


def _extra_keys(rows: Sequence[Trial]) -> list[str]:
    """Return the keys that were set per run, are neither axis nor seed, and do not follow from the axes."""
    values: dict[str, dict[tuple[str, ...], set[str]]] = {}
    for row in rows:
        axes = (baseline_name(row), *(str(row.config.get(key)) for key in _AXES))
        for key in row.params:
            if key not in _AXES and key not in _SEEDS:
                values.setdefault(key, {}).setdefault(axes, set()).add(repr(row.config.get(key)))
    return [key for key, by_axes in values.items() if any(len(seen) > 1 for seen in by_axes.values())]


def place_of(row: Trial) -> Place:
    """Return the table cell that a run belongs to."""
    return str(row.config.get("data.name")), column_name(row), baseline_name(row), corruption_name(row)


def by_validation(rows: Sequence[Trial]) -> list[Trial]:
    """Return the same runs, judged by the epoch that was best by validation."""
    results = [replace(row.so_far, final_test_accuracy=row.best_val_test_accuracy) for row in rows]
    return [replace(row, result=result) for row, result in zip(rows, results, strict=True)]


def _tables(rows: Sequence[Trial], notes: Footnotes, guesses: Guesses) -> list[TableView]:
    runs: dict[Place, list[Trial]] = {}
    for row in rows:
        runs.setdefault(place_of(row), []).append(row)
    pairs = zip(matrix_tables(rows, baseline_name), matrix_tables(by_validation(rows), baseline_name), strict=True)
    return [_table(last, best, runs, notes, guesses) for last, best in pairs]


def _table(
    last: MatrixTable, best: MatrixTable, runs: dict[Place, list[Trial]], notes: Footnotes, guesses: Guesses
) -> TableView:
    kind = last.noise.split(" ")[0]
    lines: dict[str, list[CellView]] = {name: [] for name in last.defenses}
    for corruption in last.corruptions:
        for defense, line in lines.items():
            members = runs.get((last.dataset, last.noise, defense, corruption), [])
            reached, validated = (table.cells[defense][corruption] for table in (last, best))
            paper = last.paper.get((defense, corruption))
            shown = figure(
                reached,
                None if is_chance(reached.mean, guesses.get(last.dataset)) else last.ranks[corruption].get(defense),
                paper,
                best=validated,
                missing=_missing(members),
                notes=[] if paper is None else notes.of_cell(last.dataset, kind, defense, corruption),
                runs=[row.cell for row in members[:MOST_RUNS]],
            )
            line.append(CellView(members, reached, validated, shown))
    rebuilt = (notes.mark(RECONSTRUCTION),) if "MSPL" in lines else ()
    cells = [
        [
            Cell(name, notes=rebuilt if name == "MSPL" else ()),
            *(cell.shown for cell in line),
            last.mean_cell(name, best.mean_of(name)),
        ]
        for name, line in lines.items()
    ]
    return TableView(last, lines, drawn(last, cells, notes.of_table(last.dataset, kind) if last.has_paper else ()))


def _missing(runs: Sequence[Trial]) -> str:
    """Say in a word or two why a cell has no figure."""
    return ", ".join(dict.fromkeys(sorted(map(reason, runs)))) or MISSING


# --- in words --------------------------------------------------------------------------------------------------------


def _complete(tables: Sequence[MatrixTable]) -> set[tuple[str, str, str]]:
    """Return (data set, noise, corruption) of the columns in which every defense has a figure."""
    return {
        (table.dataset, table.noise, corruption)
        for table in tables
        for corruption in table.corruptions
        if all(table.cells[defense][corruption].mean is not None for defense in table.defenses)
    }


def _sentences(rows: Sequence[Trial], guesses: Guesses) -> list[str]:
    """Return `summary_sentences` over the columns that all defenses have finished, so that means are comparable.

    Before them stands whether the lead is more than noise, if runs were repeated; and what is no better than guessing
    leads nowhere.
    """
    tables = matrix_tables(rows, baseline_name)
    complete, columns = _complete(tables), sum(len(table.corruptions) for table in tables)
    kept = [
        row for row in rows if (str(row.config.get("data.name")), column_name(row), corruption_name(row)) in complete
    ]
    found = ranking(kept, baseline_name)
    if found is None:
        return ["Too few cells are finished to compare the defenses."] if len({*map(baseline_name, rows)}) > 1 else []
    words = summary_sentences(kept, baseline_name)
    words[:2] = words[1::-1]  # first who wins, then by how much
    if (first := _doubt(kept, found, guesses)) is not None:
        words[0] = first
    if len(complete) < columns:
        words.insert(1, f"So far all defenses have finished {len(complete)} of {columns} settings; these are compared.")
    return words


def _doubt(rows: Sequence[Trial], found: Ranking, guesses: Guesses) -> str | None:
    """Return the headline if the defense with the highest mean leads by nothing but chance; None if it does lead."""
    best, second = found.order[:2]
    if all(is_chance(height, guesses.get(cell[0])) for cell, height in found.means[best].items()):
        guess = guesses[next(iter(found.means[best]))[0]]
        return f"No defense is above {guess.words}: the highest mean is {found.mean_of(best):.1f} ({best})."
    by_draw, by_seed = (
        (runs_of(rows, best, baseline_name, seed), runs_of(rows, second, baseline_name, seed))
        for seed in ("corruption.seed", "train.seed")
    )
    judged = lead(by_draw, by_seed)
    if not judged.startswith("within"):
        return None
    return f"{best} and {second} cannot be told apart: the mean of {best} is higher, but {judged}."


def _winners(rows: Sequence[Trial], guesses: Guesses) -> list[str]:
    """Say for each table in a sentence which defense is best on which data corruptions."""
    sentences = []
    for table in matrix_tables(rows, baseline_name):
        wins: dict[str, list[str]] = {}
        for corruption in table.corruptions:
            if (table.dataset, table.noise, corruption) in _complete([table]) and len(table.defenses) > 1:
                ranks = table.ranks[corruption]
                names = [name for name in table.defenses if ranks.get(name) == 0]
                guess = guesses.get(table.dataset)
                guessed = is_chance(table.cells[names[0]][corruption].mean, guess)
                wins.setdefault("none above chance" if guessed else " and ".join(names), []).append(corruption)
        order = sorted(wins.items(), key=lambda item: -len(item[1]))
        if order:
            sentences.append(f"{table.title}: " + "; ".join(f"{who} on {', '.join(on)}" for who, on in order) + ".")
    return sentences


def missing_rows(rows: Sequence[Trial]) -> list[tuple[str, list[Trial]]]:
    """Return the runs without a result by state; failed ones come first."""
    names = ("failed", "running", "paused", "promoted", "interrupted", "not begun")
    states: dict[str, list[Trial]] = {name: [] for name in names}
    for row in rows:
        if row.status not in FINISHED:
            words = reason(row)
            states[words if words in states else words.split(" ")[0]].append(row)
    return [(name, members) for name, members in states.items() if members]
