"""What the sampler may know of a search's trials when it proposes the next one. Numbers alone decide this.

What the sampler sees of trial m when it proposes trial n: the state at the first rung if m is before n - W, where W is
the window; the state at the second rung if m and its block are before n - 2 W, and so on; the end counts as the last
rung. A search that was extended may have another window for the further trials; what the last of the others could see,
these see, too. The sampler is told only when all of these trials have come that far, even if it was known before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Protocol

from orchestration.search.blocks import Blocks
from orchestration.study.trial import Trial


@dataclass(frozen=True, slots=True)
class Observation:
    """What the sampler may know of a trial.

    Attributes:
        state: "complete"; "pruned" for a trial that was stopped, or that is only known up to a rung; or "failed", also
            for an accuracy that is not finite.
        epochs: number of epochs that are known.
        best_val_accuracy: largest validation accuracy of these epochs, in [0, 1]; None if it failed.
        cost: seconds of an epoch; None if it failed, or is only known up to a rung.
    """

    state: Literal["complete", "pruned", "failed"]
    epochs: int = 0
    best_val_accuracy: float | None = None
    cost: float | None = None


class Sampler(Protocol):
    """The source of the search's values. The queue calls it in an order that does not depend on the clock.

    A trial whose values were given or proposed and that was not told is running, as far as the sampler knows.
    """

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        """Take note that the trial of this number has these values (dotted key -> value), which were given ahead."""
        ...

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the values of a trial, dotted key -> value.

        Args:
            number: number of the trial.
            known: the values that were proposed for it before the study was resumed, which are then returned.
        """
        ...

    def tell(self, number: int, observation: Observation) -> None:
        """Take a trial into account in later proposals; another call for the same trial replaces the first one."""
        ...


class Observations:
    """What the sampler was told of which trial, and what it is to be told next.

    Levels are counted from 0, the first rung (without rungs: the end).

    Args:
        trials: number -> trial, for the trials made so far; the queue keeps it up to date.
        same: number of a trial -> number of an earlier one with the same configuration; likewise.
        blocks: the blocks of the search, and what its proposals have reached; likewise.
        begin: number of the search's first trial.
        first: number of its first proposal.
        windows: the window for each part of the search, by the number that follows the last trial of the part,
            ascending. A search has more than one part if it was extended.
    """

    def __init__(
        self,
        trials: Mapping[int, Trial],
        same: Mapping[int, int],
        blocks: Blocks,
        begin: int,
        first: int,
        windows: Sequence[tuple[int, int]],
    ) -> None:
        self.trials, self.same, self.blocks = trials, same, blocks
        self.begin, self.first, self.windows = begin, first, tuple(windows)
        # For each level: the first trial of which the sampler was not told, and the first one not known to have come
        # there.
        levels = len(blocks.rungs) + 1
        self._told, self._arrived = [begin] * levels, [begin] * levels
        self._observed: dict[int, Observation] = {}

    def window(self, number: int) -> int:
        """Return the window of a trial."""
        return next(window for end, window in self.windows if number < end)

    def limit(self, number: int, level: int) -> int:
        """Return the first trial whose state at a level trial `number` does not depend on; it depends on all before.

        What becomes of a trial after the first rung depends on its whole block, so that only whole blocks count at the
        later levels. If all of a block have come to a level, the rungs before it are decided.
        """
        limit = self.begin
        for end, window in self.windows:
            # What an earlier part has seen stays seen by a later one, even if that has a wider window.
            limit = max(limit, min(number, end - 1) - (level + 1) * window)
            if number < end:
                break
        return self.blocks.start(limit) if level and limit >= self.first else limit

    def all_arrived(self, number: int) -> bool:
        """Return whether all trials on which the proposal of trial `number` depends have come as far as needed."""
        for level in range(len(self._arrived)):
            while self._arrived[level] < self.limit(number, level):
                if not self._is_at(self._arrived[level], level):
                    return False
                self._arrived[level] += 1
        return True

    def to_tell(self, number: int) -> Iterator[tuple[int, Observation]]:
        """Yield what the sampler is to be told before it proposes trial `number`, and take it as told."""
        for level in range(len(self._told)):
            while (earlier := self._told[level]) < self.limit(number, level):
                self._told[level] += 1
                observation = self._observation(self.same.get(earlier, earlier), level)
                if self._observed.get(earlier) != observation:
                    self._observed[earlier] = observation
                    yield earlier, observation

    def _is_at(self, number: int, level: int) -> bool:
        """Return whether a trial has come to a level, or has ended before it."""
        number, rungs = self.same.get(number, number), self.blocks.rungs
        at_rung = level < len(rungs) and self.blocks.best(number, rungs[level]) is not None
        return at_rung or (number in self.trials and self.trials[number].ended)

    def _observation(self, number: int, level: int) -> Observation:
        """Return what the sampler may know of a trial at a level.

        A proposal that was not promoted is known up to its rung, even if another study has trained it to the end.
        """
        trial = self.trials[number]
        stays_at = self.blocks.next_rung(number) if trial.source == "optuna" else None
        rungs = [rung for rung in (stays_at, *self.blocks.rungs[level : level + 1]) if rung]
        if rungs and (reached := self.blocks.best(number, min(rungs))) is not None:
            return (
                Observation("pruned", min(rungs), reached) if isfinite(reached) else Observation("failed", min(rungs))
            )
        result = trial.so_far
        best, cost = result.best_val_accuracy, result.train_seconds / result.epochs if result.epochs else None
        if result.status not in ("done", "stopped") or best is None or not isfinite(best):
            return Observation("failed", result.epochs)
        return Observation("complete" if result.status == "done" else "pruned", result.epochs, best, cost)
