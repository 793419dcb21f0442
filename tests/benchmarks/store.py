"""Compares a poisoned set from the store with crafting it, and a checkpoint by a thread with a synchronous one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from erat.config import build
from erat.corruption.pipeline import poison
from erat.corruption.store import Store
from erat.data.loading import load
from erat.engine import checkpoint
from erat.engine.writer import CheckpointWriter
from orchestration.storage.shared import storage_at
from tests.benchmarks.harness import Comparison, Pairs, Work

IMAGES = 600
FLOATS = 42_500_000  # of a checkpoint of ResNet-34: weights and momenta, 170 MB


def comparisons() -> Iterator[Comparison]:
    """Yield the comparison for UHP of the demo preset, whose source network is trained as part of the crafting."""
    with TemporaryDirectory() as folder:
        yield Comparison(
            "poisoned set from the store",
            "crafting it",
            None,
            partial(_pair, Path(folder)),
            note=f"demo preset, {IMAGES} images; digest, checksum and copy against source network and UHP",
        )
    yield Comparison(
        "training waits for a checkpoint of 170 MB",
        "written and sent synchronously",
        None,
        note="ResNet-34; to the disk, and to a storage that is another folder there; wall time",
        pairs=_waits,
    )


def _waits(repeats: int) -> Pairs:
    """Time until the training goes on, with the thread at rest before, and until the same is written and sent."""
    state = {"weights": torch.randn(FLOATS // 2), "momenta": torch.randn(FLOATS // 2)}
    counted = []
    with TemporaryDirectory() as folder:
        path, storage = Path(folder) / "checkpoint.pt", storage_at(f"{folder}/storage")
        send = partial(storage.send, path, "checkpoint.pt", keep_previous=True)
        writer = CheckpointWriter(path, "1", send)
        for epoch in range(repeats + 1):  # the first is not counted
            began = time.perf_counter()
            writer.write(epoch, state)
            goes_on = time.perf_counter() - began
            writer.wait()
            began = time.perf_counter()
            checkpoint.save(path, state, keep_previous=True)
            send()
            counted.append((goes_on, time.perf_counter() - began))
    return counted[1:]


def _pair(folder: Path) -> tuple[Work, Work]:
    config = build("demo", {"data.limit": IMAGES})
    train, _ = load(config.data)
    filled, fresh = Store(folder / "filled"), (Store(folder / str(number)) for number in count())
    poison(train, config, filled)
    return lambda: poison(train, config, filled), lambda: poison(train, config, next(fresh))
