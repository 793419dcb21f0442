"""Shows planned, not searched, runs as a table of data corruption x label noise: mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from erat.corruption.kinds import coupling_name
from orchestration.report.notation import MISSING, baseline_name, tested
from orchestration.report.table import Table
from orchestration.study.trial import Trial

CAPTION = (
    "clean test accuracy of the last epoch in percent: mean ± standard deviation (seeds); test accuracy chooses "
    "nothing; behind it the change against the first line in points."
)


@dataclass(frozen=True)
class Score:
    """The accuracies of the seeds of one setting, in percent; runs that have not ended are missing."""

    values: tuple[float, ...]
    planned: int

    @property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Return the standard deviation of the sample, or None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def deviation(self) -> str:
        """Return " ± 1.3", or nothing if there is no spread."""
        return "" if self.spread is None else f" ± {self.spread:.1f}"

    @property
    def count(self) -> str:
        """Return the number of seeds, as "2 of 3" if some are missing."""
        return f"{len(self.values)}" if len(self.values) == self.planned else f"{len(self.values)} of {self.planned}"

    def text(self) -> str:
        """Return "35.2 ± 1.3 (3)", or "(2 of 3)" for the count if runs are missing."""
        if self.mean is None:
            return MISSING
        return f"{self.mean:.1f}{self.deviation} ({self.count})"


@dataclass(frozen=True)
class Grid:
    """A pivot table of rows: `cells[line][column]`, with the names in the order in which they were planned."""

    lines: list[str]
    columns: list[str]
    cells: dict[str, dict[str, Score]]

    @classmethod
    def of(cls, rows: Sequence[Trial]) -> Grid:
        """Build the table: lines are defenses on data corruptions, columns are label noises."""
        found: dict[str, dict[str, list[Trial]]] = {}
        for row in rows:
            found.setdefault(_line(row), {}).setdefault(column_name(row), []).append(row)
        columns = list(dict.fromkeys(column for line in found.values() for column in line))
        cells = {
            line: {column: score_of(members) for column, members in by_column.items()}
            for line, by_column in found.items()
        }
        return cls(list(found), columns, cells)

    def fall(self, line: str, column: str) -> float | None:
        """Return the points below the first line of the column, which is the one without data corruption."""
        here, there = (self.cells[name].get(column) for name in (line, self.lines[0]))
        if here is None or there is None or here.mean is None or there.mean is None:
            return None
        return there.mean - here.mean

    def texts(self) -> list[list[str]]:
        """Return the heading and the body as texts."""
        body = []
        for line in self.lines:
            words = [line]
            for column in self.columns:
                cell, fall = self.cells[line].get(column), self.fall(line, column)
                shown = MISSING if cell is None else cell.text()
                words.append(shown if line == self.lines[0] or fall is None else f"{shown} {-fall:+.1f}")
            body.append(words)
        return [["data corruption", *self.columns], *body]


def _line(row: Trial) -> str:
    settings = row.config
    kind, norm, epsilon = (settings.get(f"corruption.{key}") for key in ("data", "norm", "epsilon"))
    budget = "" if kind == "none" else f" {norm} {epsilon:.3g}"
    return f"{baseline_name(row)} on {kind}{budget}"


def column_name(row: Trial) -> str:
    """Return the label noise of a run as text: "symmetric 0.6", "none", "labels_first symmetric 0.6"."""
    labels, rate = row.config.get("corruption.labels", "none"), row.config.get("corruption.rate")
    noise = f"{labels} {rate:g}" if rate and labels != "none" else str(labels)
    return f"{coupling_name(row.config)} {noise}".strip()


def score_of(rows: Sequence[Trial]) -> Score:
    """Return the score of these runs, which are the seeds of one setting."""
    reached = [tested(row) for row in rows if row.status == "done"]
    return Score(tuple(value for value in reached if value is not None), len(rows))


def grid(rows: Sequence[Trial]) -> Table:
    """Return the runs of one defense as a table: data corruption x label noise."""
    heading, *body = Grid.of(rows).texts()
    return Table.of(heading, body, caption=CAPTION)
