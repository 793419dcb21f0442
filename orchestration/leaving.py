"""A worker that is told to leave by SIGTERM, since its node is taken away, ends its epoch first if time allows.

The checkpoint of that epoch is then on the storage, and the trial goes on from it elsewhere. Loads nothing: Ray runs
`prepare` in every process that it starts.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = float(os.environ.get("ERAT_GRACE", "20"))  # clouds and Kubernetes give 30 before they kill

_training, _asked = threading.Event(), threading.Event()


def prepare() -> None:
    """Take over SIGTERM while a trial runs in this process. To be called from its main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def leave(number: int, frame: Any) -> None:
        if not _training.is_set():
            if callable(before):
                before(number, frame)
            return
        if not _asked.is_set():
            _asked.set()
            # The epoch may not end in time, nor Ray let go of this process.
            timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()

    signal.signal(signal.SIGTERM, leave)


@contextmanager
def training() -> Iterator[None]:
    """While the block runs, a trial is under way in this process."""
    _training.set()
    try:
        yield
    finally:
        _training.clear()


def leave_if_asked() -> None:
    """To be called when a checkpoint is in its place.

    Raises:
        SystemExit: this process was told to leave.
    """
    if _asked.is_set():
        raise SystemExit("told to leave: the trial goes on elsewhere from its last epoch")
