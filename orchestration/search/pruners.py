"""Pruners by name: which proposals are stopped early, and which of those that wait at a rung go on.

A pruner decides by results alone. It sees validation accuracies, never the clock and never the test accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from orchestration.study import abilities
from orchestration.study.rungs import KEPT
from orchestration.study.spaces import SearchSpace


@dataclass(frozen=True)
class Pruner:
    """A pruner that stops nothing; the base of the others.

    Args:
        space: the search space with its settings; see `SearchSpace`.
        epochs: number of epochs of a full training.
    """

    # Names of the settings of the space that it reads, out of `abilities.PRUNING`; None: it does not say. If "rungs" is
    # among them, the value "auto" of that setting becomes the epochs that follow from the schedule.
    settings: ClassVar[tuple[str, ...] | None] = None

    space: SearchSpace
    epochs: int

    @property
    def rungs(self) -> tuple[int, ...]:
        """Return the epochs, ascending, at which a proposal pauses until its block has been decided."""
        return ()

    def stops(self, epoch: int, best: float, reference: NDArray[np.float64]) -> bool:
        """Return whether to stop a proposal.

        Args:
            epoch: number of epochs that it has done.
            best: its largest validation accuracy so far, in [0, 1].
            reference: the largest validation accuracy after as many epochs of each trial that it is compared with,
                those that are done and stand before its window, (N,).
        """
        return False

    def promoted(self, best: Mapping[int, float]) -> set[int]:
        """Return the numbers of the trials of one block that go on from a rung; the others are stopped.

        Args:
            best: number -> largest validation accuracy up to the rung, for the trials of the block that reached it.
        """
        return set(best)


class Never(Pruner):
    """The pruner "none", which stops nothing."""

    settings = abilities.NEVER


class Median(Pruner):
    """The pruner "median": a proposal below the median of the earlier trials at the same epoch is stopped."""

    settings = abilities.MEDIAN

    def stops(self, epoch: int, best: float, reference: NDArray[np.float64]) -> bool:
        patience = max(1, round(self.space.grace * self.epochs))
        if not patience <= epoch < self.epochs or not len(reference):
            return False
        return bool(best < np.median(reference))


class Halving(Pruner):
    """The pruner "halving": successive halving, where the best third of each block goes on from each rung.

    Jamieson and Talwalkar 2016, Non-stochastic Best Arm Identification and Hyperparameter Optimization. A block is
    decided when all its trials have come to the rung, so that the decision does not depend on the order.
    """

    settings = abilities.HALVING

    @property
    def rungs(self) -> tuple[int, ...]:
        assert self.space.rungs != "auto", "the specification of a study settles them"
        return tuple(self.space.rungs)

    def promoted(self, best: Mapping[int, float]) -> set[int]:
        # Of equal trials, the earlier one goes on.
        order = sorted(best, key=lambda number: (-best[number], number))
        return set(order[: max(1, round(len(order) * KEPT))] if order else ())
