"""Starts processes that have imported what tests need: one process imports it, and all others are its copies."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

# Importing these takes a process three seconds, of which a copy of one takes none.
IMPORTED = [
    "pytest",
    "tests.two_workers",
    "erat.engine.trainer",
    "orchestration.run.execute",
    "orchestration.study.ledger",
]


def prepared() -> ForkServerContext:
    """Return a context whose processes share no memory with this one, as those of `spawn`, and start in no time.

    They have the environment variables that this process had when the first of them started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context
