"""Measures the time that each of ERAT's options beyond the paper saves; docs/speed.md has its cost in accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.benchmarks.harness import Comparison, Work
from tests.benchmarks.step import LARGE, SMALL, step

WARM = "steps=1 step_ratio=0.5 warm_start consistency=false"
OPTIONS: dict[str, dict[str, Any]] = {
    "steps=1 step_ratio=1": {"defense.steps": 1, "defense.step_ratio": 1.0},
    "steps=1 step_ratio=1.25 random_start": {
        "defense.steps": 1,
        "defense.step_ratio": 1.25,
        "defense.random_start": True,
    },
    "steps=2 step_ratio=0.6": {"defense.steps": 2, "defense.step_ratio": 0.6},
    "steps=2 step_ratio=0.4 warm_start": {
        "defense.steps": 2,
        "defense.step_ratio": 0.4,
        "defense.warm_start": True,
    },
    "steps=1 step_ratio=0.5 warm_start": {
        "defense.steps": 1,
        "defense.step_ratio": 0.5,
        "defense.warm_start": True,
    },
    WARM: {
        "defense.steps": 1,
        "defense.step_ratio": 0.5,
        "defense.warm_start": True,
        "defense.consistency": False,
    },
    "pgd_precision=bf16": {"defense.pgd_precision": "bf16"},
    "pgd_scale=0.5": {"defense.pgd_scale": 0.5},
    "pgd_scale=0.5 steps=3 step_ratio=0.4": {
        "defense.pgd_scale": 0.5,
        "defense.steps": 3,
        "defense.step_ratio": 0.4,
    },
}


def comparisons() -> Iterator[Comparison]:
    """Yield comparisons of whole steps with views on the demo network; `WARM`, at no cost in accuracy, has a bound."""
    for name, option in OPTIONS.items():
        bound = 0.5 if name == WARM else None
        yield Comparison(f"ERAT step, {name}", "ERAT step by default", bound, partial(_pair, SMALL, option))
    name = f"ERAT step, {WARM}, ResNet-18"
    yield Comparison(name, "ERAT step by default", 0.5, partial(_pair, LARGE, OPTIONS[WARM]))


def _pair(size: dict[str, Any], option: dict[str, Any]) -> tuple[Work, Work]:
    return step(size | option), step(size)
