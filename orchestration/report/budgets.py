"""Describes the paper's sweep over pairs of training budgets (Fig. 5): their order, and which ones hurt."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isclose, log

from orchestration.report.notation import EPSILON_2, EPSILON_INF, value
from orchestration.study.trial import Trial

MARGIN = 2.0  # a setting hurts if it is more than this many percentage points below the best
# Fig. 5 of the paper: multiples of the reference l_inf budget, and the multiples of the l_2 budget paired with them.
_MULTIPLES = ((1 / 8, 0.2), (1 / 4, 0.4), (1 / 2, 0.6), (3 / 4, 0.8), (1.0, 1.0), (3 / 2, 1.2), (2.0, 1.4), (3.0, 1.6))
_GLYPHS = {1 / 8: "⅛", 1 / 4: "¼", 1 / 2: "½", 3 / 4: "¾"}
_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class BudgetAxis:
    """An axis with the paper's pairs, equally spaced in order; other budgets lie between them, by their logarithm.

    Attributes:
        stops: l_inf budgets that have a tick, ascending and positive.
        companions: the l_2 budget that is paired with each stop; empty if the stops are not the paper's pairs.
        reference: the usual l_inf budget of the data set, of which the paper's pairs are multiples, if it is known.
    """

    stops: tuple[float, ...]
    companions: tuple[float, ...] = ()
    reference: float | None = None

    @classmethod
    def of(cls, rows: Sequence[Trial]) -> BudgetAxis:
        """Return the axis for these rows: the paper's pairs among them, or some of their budgets if there are none."""
        paper = sorted({pair(row) for row in rows if row.source == "paper" and pair(row)[0] > 0})
        if len({eps_inf for eps_inf, _ in paper}) < 2:
            return cls(tuple(log_ticks(EPSILON_INF, [pair(row)[0] for row in rows])))
        companions = dict(paper)
        return cls(tuple(companions), tuple(companions.values()), _reference(paper))

    def position(self, eps_inf: float) -> float:
        """Return the place of a budget: 0 at the first stop, 1 at the second, just off the axis if it is far beyond."""
        if eps_inf <= 0 or len(self.stops) < 2:
            return 0.0 if eps_inf in self.stops else -0.7
        after = min(max(bisect_right(self.stops, eps_inf), 1), len(self.stops) - 1)
        low, high = self.stops[after - 1], self.stops[after]
        place = after - 1 + log(eps_inf / low) / log(high / low)
        return min(max(place, -0.7), len(self.stops) - 0.3)

    def label(self, index: int) -> str:
        """Return the label of a stop in up to three lines: multiple of the reference, eps_inf, eps_2."""
        lines = [value(EPSILON_INF, self.stops[index])]
        if self.companions:
            lines.append(value(EPSILON_2, self.companions[index]))
        if self.reference:
            multiple = round(self.stops[index] / self.reference, 6)
            lines.insert(0, _GLYPHS.get(multiple, f"{multiple:.3g}") + _TIMES)
        return "\n".join(lines)


def log_ticks(key: str, numbers: Iterable[float]) -> list[float]:
    """Return round numbers near these for a logarithmic axis: 2^n/255 for an l_inf budget, else 1, 2, 5 times 10^n."""
    positive = [number for number in numbers if number > 0]
    if not positive:
        return []
    rungs = [2.0**n / 255 for n in range(-8, 9)]
    if key != EPSILON_INF:
        rungs = [digit * 10.0**n for n in range(-9, 7) for digit in (1, 2, 5)]
    first = max(bisect_right(rungs, min(positive) * 1.001) - 1, 0)
    last = min(bisect_left(rungs, max(positive) * 0.999), len(rungs) - 1)
    return rungs[first : last + 1]


def pair(row: Trial) -> tuple[float, float]:
    """Return (eps_inf, eps_2) of a trial, with 0 for a budget that it does not have."""
    return float(row.params.get(EPSILON_INF) or 0.0), float(row.params.get(EPSILON_2) or 0.0)


def _reference(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the l_inf budget of which all these pairs are the paper's multiples, None unless there is exactly one."""
    fitting: list[float] = []
    for times_inf, times_2 in _MULTIPLES if pairs else ():
        unit_inf, unit_2 = pairs[0][0] / times_inf, pairs[0][1] / times_2
        grid = [(a * unit_inf, b * unit_2) for a, b in _MULTIPLES]
        if all(any(isclose(a, c, rel_tol=1e-5) and isclose(b, d, rel_tol=1e-5) for c, d in grid) for a, b in pairs):
            fitting.append(unit_inf)
    return fitting[0] if len(fitting) == 1 else None


def hurting(accuracies: Sequence[float], margin: float = MARGIN) -> tuple[int, int]:
    """Return how many settings at the small end, and at the large end, are more than `margin` points below the best."""
    if not accuracies:
        return 0, 0
    below = [max(accuracies) - accuracy > margin for accuracy in accuracies]
    return below.index(False), below[::-1].index(False)
