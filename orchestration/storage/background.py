"""Threads that write beside the driver, so that no trial waits for a disk or a server."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_REST = 5.0
SWITCH_SECONDS = 0.0005


@contextmanager
def giving_way() -> Iterator[None]:
    """Have threads that compute give way to others after `SWITCH_SECONDS` during the block, not after Python's 5 ms.

    A driver makes many calls that let go of the interpreter, such as a look at a file. Beside a sampler that computes
    for a tenth of a second, each of them would take 5 ms or more.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Background:
    """A thread that does what waits, again each time that it is woken.

    The first error ends the thread; the owner raises it with `check` at the next opportunity.

    Args:
        name: name of the thread.
        work: does everything that waits.
        gather: seconds between waking and working, in which more may come, so that all of it is done at once. If the
            work takes longer than this, the thread then rests as long as it worked, up to `MOST_REST` seconds, so that
            the caller has the interpreter for at least half of the time. 0: the thread neither waits nor rests.
    """

    def __init__(self, name: str, work: Callable[[], object], gather: float = 0.0) -> None:
        self._work, self._gather = work, gather
        self._woken, self._closing = threading.Event(), threading.Event()
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the thread do what waits now."""
        self._woken.set()

    def check(self) -> None:
        """Raise the error that ended the thread, if there was one."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Let the thread finish what it does, and end it. What came meanwhile is left for the owner to do."""
        self._closing.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        rest = self._gather
        while True:
            self._woken.wait()
            if self._closing.wait(rest):
                return
            self._woken.clear()
            began = time.perf_counter()
            try:
                self._work()
            except Exception as error:
                self._fault = error
                return
            if self._gather:
                rest = min(MOST_REST, max(self._gather, time.perf_counter() - began))
