"""Shows runs of many defenses on many corruptions like the paper's tables: one table per data set and label noise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from orchestration.report.draws import over_draws
from orchestration.report.grid import Score, column_name, score_of
from orchestration.report.notation import MISSING, baseline_name, header, named, tested, value
from orchestration.report.published import published
from orchestration.report.table import Cell, Column, Mark, Part, Table
from orchestration.study.trial import Trial

CAPTION = (
    "Clean test accuracy of the last epoch in percent (where there are several seeds: ± standard deviation, and how "
    "many); test accuracy chooses nothing. Best in bold, second best underlined."
)
_RECORDED = ("planned", "done", "mean", "std", "paper", "difference", "seeds")
# names in this project's tables
PAPER_NAMES = {"ERAT_inf": "ERAT∞", "ERAT_2": "ERAT2", "AT_inf": "AT∞", "AT_2": "AT2"}
# The keys that determine the place of a run in the tables, and its seeds.
_PLACED = (
    "data.name",
    "corruption.data",
    "corruption.labels",
    "corruption.rate",
    "corruption.coupling",
    "corruption.overlap",
    "defense.name",
    "train.seed",
    "corruption.seed",
)
LineName = Callable[[Trial], str]
Setting = tuple[str, str]  # data set, label noise


@dataclass(frozen=True)
class MatrixTable:
    """A table: `cells[defense][corruption]`, with the names in the order in which they were planned."""

    dataset: str
    noise: str
    defenses: list[str]
    corruptions: list[str]
    cells: dict[str, dict[str, Score]]
    paper: dict[tuple[str, str], float]  # the paper's figure for (defense, corruption), in percent

    @property
    def title(self) -> str:
        return f"{self.dataset}, {'no label noise' if self.noise == 'none' else f'{self.noise} label noise'}"

    @property
    def has_paper(self) -> bool:
        """Return whether the paper prints a figure for one of the cells."""
        return any((defense, of) in self.paper for defense in self.defenses for of in self.corruptions)

    def mean_of(self, defense: str) -> float | None:
        """Return the mean over the corruptions, or None while one is missing."""
        means = [self.cells[defense][corruption].mean for corruption in self.corruptions]
        return None if any(value is None for value in means) else mean(value for value in means if value is not None)

    @cached_property
    def ranks(self) -> dict[str, dict[str, Mark]]:
        """Return, for each corruption, the defenses that are best and second best on it."""
        return {of: _ranks({name: self.cells[name][of].mean for name in self.defenses}) for of in self.corruptions}

    @cached_property
    def mean_ranks(self) -> dict[str, Mark]:
        """Return the defenses with the best and the second best mean."""
        return _ranks({name: self.mean_of(name) for name in self.defenses})

    def line(self, defense: str) -> list[Cell]:
        """Return the figures of a defense on each corruption, and their mean."""
        cells = [
            figure(self.cells[defense][of], self.ranks[of].get(defense), self.paper.get((defense, of)))
            for of in self.corruptions
        ]
        return [*cells, self.mean_cell(defense)]

    def mean_cell(self, defense: str, best: float | None = None) -> Cell:
        """Return the mean over the corruptions; a page shows that of the epochs `best` by validation below it."""
        average = self.mean_of(defense)
        if average is None:
            return Cell(MISSING)
        beside = () if best is None else (Part(f"{best:.1f}", "best", short=""),)
        return Cell(f"{average:.1f}", self.mean_ranks.get(defense), beside=beside)


def _ranks(reached: Mapping[str, float | None]) -> dict[str, Mark]:
    """Return the marks of the best and second best; figures that are equal as printed share a place."""
    values = {name: round(number, 1) for name, number in reached.items() if number is not None}
    order = sorted(set(values.values()), reverse=True)
    return {name: Mark(order.index(number)) for name, number in values.items() if number in order[:2]}


def line_name(row: Trial) -> str:
    """Return a run's defense and the other settings that distinguish it: "ERAT", "ERAT, η 0.1", "UNICON, vgg16"."""
    others = [key for key in row.params if key not in (*_PLACED, "corruption.epsilon") and not named(key, row)]
    words = [
        str(row.params[key]) if key == "model.name" else f"{header(key)} {value(key, row.params[key])}"
        for key in others
    ]
    return ", ".join([baseline_name(row), *words])


