"""Measures what MLflow costs after each epoch, as a share of the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from erat.config import build
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.defenses.base import Clock
from erat.engine.trainer import Trainer
from orchestration.storage.workspace import Workspace
from orchestration.tracking.tracker import Tracker
from tests.benchmarks.harness import Comparison, Work

AFTER_WARMUP = Clock(5)


def comparisons() -> Iterator[Comparison]:
    """Yield the comparison for ERAT of the demo preset on unpoisoned digits (as many as there are poisoned ones).

    The epochs are logged to a new SQLite store.
    """
    with TemporaryDirectory() as folder:
        yield Comparison(
            "an epoch's figures into MLflow",
            "the epoch, demo preset",
            0.01,
            partial(_pair, Path(folder)),
            note="by wall clock: it waits for the disk",
            wall=True,
        )


def _pair(folder: Path) -> tuple[Work, Work]:
    config, workspace = build("demo", {"corruption.data": "none"}), Workspace(folder)
    trainer = Trainer(config, corrupted_set(config, Store(workspace.crafted)))
    tracker, epochs = Tracker.open(workspace), count(1)
    run = tracker.start_run(config.digest(), config.flat(), parent=None, sweep=None, source="train")
    row = asdict(trainer._epoch(AFTER_WARMUP))
    return lambda: tracker.log_epoch(run, row, next(epochs)), lambda: trainer._epoch(AFTER_WARMUP)
