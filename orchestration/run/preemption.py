"""A worker that is told to leave by SIGTERM, since its node is taken away, writes a checkpoint first.

After the batch in hand; the checkpoint is then on the storage, and the trial goes on from it elsewhere. Loads nothing:
Ray runs `prepare` in every process that it starts.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = float(os.environ.get("ERAT_GRACE", "20"))  # clouds and Kubernetes give 30 before they kill

_training, _asked = threading.Event(), threading.Event()


def prepare() -> None:
    """Take over SIGTERM while a trial runs in this process. To be called from its main thread.

    Ray puts a handler of its own in place later, when nothing of ours runs in that thread any more: it is taken in the
    moment in which it is put there, once, and asked whenever no trial runs.
    """
    put = signal.signal

    def around(number: int, handler: Any) -> Any:
        if number != signal.SIGTERM:
            return put(number, handler)
        signal.signal = put
        return put(number, _first_to_us(handler))

    signal.signal = around  # type: ignore[assignment]


def _first_to_us(handler: Any) -> Callable[[int, Any], None]:
    def leave(number: int, frame: Any) -> None:
        if not _training.is_set():
            if callable(handler):
                handler(number, frame)
            return
        if not _asked.is_set():
            _asked.set()
            # The batch may not end in time, nor Ray let go of this process.
            timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()

    return leave


@contextmanager
def training() -> Iterator[None]:
    """While the block runs, a trial is under way in this process."""
    _training.set()
    try:
        yield
    finally:
        _training.clear()


def requested() -> bool:
    """Whether this process was told to leave."""
    return _asked.is_set()
