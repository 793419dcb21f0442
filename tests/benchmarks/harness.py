"""Times two pieces of work alternately, in one process and thread, by process time; gives the ratio of each pair."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Work = Callable[[], Any]
Pairs = Sequence[tuple[float, float]]  # seconds of (ours, reference), once per repeat
Note = str | Callable[[float, float], str]


@dataclass(frozen=True)
class Comparison:
    """One line of the table that is still to be measured.

    Attributes:
        name: what is timed.
        reference: what it is compared with.
        bound: the ratio that must not be exceeded (with `at_least`: that must be reached); none: shown only.
        prepare: called once; returns (ours, theirs), each to be called once per repeat.
        note: what a reader should know about the setting; a function gets the seconds of both.
        at_least: whether `bound` is the least ratio allowed.
        repeats: number of counted repeats; none: the number of the command line.
        wall: measure wall-clock time instead of process time, for work in other processes or on the disk.
        limit_ms: milliseconds that must not be exceeded; the ratio is then shown only.
        pairs: in place of `prepare`, for work that measures itself: called with the number of repeats.
    """

    name: str
    reference: str
    bound: float | None
    prepare: Callable[[], tuple[Work, Work]] | None = None
    note: Note = ""
    at_least: bool = False
    repeats: int | None = None
    wall: bool = False
    limit_ms: float | None = None
    pairs: Callable[[int], Pairs] | None = None


@dataclass(frozen=True)
class Result:
    """The result of a comparison.

    The seconds are medians over repeats; the ratio is the median of the ratios of the pairs, given with the least and
    the largest.
    """

    name: str
    reference: str
    ratio: float
    least: float
    most: float
    seconds: float
    reference_seconds: float
    repeats: int
    bound: float | None
    limit_ms: float | None
    kept: bool | None
    note: str

    def json(self) -> dict[str, Any]:
        return asdict(self)


def measure(comparison: Comparison, repeats: int) -> Result:
    """Run both alternately, `repeats` times after one round that is not counted, and return the result."""
    repeats = comparison.repeats or repeats
    counted = comparison.pairs(repeats) if comparison.pairs else _in_turn(comparison, repeats)
    ratios = sorted(a / b for a, b in counted)
    ratio = median(ratios)
    seconds, reference_seconds = (median(column) for column in zip(*counted, strict=True))
    note = comparison.note
    return Result(
        comparison.name,
        comparison.reference,
        ratio,
        ratios[0],
        ratios[-1],
        seconds,
        reference_seconds,
        len(counted),
        comparison.bound,
        comparison.limit_ms,
        _kept(comparison, ratio, seconds),
        note if isinstance(note, str) else note(seconds, reference_seconds),
    )


def _in_turn(comparison: Comparison, repeats: int) -> Pairs:
    assert comparison.prepare is not None, f"{comparison.name} says neither what to run nor how to measure it"
    ours, theirs = comparison.prepare()
    clock = time.perf_counter if comparison.wall else time.process_time
    return [(timed(ours, clock), timed(theirs, clock)) for _ in range(repeats + 1)][1:]


def _kept(comparison: Comparison, ratio: float, seconds: float) -> bool | None:
    if comparison.limit_ms is not None:
        return 1000 * seconds <= comparison.limit_ms
    if comparison.bound is None:
        return None
    return ratio >= comparison.bound if comparison.at_least else ratio <= comparison.bound


def timed(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes."""
    started = clock()
    work()
    return clock() - started


def keep_freed_memory() -> None:
    """Tell the C library, if it is glibc, to keep freed memory for the next allocation.

    Otherwise, large tensors are mapped again each time, at a cost that depends on the state of the heap: one run of a
    network then takes up to three times as long as the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-4, 0)  # M_MMAP_MAX
