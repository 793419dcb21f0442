"""Provides what the parts of the suite share: rows of the table, configurations, image sets, and the clock."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

import erat
import tests
from erat.config import RunConfig, build
from erat.data.types import CorruptedSet, ImageSet
from erat.defenses.base import Clock, EpochPlan, Phase
from erat.engine.trainer import Trainer
from erat.keys import known_keys

CLOCK = Clock(20)  # after the warm-up, at full weight of the unlabelled loss
CLASSES = 10
OF_SOME = {"scipy": "scipy", "sklearn": "scikit-learn"}  # modules, and their packages, that two defenses need


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what was tried.
        value: what came of it, as a person reads it; of a line that was left out or failed, why.
        kept: whether the bound is kept; None: there is no bound, or the line was left out.
        numbers: the figures, by name with their unit.
        left_out: whether it was not tried.
    """

    name: str
    value: str
    kept: bool | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    left_out: bool = False


Rows = Iterator[Row]


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: "cuda" or "cpu".
        quick: tiny sizes, which show that the suite works and no more.
        until: the time (`time.monotonic`) after which no further line is begun.
    """

    device: str
    quick: bool
    until: float = float("inf")

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def size(self) -> int:
        """Return the height and width of an image in pixels."""
        return 8 if self.quick else 32

    def network(self, name: str) -> str:
        """Return the network `name`, or a small one if sizes are tiny."""
        return "small" if self.quick else name

    def only_cuda(self, name: str) -> Row | None:
        """Return the line that says that `name` was left out, unless the device is a GPU."""
        return None if self.cuda else Row(name, "needs CUDA", left_out=True)

    def config(self, overrides: dict[str, Any], device: str | None = None) -> RunConfig:
        """Return the configuration of the preset `paper` on clean data, without warm-up, with these values."""
        basis: dict[str, Any] = {
            "data.image_size": self.size,
            "corruption.data": "none",
            "corruption.labels": "none",
            "defense.warmup_epochs": 0,
            "train.lr": 1e-3,  # at the paper's, the first update after initialisation turns rounding into another run
            "resources.device": device or self.device,
        }
        known = known_keys(str(overrides.get("defense.name", "erat")))
        return build("paper", {key: value for key, value in basis.items() if key in known} | overrides, quiet=True)

    def data(self, train: int, held_out: int = 20) -> CorruptedSet:
        """Return a set of colour images that can be learnt, a tenth of whose labels are wrong."""
        clean = _images(train, self.size, 1)
        given = clean.labels.clone()
        given[: train // 10] = (given[: train // 10] + 1) % CLASSES
        given_set = ImageSet(clean.images, given, clean.class_names)
        return CorruptedSet(given_set, clean.labels, _images(held_out, self.size, 2), _images(held_out, self.size, 3))


def _images(number: int, size: int, seed: int) -> ImageSet:
    """Make images of one pattern a class, the same for every seed, with noise."""
    patterns = torch.randn(CLASSES, 3, size, size, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(number) % CLASSES
    pixels = (128 + 50 * patterns[labels] + 30 * noise).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels, tuple("0123456789"))


def halves(trainer: Trainer) -> EpochPlan:
    """Return a plan in which half of the samples keep their labels and the others lose them."""
    everything = torch.arange(len(trainer.data.train))
    return EpochPlan((Phase(*everything.chunk(2)),))


def steps(trainer: Trainer, plan: EpochPlan | None = None) -> Iterator[Any]:
    """Make updates without end, epoch after epoch of the same plan, one for each value requested."""
    plan = plan or halves(trainer)
    for _ in count():
        yield from trainer.steps(plan, CLOCK)


def waited(device: str) -> float:
    """Return the time in seconds once the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def tidy(device: str) -> None:
    """Free what the last line has left on the device, its compiled programs too."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def tried(setting: Setting, name: str, make: Callable[[], Row]) -> Row:
    """Return the line that `make` measures; an error, or the lack of a package or of time, costs this line."""
    if time.monotonic() > setting.until:
        return Row(name, "no time left", left_out=True)
    try:
        return make()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in OF_SOME:
            return Row(name, f"{OF_SOME[error.name]} is not installed", left_out=True)
        return Row(name, f"{' '.join(f'{type(error).__name__}: {error}'.split())[:300]} ({_place(error)})", False)
    finally:
        tidy(setting.device)


def _place(error: Exception) -> str:
    """Return the innermost line of this project from which the error came."""
    frames = traceback.extract_tb(error.__traceback__)
    # Not all that lies in the repository: a virtual environment may lie there too.
    folders = [Path(package.__path__[0]) for package in (erat, tests)]
    own = [frame for frame in frames if any(map(Path(frame.filename).is_relative_to, folders))] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"
