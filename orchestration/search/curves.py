"""The learning curves of the trials that are done, arranged so that those at one epoch are compared quickly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Curves:
    """The largest validation accuracy up to each epoch of the trials of a search that are done.

    Args:
        epochs: number of epochs of a full training.
    """

    def __init__(self, epochs: int) -> None:
        self._best = np.empty((epochs, 0))  # a row for each epoch and a column for each trial; NaN: not done

    def keep(self, place: int, history: Sequence[float]) -> None:
        """Keep the curve of a trial; after its last epoch it stays level.

        Args:
            place: position of the trial in the search, from 0.
            history: its validation accuracy after each epoch, in [0, 1]; at least one.
        """
        epochs, columns = self._best.shape
        if place >= columns:
            more = np.full((epochs, max(64, 2 * (place + 1) - columns)), np.nan)
            self._best = np.concatenate([self._best, more], axis=1)
        best = np.maximum.accumulate(history[:epochs])
        self._best[: len(best), place], self._best[len(best) :, place] = best, best[-1]

    def at(self, epoch: int, before: int) -> NDArray[np.float64]:
        """Return the largest accuracies after so many epochs of the trials that are done before a place, (N,)."""
        best: NDArray[np.float64] = self._best[epoch - 1, :before]
        return best[~np.isnan(best)]
