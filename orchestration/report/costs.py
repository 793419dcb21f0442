"""Relates the accuracy of trials to their cost: which trials of a search are on the Pareto front of the two."""

from __future__ import annotations

from collections.abc import Iterable

from orchestration.report.notation import finite
from orchestration.study.trial import Trial

OTHERS = ("baseline", "confirm")  # sources of trials that are no points of the search


def cost(row: Trial) -> float | None:
    """Return the seconds of an epoch of a trial, the mean over its epochs; None before the first one."""
    return row.seconds / row.epoch if row.epoch and row.seconds > 0 else None


def measured(rows: Iterable[Trial]) -> list[tuple[Trial, float, float]]:
    """Return (trial, seconds of an epoch, best validation accuracy in [0, 1]) of each trial of the search that is done.

    Listed runs and confirmations are left out, and so are trials without one of the two figures.
    """
    found = []
    for row in rows:
        if row.status == "done" and row.source not in OTHERS:
            seconds, height = cost(row), finite(row.best_val_accuracy)
            if seconds is not None and height is not None:
                found.append((row, seconds, height))
    return found


def front(rows: Iterable[Trial]) -> list[Trial]:
    """Return the trials that no other one beats in accuracy and cost at once, the cheapest first.

    A trial is beaten by another one that is at least as good in both and better in one. Equal trials are all kept.
    """
    kept: list[Trial] = []
    best, at = float("-inf"), float("-inf")
    for row, seconds, height in sorted(measured(rows), key=lambda each: (each[1], -each[2], each[0].number)):
        if height > best or (height == best and seconds == at):
            kept.append(row)
            best, at = height, seconds
    return kept
