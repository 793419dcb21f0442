"""Compares defenses over draws of the corruption: mean differences, and intervals that another draw would be within.

Cells of one table share the draw of the labels, the images and the initial weights, so a test over cells would count
the same chance many times. A draw, which is a seed of the corruption, is therefore one observation: the mean over the
cells, each of which is the mean over its seeds of training.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import sqrt
from statistics import mean, stdev

LEVEL = 0.95  # of the intervals
Run = tuple[int, Hashable, float]  # seed of the corruption, cell, accuracy in percent


def over_draws(runs: Mapping[str, Sequence[Run]]) -> str:
    """Return a sentence on how far the first defense is ahead of each other one, with intervals over the draws.

    Args:
        runs: name of a defense -> its finished runs, the best defense first.
    """
    best, *others = runs
    compared = {name: differences(runs[best], runs[name]) for name in others}
    fewest = min(map(len, compared.values()))
    if fewest < 2:
        return (
            "One draw of the corruption has no interval, and says nothing of other draws: `matrix --draws 0,1,2` makes "
            "three."
        )
    words = []
    for name, found in compared.items():
        low, high = interval(found)
        words.append(f"{name} {mean(found):+.1f} [{low:+.1f}, {high:+.1f}]")
    counts = sorted({len(found) for found in compared.values()})
    return (
        f"{best} minus each, in points, as the mean over {' or '.join(map(str, counts))} draws of the corruption with "
        f"its {LEVEL:.0%} interval (Student's t; the mean of cells and training seeds is one observation for each "
        f"draw; not corrected for the number of comparisons): {', '.join(words)}."
    )


def differences(first: Sequence[Run], second: Sequence[Run]) -> list[float]:
    """Return, for each draw in which both have the same finished cells, the mean of first minus second over the cells.

    A cell that one of them lacks in some draw is left out of all draws, so that every draw compares the same cells.
    """
    mine, theirs = _by_draw(first), _by_draw(second)
    draws = sorted(mine.keys() & theirs.keys())
    shared = [mine[draw].keys() & theirs[draw].keys() for draw in draws]
    cells = set.intersection(*map(set, shared)) if shared else set()
    return [mean(mean(mine[d][cell]) - mean(theirs[d][cell]) for cell in cells) for d in draws] if cells else []


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of Student's interval of `LEVEL` for the mean of at least two observations."""
    from scipy.stats import t  # imported here because it takes half a second to load

    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def _by_draw(runs: Sequence[Run]) -> dict[int, dict[Hashable, list[float]]]:
    found: dict[int, dict[Hashable, list[float]]] = {}
    for draw, cell, accuracy in runs:
        found.setdefault(draw, {}).setdefault(cell, []).append(accuracy)
    return found
