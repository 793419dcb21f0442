"""Calls to a server that may be away for a while: kept in order in memory, made once each."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

# After a failure that took t seconds (a server that hangs), the next attempt waits this many times t: a sick server
# then costs at most a tenth of the driver's time. One that refuses at once is asked again at the very next call.
_REST = 9.0


class Outbox:
    """A queue of calls. The first that fails stops the queue, so that what is sent arrives in order.

    Args:
        hopeless: told the error of a call and how often that call has failed; true gives the call up.
    """

    def __init__(self, hopeless: Callable[[Exception, int], bool]) -> None:
        self._hopeless = hopeless
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._failures = 0  # of the first call in the queue
        self._away = False
        self._said: set[str] = set()
        self._not_before = 0.0

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Make a call after those that wait. It must be harmless to repeat: an answer may have been lost on its way."""
        self._waiting.append((call, arguments))
        if time.monotonic() >= self._not_before:
            self.flush()

    def flush(self) -> int:
        """Make the calls that wait. Returns how many still do."""
        while self._waiting:
            call, arguments = self._waiting[0]
            begun = time.monotonic()
            try:
                call(*arguments)
            except Exception as error:
                self._failures += 1
                if not self._hopeless(error, self._failures):
                    self._not_before = time.monotonic() + _REST * (time.monotonic() - begun)
                    self._warn_away(error)
                    break
                self._warn_refused(call, error)
            else:
                self._away = False
            self._failures = 0
            self._waiting.popleft()
        return len(self._waiting)

    def _warn_away(self, error: Exception) -> None:
        """One warning per outage, not one per epoch."""
        if not self._away:
            _log().warning("MLflow does not answer (%s): entries are kept, and sent when it does", one_line(error))
        self._away = True

    def _warn_refused(self, call: Callable[..., None], error: Exception) -> None:
        """One warning per reason: a run deleted on MLflow's page refuses every epoch to come."""
        name = getattr(call, "__name__", "call").strip("_").replace("_", " ")
        if (said := f"{name}: {one_line(error)}") not in self._said:
            _log().warning("MLflow refused to %s; training goes on without it", said)
        self._said.add(said)


def one_line(error: BaseException) -> str:
    """What went wrong, at most 300 characters; for a refused connection, wrapped four times over, the innermost."""
    inner = error
    while cause := inner.__cause__ or inner.__context__:
        inner = cause
    lines = str(inner if isinstance(inner, OSError) else error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
