"""Tells accuracies above chance, and leads beyond the noise, from those that are not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean

from orchestration.report.draws import LEVEL, differences, interval

Run = tuple[int, Hashable, float]  # seed, cell, accuracy in percent


@dataclass(frozen=True)
class Guess:
    """What guessing reaches on a test set: 1 / `classes`, measured on `images`."""

    classes: int
    images: int

    @property
    def most(self) -> float:
        """Return the accuracy in percent that guessing exceeds once in forty times: two standard errors above 1/K."""
        share = 1 / self.classes
        return 100 * (share + 2 * sqrt(share * (1 - share) / max(1, self.images)))

    @property
    def words(self) -> str:
        return f"chance ({100 / self.classes:.3g} % with {self.classes} classes)"


Guesses = Mapping[str, Guess]  # name of a data set -> what guessing reaches on it


def is_chance(height: float | None, guess: Guess | None) -> bool:
    """Return whether an accuracy in percent is no better than guessing; False if the data set is not known."""
    return height is not None and guess is not None and height <= guess.most


def lead(by_draw: tuple[Sequence[Run], Sequence[Run]], by_seed: tuple[Sequence[Run], Sequence[Run]]) -> str:
    """Say whether the first of two defenses is ahead by more than the noise.

    Args:
        by_draw: the finished runs of both, with the seeds of the corruption.
        by_seed: the same runs, with the seeds of training, which count if there is one draw of the corruption.

    Returns:
        "within the noise of 3 draws of the corruption (…)", "more than the noise …", or nothing if neither draws nor
        seeds are repeated.
    """
    for runs, what in ((by_draw, "draws of the corruption"), (by_seed, "seeds of training")):
        found = differences(*runs)
        if len(found) > 1:
            low, high = interval(found)
            verdict = "within the noise" if low <= 0 <= high else "more than the noise"
            return (
                f"{verdict} of {len(found)} {what} (difference {mean(found):+.1f}, {LEVEL:.0%} interval "
                f"[{low:+.1f}, {high:+.1f}])"
            )
    return ""
