"""Provides what many tests share: threads, a small learnable image set, a small configuration, a set without files."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from erat.config import RunConfig, build
from erat.data.types import CorruptedSet, ImageSet, SourceFacts
from erat.keys import known_keys
from erat.options import DataConfig
from erat.registry import DATASETS, Registry
from tests.arithmetic import inexact, is_exact, watched
from tests.threads import THREADS

torch.set_num_threads(THREADS)

ROOT = Path(__file__).parent
WATCHED: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_report_header() -> str:
    return f"torch: {torch.backends.cpu.get_cpu_capability()} kernels, {THREADS} thread{'s'[: THREADS > 1]}"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all end-to-end tests as `apart`, because they start Ray or servers, and others as `exact`.

    Raises:
        UsageError: `python -m tests`, which looks for the mark in the text of a file, would not find a test apart.
    """
    for item in items:
        if ROOT / "e2e" in item.path.parents:
            item.add_marker("apart")
        elif is_exact(item.path, ROOT):
            item.add_marker("exact")
        elif item.get_closest_marker("apart") and "mark.apart" not in item.path.read_text():
            raise pytest.UsageError(f"{item.nodeid} is apart, but `mark.apart` does not stand in its file")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep in `WATCHED` what a test that is marked `exact`, or a fixture of it, computes and starts."""
    if not item.get_closest_marker("exact"):
        return (yield)
    with watched() as seen:
        item.stash[WATCHED] = seen
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Let a test fail that is marked `exact` and is not.

    Raises:
        Failed: it would not be repeated with another instruction set, though it may depend on that.
    """
    result = yield
    if found := inexact(item.stash.get(WATCHED, []), item.path, ROOT):
        pytest.fail(f"this file is not exact (see tests/arithmetic.py): {', '.join(found[:5])}")
    return result


def pytest_sessionstart() -> None:
    """Keep the garbage collector away from what is imported: that stays, and to look through it takes seconds."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector begin, which never looks through what was there before."""
    gc.freeze()
    gc.enable()


SMALL_RUN: dict[str, Any] = {
    "data.image_size": 8,
    "corruption.data": "none",
    "corruption.labels": "none",
    "defense.warmup_epochs": 1,
    "defense.ramp_epochs": 1,
    "train.epochs": 3,
    "train.batch_size": 16,
    # The threads that execute_run sets during a run; left out if they are the default, so that commands stay short.
    **({} if THREADS == 1 else {"resources.cpu": THREADS}),
}


def images(count: int, *, classes: int = 4, size: int = 8, seed: int = 0, signal: float = 60.0) -> ImageSet:
    """Make grey images of `classes` fixed patterns with noise; the labels repeat 0, 1, 2, ...

    The patterns are the same for every seed, so that sets of different seeds can be a train and a test part.
    """
    patterns = torch.randn(classes, 1, size, size, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % classes
    pixels = (128 + signal * patterns[labels] + 30 * noise).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels, tuple(f"class {k}" for k in range(classes)))


def corrupted(train: int = 64, *, wrong: float = 0.25, **options: Any) -> CorruptedSet:
    """Make a small training set with clean val and test parts; its first share `wrong` has the next class's label."""
    clean = images(train, seed=1, **options)
    given = clean.labels.clone()
    flipped = round(wrong * train)
    given[:flipped] = (given[:flipped] + 1) % clean.num_classes
    return CorruptedSet(
        train=replace(clean, labels=given),
        true_labels=clean.labels,
        val=images(24, seed=2, **options),
        test=images(24, seed=3, **options),
    )


def small_config(overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Build the demo preset with only three epochs of small batches on 8 x 8 pixels, without corruption."""
    wanted = dict(overrides or {})
    keys = known_keys(str(wanted.get("defense.name", "erat")))
    return build("demo", {key: value for key, value in SMALL_RUN.items() if key in keys} | wanted)


@pytest.fixture(scope="session")
def make_images() -> Callable[..., ImageSet]:
    """Return `images`."""
    return images


@pytest.fixture(scope="session")
def make_data() -> Callable[..., CorruptedSet]:
    """Return `corrupted`."""
    return corrupted


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """Return `small_config`."""
    return small_config


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Registry[Any], str, Any], None]]:
    """Return a function to call as `register(DEFENSES, "mine", MyDefense)`; undo its calls after the test."""

    def add(registry: Registry[Any], name: str, part: Any) -> None:
        monkeypatch.setattr(registry, "_targets", dict(registry._targets))
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
        monkeypatch.setattr(registry, "_added", dict(registry._added))
        registry.add(name, part)
        known_keys.cache_clear()

    yield add
    known_keys.cache_clear()


class ToySource:
    """A data set without files: 120 training and 40 test images of four classes."""

    facts = SourceFacts(epsilon={"linf": 0.1, "l2": 1.0}, flip=False, policy="svhn")
    signal = 60.0

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        return images(120, seed=1, signal=self.signal), images(40, seed=3, signal=self.signal)


@pytest.fixture
def toy(register: Callable[..., None]) -> ToySource:
    """Register a data set called "toy" for one test."""
    source = ToySource()
    register(DATASETS, "toy", source)
    return source
