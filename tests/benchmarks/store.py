"""Compares reading a poisoned set from the store with crafting it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from erat.config import build
from erat.corruption.pipeline import poison
from erat.corruption.store import Store
from erat.data.loading import load
from tests.benchmarks.harness import Comparison, Work

IMAGES = 600


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


def _pair(folder: Path) -> tuple[Work, Work]:
    config = build("demo", {"data.limit": IMAGES})
    train, _ = load(config.data)
    filled, fresh = Store(folder / "filled"), (Store(folder / str(number)) for number in count())
    poison(train, config, filled)
    return lambda: poison(train, config, filled), lambda: poison(train, config, next(fresh))
