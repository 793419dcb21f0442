"""Tests the digests that name runs and crafted sets: what an earlier version stored under a name is found again.

`digests.json` was written by `python -m tests.golden.test_digests` when the settings of the corruptions were fields of
one section.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erat.config import RunConfig, build, content_digest
from erat.corruption.pipeline import _image_parameters, _label_parameters
from erat.corruption.source import Traits
from erat.presets import PRESETS
from erat.registry import DATASETS
from erat.variants import defense_names

FILE = Path(__file__).with_name("digests.json")
SETS = ("mnist", "cifar10", "cifar100", "tiny-imagenet", "folder")
# Every kind with its defaults, and with each option that only this kind has.
POISONS: dict[str, dict[str, Any]] = {
    "none": {"data": "none"},
    "urp": {"data": "urp"},
    "urp, linf, 4/255": {"data": "urp", "norm": "linf", "epsilon": "4/255", "share": 0.5},
    "uhp": {"data": "uhp"},
    "uhp, 7 steps": {"data": "uhp", "steps": 7, "source_epochs": 3, "seed": 2},
    "uap": {"data": "uap"},
    "uap, 7 steps": {"data": "uap", "steps": 7, "source": "vgg11"},
    "up": {"data": "up"},
    "up, per image": {"data": "up", "granularity": "sample", "steps": 9},
    "ap": {"data": "ap"},
    "ap, 7 steps": {"data": "ap", "steps": 7, "norm": "linf"},
    "aa": {"data": "aa"},
    "aa, standard": {"data": "aa", "attack": "standard", "steps": 11},
    "l2c": {"data": "l2c"},
    "l2c, small": {"data": "l2c", "steps": 3, "width": 9, "lr": 0.01},
    "l2c, with what is no use": {"data": "l2c", "attack": "standard", "source": "vgg11", "width": 9},
    "urp, with what is no use": {"data": "urp", "attack": "standard", "steps": 7, "lr": 0.1, "width": 9},
}
LABELS: dict[str, dict[str, Any]] = {
    "none": {"labels": "none"},
    "symmetric": {"labels": "symmetric", "rate": 0.4},
    "asymmetric": {"labels": "asymmetric", "rate": 0.3, "exact": False},
    "instance": {"labels": "instance", "generator": "pdn"},
}


def _keys(corruption: dict[str, Any]) -> dict[str, Any]:
    return {f"corruption.{key}": value for key, value in corruption.items()}


def _cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return (name, preset, overrides) of every case."""
    for preset in PRESETS:
        for data in SETS:
            for name, poison in POISONS.items():
                yield f"{preset}, {data}, {name}", preset, {"data.name": data, **_keys(poison)}
            for name, labels in LABELS.items():
                yield f"{preset}, {data}, labels {name}", preset, {"data.name": data, **_keys(labels)}
            for name in defense_names():
                yield f"{preset}, {data}, {name}", preset, {"data.name": data, "defense.name": name}


def _digests(config: RunConfig) -> list[str]:
    """Return the digests of the run, of its images in the store and of its labels there, whatever the set contains."""
    traits = Traits("f" * 64, colour=config.data.name != "mnist")
    images = None if config.corruption.data == "none" else _image_parameters(traits, config)
    return [config.digest(), content_digest(images), content_digest(_label_parameters(traits, config))]


def _all() -> dict[str, list[str]]:
    return {name: _digests(build(preset, keys, quiet=True)) for name, preset, keys in _cases()}


KNOWN: dict[str, list[str]] = json.loads(FILE.read_text()) if FILE.exists() else {}


@pytest.mark.parametrize("preset", PRESETS)
def test_digests_are_what_they_were(preset: str) -> None:
    cases = {name: (start, keys) for name, start, keys in _cases() if start == preset}
    found = {name: _digests(build(start, keys, quiet=True)) for name, (start, keys) in cases.items()}
    assert found == {name: KNOWN[name] for name in cases}


def test_they_are_of_every_set_there_is() -> None:
    assert sorted(SETS) == DATASETS.names()
    assert len({digests[0] for digests in KNOWN.values()}) > 400


if __name__ == "__main__":
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(digests)}" for name, digests in _all().items())
    FILE.write_text(f"{{\n{lines}\n}}\n")
