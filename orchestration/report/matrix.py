"""Runs of many defenses on many corruptions as the paper's tables have them: one table per data set and label noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from rich import box
from rich.table import Table
from rich.text import Text

from erat.data.spreadsheets import csv_text
from orchestration.report.grid import Cell, cell_of, column_name
from orchestration.report.notation import MISSING, baseline_name, header, named, value
from orchestration.report.published import published
from orchestration.study.trial import Trial

CAPTION = (
    "Clean test accuracy of the last epoch in percent (where there are several seeds: ± standard deviation, and how "
    "many); test accuracy chooses nothing. Best in bold, second best underlined."
)
_HEADER = "dataset,noise,corruption,defense,planned,done,mean,std,paper,difference,seeds\n"
_STYLES = {0: "bold", 1: "underline", None: ""}
_PAPER_NAMES = {"ERAT_inf": "ERAT∞", "ERAT_2": "ERAT2", "AT_inf": "AT∞", "AT_2": "AT2"}  # as our tables write them
# What makes a run's place in the tables, and its seed.
_PLACED = ("data.name", "corruption.data", "corruption.labels", "corruption.rate", "defense.name", "train.seed")
LineName = Callable[[Trial], str]
Setting = tuple[str, str]  # data set, label noise


@dataclass(frozen=True)
class MatrixTable:
    """One table: `cells[defense][corruption]`, names in the order in which they were planned."""

    dataset: str
    noise: str
    defenses: list[str]
    corruptions: list[str]
    cells: dict[str, dict[str, Cell]]
    paper: dict[tuple[str, str], float]  # what the paper prints for (defense, corruption), in percent

    @property
    def title(self) -> str:
        return f"{self.dataset}, {'no label noise' if self.noise == 'none' else f'{self.noise} label noise'}"

    def mean_of(self, defense: str) -> float | None:
        """Mean over the corruptions; none while one is missing."""
        means = [self.cells[defense][corruption].mean for corruption in self.corruptions]
        return None if any(value is None for value in means) else mean(value for value in means if value is not None)

    def rank(self, value: Callable[[str], float | None]) -> dict[str, int]:
        """Defense -> 0 for the best, 1 for the second best; ties share a place."""
        values = {name: round(number, 1) for name in self.defenses if (number := value(name)) is not None}
        order = sorted(set(values.values()), reverse=True)
        return {name: order.index(number) for name, number in values.items() if number in order[:2]}

    def ranks_on(self, corruption: str) -> dict[str, int]:
        """The ranks of a column."""
        return self.rank(lambda name: self.cells[name][corruption].mean)


def line_name(row: Trial) -> str:
    """ "ERAT", "ERAT, η 0.1", "UNICON, vgg16": a run's defense, with what else it is told apart by."""
    others = [key for key in row.params if key not in (*_PLACED, "corruption.epsilon") and not named(key, row)]
    words = [
        str(row.params[key]) if key == "model.name" else f"{header(key)} {value(key, row.params[key])}"
        for key in others
    ]
    return ", ".join([baseline_name(row), *words])


def matrix_tables(rows: Sequence[Trial], line: LineName = line_name) -> list[MatrixTable]:
    """The tables that these rows fill, in the order of the rows. An unfinished run is missing from its cell.

    Args:
        line: the line of a table that a run belongs to; `baseline_name` where what else varies is kept apart otherwise.
    """
    found: dict[Setting, dict[str, dict[str, list[Trial]]]] = {}
    for row in rows:
        setting = str(row.config.get("data.name")), column_name(row)
        by_defense = found.setdefault(setting, {})
        by_defense.setdefault(line(row), {}).setdefault(corruption_name(row), []).append(row)
    return [_table(setting, by_defense) for setting, by_defense in found.items()]


def _table(setting: Setting, by_defense: dict[str, dict[str, list[Trial]]]) -> MatrixTable:
    corruptions = list(dict.fromkeys(name for members in by_defense.values() for name in members))
    cells = {
        defense: {name: cell_of(members.get(name, [])) for name in corruptions}
        for defense, members in by_defense.items()
    }
    dataset, noise = setting
    kind = noise.split(" ")[0]
    paper = {
        (_PAPER_NAMES.get(cell.method, cell.method), cell.data_corruption): cell.test_accuracy
        for cell in reversed(published())  # where two tables contradict each other, the first counts
        if cell.dataset == dataset and cell.label_noise == kind
    }
    return MatrixTable(dataset, noise, list(by_defense), corruptions, cells, paper)


def corruption_name(row: Trial) -> str:
    """The data corruption of a run as the paper writes it."""
    kind = str(row.config.get("corruption.data", "none"))
    if kind == "none":
        return kind
    budget = row.params.get("corruption.epsilon")
    return kind.upper() if budget is None else f"{kind.upper()} {budget:.3g}"


# --- as text ---------------------------------------------------------------------------------------------------------


