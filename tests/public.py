"""What tests of the public names share: the examples of docs/api.md, and packages of parts as pip installs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from erat.registration import REGISTRIES, temporary_registrations

API = Path(__file__).parents[1] / "docs" / "api.md"
_BLOCK = re.compile(r"(?:<!-- (?P<mark>[a-zA-Z ]+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def no_other_parts() -> Iterator[None]:
    """Undo all registrations of a test, and hide those that other tests of this process may have made."""
    with temporary_registrations():
        for registry in REGISTRIES.values():
            registry._added.clear()
        yield


def examples(mark: str | None) -> list[str]:
    """The page's examples with this mark before them: none, "with Ray" or "not run"."""
    return [found["code"] for found in _BLOCK.finditer(API.read_text()) if found["mark"] == mark]


def run_examples(names: dict[str, object], mark: str | None) -> None:
    """Execute these examples one after the other, as one program that knows `names`."""
    for number, code in enumerate(examples(mark)):
        exec(compile(code, f"{API}, {mark or 'plain'} example {number}", "exec", dont_inherit=True), names)


def installed(folder: Path, name: str, code: str, point: str) -> Path:
    """Write a package as `pip install` leaves it: a module, and metadata that names the entry point."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(dedent(code))
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[erat.plugins]\n{name} = {point}\n")
    return folder


# Everything that can be registered, in one module that imports public names alone.
PARTS = """
import torch
from erat import (CorruptionOptions, DataCorruption, Defense, DefenseOptions, ImageSet, LossTerms, SourceFacts,
                  register_backbone, register_corruption, register_dataset, register_defense)
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy

class SmoothedOptions(DefenseOptions):
    smoothing: float = 0.1

@register_defense("smoothed")
class Smoothed(Defense):
    Options = SmoothedOptions
    def __init__(self, options, task):
        super().__init__(options, task)
        self.networks = nn.ModuleDict({"main": task.build(0)})
    def loss(self, batch, clock):
        terms = LossTerms()
        logits = self.networks["main"](batch.images)
        terms.add("ce", cross_entropy(logits, batch.labels, label_smoothing=self.settings.smoothing))
        return terms

class StripeOptions(CorruptionOptions):
    rows: int | None = Field(1, ge=1, le=8)

@register_corruption("stripe")
class Stripe(DataCorruption):
    norm = "linf"
    Options = StripeOptions
    def perturb(self, craft):
        delta = torch.zeros_like(craft.images)
        delta[:, :, : craft.options["rows"]] = craft.epsilon
        return delta

@register_dataset("levels")
class Levels:
    facts = SourceFacts(epsilon={"linf": 0.1, "l2": 1.0}, flip=False, policy="digits")
    def load(self, config):
        def part(count, seed):
            noise = torch.randint(0, 60, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
            labels = torch.arange(count) % 3
            return ImageSet((60 * labels[:, None, None, None] + noise).to(torch.uint8), labels, ("a", "b", "c"))
        return part(120, 0), part(30, 1)

@register_backbone("linear")
def linear(num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))
"""
OWN = {
    "data.name": "levels",
    "data.image_size": 8,
    "corruption.data": "stripe",
    "corruption.rows": 2,
    "corruption.labels": "none",
    "defense.name": "smoothed",
    "model.name": "linear",
    "train.epochs": 2,
    "train.batch_size": 16,
}
