"""What the study of two nodes says of runs that are alike, and of runs that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.two_nodes_report import Row, paired, report

SAMPLES = 100


def run(seed: int, workers: int, *, defense: str = "erat", flipped: int = 0, **more: Any) -> Row:
    mask = np.arange(SAMPLES) % 3 > 0
    mask[:flipped] ^= True
    return {
        "what": "run",
        "defense": defense,
        "seed": seed,
        "workers": workers,
        "namespaces": True,
        "nodes": ["10.77.0.2 (a)", "10.77.0.3 (b)"][:workers],
        "accuracy": 0.9 + seed / 100,
        "precision": 0.95,
        "noise_caught": 0.8,
        "loss": [2.0, 1.0],
        "believed": np.packbits(mask).tobytes().hex(),
        "samples": SAMPLES,
    } | more


def study(**of_two: Any) -> list[Row]:
    """Three seeds of both arms, and a gradient; `of_two`: what two nodes have other than one worker."""
    runs = [run(seed, workers, **(of_two if workers == 2 else {})) for seed in range(3) for workers in (1, 2)]
    return [*runs, {"what": "gradients", "defense": "erat", "step": "warm-up", "addresses": ["a"], "relative": 1e-6}]


def test_runs_that_are_alike_are_within_all_tolerances() -> None:
    text, holds = report(study())
    assert holds
    assert "| erat | final test accuracy | 91.00 ± 1.00 | 91.00 ± 1.00 | +0.00 ± 0.00 | 1.00: holds |" in text
    assert "Runs with two workers on two nodes: 3 of 3; addresses 10.77.0.2, 10.77.0.3 (network namespaces)." in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accuracy": 0.88}, "final test accuracy | 91.00 ± 1.00 | 88.00 ± 0.00 | -3.00 ± 0.58 | 1.15: DOES NOT HOLD"),
        ({"noise_caught": 0.85}, "noise caught | 80.00 ± 0.00 | 85.00 ± 0.00 | +5.00 ± 0.00 | 1.00: DOES NOT HOLD"),
        ({"flipped": 5}, "| erat | 95.00 ± 0.00 | 100.00 ± 0.00 | 98.0 at least: DOES NOT HOLD |"),
        ({"loss": [2.0, 1.1]}, "| erat | mean | +0.000 | +10.000 |"),
        ({"nodes": ["10.77.0.2 (a)", "10.77.0.2 (a)"]}, "two nodes: 0 of 3"),
    ],
)
def test_runs_that_are_not_alike_are_not(change: dict[str, Any], said: str) -> None:
    text, holds = report(study(**change))
    assert not holds
    assert said in text


def test_a_gradient_that_is_off_is_told() -> None:
    rows = study()
    rows[-1]["relative"] = 0.02
    text, holds = report(rows)
    assert not holds
    assert "| erat, warm-up | 2.0e-02 | 1e-02: DOES NOT HOLD |" in text


def test_a_seed_without_its_other_run_is_left_out() -> None:
    text, holds = report([*study(), run(7, 2, accuracy=0.1)])
    assert holds
    assert "{'erat': 3}" in text


def test_a_difference_has_the_error_of_the_mean() -> None:
    assert paired([1.0, 1.0], [1.0, 3.0]) == pytest.approx((1.0, 1.0))
    assert paired([0.5], [0.75]) == (0.25, 0.0)