def _body(table: MatrixTable) -> Iterator[tuple[str, list[tuple[str, int | None]]]]:
    """Each defense with its cells: text, and 0 or 1 for the best and the second best of the column."""
    ranks = [table.ranks_on(of) for of in table.corruptions]
    means = table.rank(table.mean_of)
    for defense in table.defenses:
        shown = [
            (_words(table, defense, of), rank.get(defense)) for of, rank in zip(table.corruptions, ranks, strict=True)
        ]
        average = table.mean_of(defense)
        yield defense, [*shown, (MISSING if average is None else f"{average:.1f}", means.get(defense))]


def _words(table: MatrixTable, defense: str, corruption: str) -> str:
    cell = table.cells[defense][corruption]
    if cell.mean is None:
        return MISSING
    text = f"{cell.mean:.1f}" if cell.planned == 1 else cell.text()
    printed = table.paper.get((defense, corruption))
    return text if printed is None else f"{text} [{printed:.1f}]"


def matrix_markdown(rows: Sequence[Trial]) -> str:
    """All tables, then who wins where."""
    parts = []
    for table in matrix_tables(rows):
        heading = ["defense", *table.corruptions, "mean"]
        lines = [heading, [":--", *["--:"] * (len(heading) - 1)]]
        for defense, cells in _body(table):
            lines.append([defense, *(_marked(text, rank) for text, rank in cells)])
        parts.append(f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    note = f"{CAPTION} In brackets: the paper's." if any(table.paper for table in matrix_tables(rows)) else CAPTION
    return "\n\n".join([*parts, note, *summary_sentences(rows)]) + "\n"


def _marked(text: str, rank: int | None) -> str:
    return {0: f"**{text}**", 1: f"<u>{text}</u>"}.get(-1 if rank is None else rank, text)


def matrix_view(rows: Sequence[Trial]) -> list[Table]:
    """The tables for the terminal."""
    views = []
    for table in matrix_tables(rows):
        view = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ["defense", *table.corruptions, "mean"]:
            view.add_column(name, justify="left" if name == "defense" else "right")
        for defense, cells in _body(table):
            view.add_row(defense, *(Text(text, style=_STYLES[rank]) for text, rank in cells))
        views.append(view)
    return views


def matrix_csv(rows: Sequence[Trial]) -> str:
    """Every cell a line, with all its seeds."""
    lines: list[list[object]] = []
    for table in matrix_tables(rows):
        for defense in table.defenses:
            for corruption in table.corruptions:
                cell, printed = table.cells[defense][corruption], table.paper.get((defense, corruption))
                difference = None if cell.mean is None or printed is None else cell.mean - printed
                numbers = [cell.mean, cell.spread, printed, difference]
                shown = ["" if number is None else f"{number:.2f}" for number in numbers]
                seeds = " ".join(f"{value:.2f}" for value in cell.values)
                lines.append(
                    [table.dataset, table.noise, corruption, defense, cell.planned, len(cell.values), *shown, seeds]
                )
    return _HEADER + csv_text(lines, "\n")


# --- who wins --------------------------------------------------------------------------------------------------------


def summary_sentences(rows: Sequence[Trial], line: LineName = line_name) -> list[str]:
    """Plain words: who has the highest mean, how often it is best, and what a paired test over the cells says."""
    tables = matrix_tables(rows, line)
    means = {name: values for name in _names(tables) if (values := _over_cells(tables, name))}
    complete = {name: values for name, values in means.items() if len(values) == max(map(len, means.values()))}
    if len(complete) < 2:
        return []
    order = sorted(complete, key=lambda name: -mean(complete[name].values()))
    best, second = order[0], order[1]
    cells = list(complete[best])
    wins = sum(complete[best][cell] == max(values[cell] for values in complete.values()) for cell in cells)
    ranking = ", ".join(f"{name} {mean(complete[name].values()):.1f}" for name in order)
    sentences = [
        f"Mean over {len(cells)} cells: {ranking}.",
        f"{best} is best in {wins} of {len(cells)} cells, and in the mean "
        f"{mean(complete[best].values()) - mean(complete[second].values()):.1f} points ahead of {second}.",
    ]
    if len(cells) >= 6:
        from scipy.stats import wilcoxon  # here: half a second to load

        tests = []
        for name in order[1:]:
            differences = [complete[best][cell] - complete[name][cell] for cell in cells]
            if any(differences):
                tests.append(f"{name} p = {wilcoxon(differences).pvalue:.2g}")
        sentences.append(f"Wilcoxon's signed-rank test of {best} against each, paired over cells: {', '.join(tests)}.")
    return sentences


def _names(tables: Sequence[MatrixTable]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table.defenses))


def _over_cells(tables: Sequence[MatrixTable], defense: str) -> dict[tuple[str, str, str], float]:
    """The finished cells of a defense over all tables."""
    return {
        (table.dataset, table.noise, corruption): cell.mean
        for table in tables
        for corruption, cell in table.cells.get(defense, {}).items()
        if cell.mean is not None
    }
