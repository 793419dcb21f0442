"""Let a worker that is preempted write a checkpoint first. Its node is taken away, and it receives SIGTERM.

The worker finishes the batch in progress and puts the checkpoint on the storage, and the trial resumes from it on
another node. This module imports only the standard library, because Ray runs `prepare` in every process that it
starts.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# How long a worker may take after SIGTERM. Clouds and Kubernetes wait 30 seconds before they kill a process.
GRACE_SECONDS = float(os.environ.get("ERAT_GRACE", "20"))

_training, _asked = threading.Event(), threading.Event()


def prepare() -> None:
    """Arrange that SIGTERM counts as preemption while a trial runs in this process.

    This must be called from the main thread. Ray installs its own handler later, at a time when none of our code runs
    in that thread any more. `signal.signal` is therefore replaced until Ray calls it for SIGTERM; Ray's handler is
    wrapped in ours at that moment, once, and still called whenever no trial runs.
    """
    put = signal.signal

    def around(number: int, handler: Any) -> Any:
        if number != signal.SIGTERM:
            return put(number, handler)
        signal.signal = put
        return put(number, _first_to_us(handler))

    signal.signal = around  # type: ignore[assignment]


def _first_to_us(handler: Any) -> Callable[[int, Any], None]:
    """Return a SIGTERM handler that notes a preemption while a trial runs, and otherwise calls `handler`."""

    def leave(number: int, frame: Any) -> None:
        if not _training.is_set():
            if callable(handler):
                handler(number, frame)
            return
        if not _asked.is_set():
            _asked.set()
            # End the process in any case: the batch may take too long, or Ray may not release this process.
            timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()

    return leave


@contextmanager
def training() -> Iterator[None]:
    """Mark that a trial runs in this process while the block runs."""
    _training.set()
    try:
        yield
    finally:
        _training.clear()


def requested() -> bool:
    """Return whether this process was preempted: it received SIGTERM while a trial ran."""
    return _asked.is_set()