def matrix_tables(rows: Sequence[Trial], line: LineName = line_name) -> list[MatrixTable]:
    """Return the tables that these rows fill, in the order of the rows; an unfinished run is missing from its cell.

    Args:
        rows: the runs.
        line: names the line of a table that a run belongs to; `baseline_name` if other settings are kept apart in
            another way.
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
        defense: {name: score_of(members.get(name, [])) for name in corruptions}
        for defense, members in by_defense.items()
    }
    dataset, noise = setting
    kind = noise.split(" ")[0]
    paper = {
        (PAPER_NAMES.get(cell.method, cell.method), cell.data_corruption): cell.test_accuracy
        for cell in reversed(published())  # if two tables contradict each other, the first counts
        if cell.dataset == dataset and cell.label_noise == kind
    }
    return MatrixTable(dataset, noise, list(by_defense), corruptions, cells, paper)


def corruption_name(row: Trial) -> str:
    """Return the data corruption of a run as the paper writes it."""
    kind = str(row.config.get("corruption.data", "none"))
    if kind == "none":
        return kind
    budget = row.params.get("corruption.epsilon")
    return kind.upper() if budget is None else f"{kind.upper()} {budget:.3g}"


# --- as tables -------------------------------------------------------------------------------------------------------


def figure(
    score: Score,
    mark: Mark | None = None,
    paper: float | None = None,
    *,
    best: Score | None = None,
    missing: str = MISSING,
    notes: Sequence[int] = (),
    runs: Sequence[str] = (),
) -> Cell:
    """Return the table cell for the seeds of one setting, in percent.

    Args:
        score: the accuracies of the seeds in the last epoch.
        mark: whether the figure is the best or the second best of its column.
        paper: the figure that the paper prints, if any; `notes` are its footnotes.
        best: the accuracies in the epoch that was best by validation; shown only on a page.
        missing: the text if no run has ended.
        runs: digests of the seeds' runs.
    """
    beside = []
    if score.mean is None:
        beside.append(Part(missing, "why"))
    elif best is not None and best.mean is not None:
        beside.append(Part(f"{best.mean:.1f}{best.deviation}", "best", short="", title="epoch best by validation"))
    if paper is not None:  # a line of text shows it only beside a figure of this project
        short, after = ("", "") if score.mean is None else (f"[{paper:.1f}]", f"({score.mean - paper:+.1f})")
        words = "the paper's figure, and ours minus it"
        beside.append(Part(f"{paper:.2f}", "paper", short, after, words, tuple(notes)))
    if score.mean is None:
        return Cell(beside=tuple(beside), runs=tuple(runs))
    tail = ((score.deviation, "spread"), (f" ({score.count})" if score.planned > 1 else "", "n"))
    parts = tuple(Part(words, kind) for words, kind in tail if words)
    return Cell(f"{score.mean:.1f}", mark, parts, tuple(beside), runs=tuple(runs))


def drawn(table: MatrixTable, lines: Iterable[Sequence[Cell | str]], notes: Sequence[int] = ()) -> Table:
    """Return the table of these lines: the defense, its figure on each corruption, and the mean of these."""
    columns: list[str | Column] = ["defense", *table.corruptions, Column("mean", kind="mean")]
    return Table.of(columns, lines, title=table.title, notes=notes)


def matrix(rows: Sequence[Trial]) -> list[Table]:
    """Return one table per data set and label noise, which `note` explains."""
    return [drawn(table, ([name, *table.line(name)] for name in table.defenses)) for table in matrix_tables(rows)]


def note(has_paper: bool) -> str:
    """Return the caption that says how to read the tables."""
    return f"{CAPTION} In brackets: the paper's." if has_paper else CAPTION


def matrix_records(rows: Sequence[Trial]) -> Table:
    """Return every cell as a line, with all its seeds."""
    lines = []
    for table in matrix_tables(rows):
        for defense in table.defenses:
            for corruption in table.corruptions:
                score, printed = table.cells[defense][corruption], table.paper.get((defense, corruption))
                difference = None if score.mean is None or printed is None else score.mean - printed
                numbers = [score.mean, score.spread, printed, difference]
                shown = ["" if number is None else f"{number:.2f}" for number in numbers]
                seeds = " ".join(f"{value:.2f}" for value in score.values)
                place = [table.dataset, table.noise, corruption, defense]
                lines.append([*place, score.planned, len(score.values), *shown, seeds])
    return Table.of(["dataset", "noise", "corruption", "defense", *_RECORDED], lines)


# --- who wins --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """The defenses that have finished the most cells, by their mean over these, the highest first.

    Attributes:
        means: name -> cell -> accuracy in percent.
    """

    means: dict[str, dict[tuple[str, str, str], float]]

    @property
    def order(self) -> list[str]:
        return list(self.means)

    def mean_of(self, name: str) -> float:
        return mean(self.means[name].values())


def ranking(rows: Sequence[Trial], line: LineName = line_name) -> Ranking | None:
    """Return the ranking of the lines of the tables; None if there are fewer than two to compare."""
    tables = matrix_tables(rows, line)
    means = {name: values for name in _names(tables) if (values := _over_cells(tables, name))}
    complete = {name: values for name, values in means.items() if len(values) == max(map(len, means.values()))}
    if len(complete) < 2:
        return None
    return Ranking(dict(sorted(complete.items(), key=lambda item: -mean(item[1].values()))))


def summary_sentences(rows: Sequence[Trial], line: LineName = line_name) -> list[str]:
    """Say who has the highest mean, how often it is best, and how sure its lead is over draws of the corruption."""
    found = ranking(rows, line)
    if found is None:
        return []
    best, second = found.order[:2]
    cells = list(found.means[best])
    wins = sum(found.means[best][cell] == max(values[cell] for values in found.means.values()) for cell in cells)
    listed = ", ".join(f"{name} {found.mean_of(name):.1f}" for name in found.order)
    sentences = [
        f"Mean over {len(cells)} cells: {listed}.",
        f"{best} is best in {wins} of {len(cells)} cells, and in the mean "
        f"{found.mean_of(best) - found.mean_of(second):.1f} points ahead of {second}.",
    ]
    return [*sentences, over_draws({name: runs_of(rows, name, line) for name in found.order})]


def runs_of(
    rows: Sequence[Trial], name: str, line: LineName, seed: str = "corruption.seed"
) -> list[tuple[int, Hashable, float]]:
    """Return (seed, cell, accuracy in percent) of the finished runs of a line of the tables; `seed`: the key."""
    found: list[tuple[int, Hashable, float]] = []
    for row in rows:
        if row.status == "done" and line(row) == name and (reached := tested(row)) is not None:
            cell = row.config.get("data.name"), column_name(row), corruption_name(row)
            found.append((int(row.config.get(seed, 0)), cell, reached))
    return found


def _names(tables: Sequence[MatrixTable]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table.defenses))


def _over_cells(tables: Sequence[MatrixTable], defense: str) -> dict[tuple[str, str, str], float]:
    """Return the finished cells of a defense over all tables."""
    return {
        (table.dataset, table.noise, corruption): cell.mean
        for table in tables
        for corruption, cell in table.cells.get(defense, {}).items()
        if cell.mean is not None
    }
