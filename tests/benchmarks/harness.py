"""Two pieces of work in turn, in one process, on one thread, by process time; their ratio, pair by pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Work = Callable[[], Any]


@dataclass(frozen=True)
class Comparison:
    """One line of the table, still to be measured.

    Attributes:
        name: what is timed.
        reference: what it is held against.
        bound: the ratio that it should not exceed (with `at_least`: not fall below); none: shown, not judged.
        prepare: called once; returns (ours, theirs), each to be called once per repeat.
        note: what a reader should know of the setting.
        share: the ratio is time spent / time of the reference instead of a comparison of two alternatives.
    """

    name: str
    reference: str
    bound: float | None
    prepare: Callable[[], tuple[Work, Work]]
    note: str = ""
    at_least: bool = False
    repeats: int | None = None


@dataclass(frozen=True)
class Result:
    """Seconds are medians over repeats; the ratio is the median of the pairs' ratios, with the smallest and largest."""

    name: str
    reference: str
    ratio: float
    least: float
    most: float
    seconds: float
    reference_seconds: float
    repeats: int
    bound: float | None
    kept: bool | None
    note: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def measure(comparison: Comparison, repeats: int, clock: Callable[[], float] = time.process_time) -> Result:
    """Run both in turn, `repeats` times after one round that is not counted."""
    ours, theirs = comparison.prepare()
    repeats = comparison.repeats or repeats
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        times.append((_timed(ours, clock), _timed(theirs, clock)))
    counted = times[1:]
    ratios = sorted(a / b for a, b in counted)
    ratio = median(ratios)
    bound = comparison.bound
    kept = None if bound is None else (ratio >= bound if comparison.at_least else ratio <= bound)
    return Result(
        comparison.name,
        comparison.reference,
        ratio,
        ratios[0],
        ratios[-1],
        median(a for a, _ in counted),
        median(b for _, b in counted),
        repeats,
        bound,
        kept,
        comparison.note,
    )


def _timed(work: Work, clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
