"""The blocks of a search with rungs: which proposals are compared with each other, and how far each has come.

Without rungs there are blocks, too, but nothing is ever decided in them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite


class Blocks:
    """Blocks of successive proposals, and the rungs that each proposal has reached and from which it was promoted.

    Args:
        rungs: epochs of the rungs, ascending.
        first: number of the first proposal.
        ends: where a block must end: the numbers that follow the last trial of the search, now and before each
            extension.
        size: number of proposals in a block, apart from those that end early.
        promoted: number -> epoch of the last rung from which the trial was promoted. It is kept up to date.
        decided: first number of a block -> number of its rungs that were decided.
    """

    def __init__(
        self, rungs: Sequence[int], first: int, ends: Iterable[int], size: int, promoted: Mapping[int, int]
    ) -> None:
        self.rungs = tuple(rungs)
        self.promoted = dict(promoted)
        self._bounds = [first]
        for end in sorted(set(ends)):
            if end > self._bounds[-1]:
                self._bounds += [*range(self._bounds[-1] + size, end, size), end]
        self.decided = dict.fromkeys(self._bounds[:-1], 0)
        self._best: dict[tuple[int, int], float] = {}  # number, rung -> largest validation accuracy up to there

    def start(self, number: int) -> int:
        """Return the first number of the block of a proposal."""
        return self._bounds[bisect_right(self._bounds, number) - 1]

    def members(self, start: int) -> range:
        """Return the numbers of the block that begins with this number."""
        return range(start, self._bounds[bisect_right(self._bounds, start)])

    def before(self, level: int) -> int:
        """Return the epoch of the rung before a level, counted from 0; 0 if there is none."""
        return self.rungs[level - 1] if level else 0

    def next_rung(self, number: int) -> int | None:
        """Return the epoch of the first rung from which a proposal was not promoted, or None."""
        return next((rung for rung in self.rungs if rung > self.promoted.get(number, 0)), None)

    def note(self, number: int, history: Sequence[float]) -> None:
        """Remember the rungs that a trial has reached. What was reached once stays so, even if the run begins again.

        Args:
            number: number of the trial.
            history: its validation accuracy after each epoch, in [0, 1].
        """
        for rung in self.rungs:
            if len(history) >= rung and (number, rung) not in self._best:
                self._best[number, rung] = max(filter(isfinite, history[:rung]), default=-inf)

    def best(self, number: int, rung: int) -> float | None:
        """Return the largest validation accuracy of a trial up to a rung, in [0, 1]; None if it did not reach it.

        It is -inf if no accuracy is finite.
        """
        return self._best.get((number, rung))
