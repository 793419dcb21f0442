"""Measure how much of this machine's processor other programs use, which Ray's workers must wait for.

Ray gives its workers a low priority (niceness 15), so that they get what programs of normal priority leave. Linux
counts the time of both kinds apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

MUCH = 0.5  # share of all cores from which the machine counts as busy with something else
NICENESS = "RAY_worker_niceness"  # the variable by which Ray can be told another priority
WINDOW_SECONDS = 30.0  # over which the live view measures
WHY = "Ray's workers have low priority and get what is left: trials may take many times longer"


class Meter:
    """Measures the cores that other programs used between two calls.

    Args:
        used: returns the seconds of processor time that programs of normal priority have used so far, this process
            excluded.
        clock: returns seconds that never decrease.
        cores: number of cores; None: those of this machine.
    """

    def __init__(
        self,
        used: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        cores: int | None = None,
    ) -> None:
        self._used, self._clock, self._cores = used or _used_elsewhere, clock, cores or psutil.cpu_count() or 1
        self._before, self._when = self._used(), clock()
        self._said = False

    def cores(self) -> float:
        """Return how many cores other programs used since the last call, on average."""
        used, now = self._used(), self._clock()
        passed = now - self._when
        found = (used - self._before) / passed if passed > 0 else 0.0
        self._before, self._when = used, now
        return min(max(0.0, found), float(self._cores))

    def words(self, cores: float) -> str | None:
        """Return one line for a person if other programs use so many cores that trials are slowed; None otherwise."""
        if cores < MUCH * self._cores or os.environ.get(NICENESS) == "0":  # then nothing tells them apart
            return None
        return f"other programs use {cores:.1f} of {self._cores} cores of this machine; {WHY}"

    def news(self) -> str | None:
        """Return that line when the machine becomes busy; may be called often, and measures every `WINDOW_SECONDS`."""
        if self._clock() - self._when < WINDOW_SECONDS:
            return None
        said, words = self._said, self.words(self.cores())
        self._said = words is not None
        return None if said else words


def busy_cores(seconds: float) -> float:
    """Return how many cores other programs use, measured for this time."""
    meter = Meter()
    time.sleep(seconds)
    return meter.cores()


def _used_elsewhere() -> float:
    own = psutil.Process().cpu_times().user if psutil.Process().nice() <= 0 else 0.0
    return float(psutil.cpu_times().user) - own
