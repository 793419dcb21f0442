"""Starts Ray where a machine is so busy that Ray gives up on its own processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil
import ray

ATTEMPTS = 3
T = TypeVar("T")


def patiently(start: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Start Ray, and start it again if it has given up waiting for its processes.

    How long it waits, half a minute at most, cannot be set. It leaves the processes of an attempt that failed; they are
    ended here.

    Args:
        start: starts Ray on this machine or raises, and returns what the caller is to have.
        attempts: how many times it is called at most.

    Raises:
        Exception: that of `start`, at its last attempt or for another reason.
    """
    for left in reversed(range(attempts)):
        before = set(psutil.Process().children(recursive=True))
        try:
            return start()
        except Exception as error:  # Ray has no class of its own for this
            if not left or "timed out during startup" not in str(error):
                raise
            warnings.warn("Ray did not start within half a minute, as on a busy machine; trying again", stacklevel=2)
            ray.shutdown()
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    if any("ray" in word for word in process.cmdline()):
                        process.kill()
    raise AssertionError("unreachable")
