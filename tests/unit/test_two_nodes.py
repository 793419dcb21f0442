"""Tests what the study of two nodes reports about runs that are alike, and about runs that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.two_nodes_report import ARMS, Row, alike, report, shift, slack

SAMPLES = 100


def run(seed: int, arm: str, *, flipped: int = 0, **more: Any) -> Row:
    mask = np.arange(SAMPLES) % 3 > 0
    mask[:flipped] ^= True
    return {
        "what": "run",
        "defense": "erat",
        "seed": seed,
        "arm": arm,
        "namespaces": True,
        "nodes": ["10.77.0.2 (a)", "10.77.0.3 (b)"] if arm == "two nodes" else ["10.77.0.2 (a)"],
        "accuracy": 0.9 + seed / 100,
        "precision": 0.95,
        "noise_caught": 0.8,
        "loss": [2.0, 1.0],
        "believed": np.packbits(mask).tobytes().hex(),
        "samples": SAMPLES,
    } | more


def study(**of_two: Any) -> list[Row]:
    """Make three seeds of all arms, and a gradient.

    Args:
        of_two: what differs on two nodes from one worker.
    """
    runs = [run(seed, arm, **(of_two if arm == "two nodes" else {})) for seed in range(3) for arm in ARMS]
    return [*runs, {"what": "gradients", "defense": "erat", "step": "warm-up", "addresses": ["a"], "relative": 1e-6}]


def test_runs_that_are_alike_are_within_all_tolerances() -> None:
    text, holds = report(study())
    assert holds
    none = "+0.00 ± 0.00 (0.00)"
    assert f"| final test accuracy | 91.00 ± 1.00 | 91.00 ± 1.00 | {none} | {none} | ± 1.00: holds |" in text
    assert "Runs with two workers on two nodes: 3 of 3; addresses 10.77.0.2, 10.77.0.3 (network namespaces)." in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise_caught": 0.85}, "| +5.00 ± 0.00 (5.00) | +0.00 ± 0.00 (0.00) | ± 1.00: DOES NOT HOLD |"),
        # The mean difference could be zero, but no seed is where one worker's is.
        ({"accuracy": 0.88}, "| -3.00 ± 0.58 (3.11) | +0.00 ± 0.00 (0.00) | ± 5.73: DOES NOT HOLD |"),
        ({"flipped": 5}, "| erat | 95.00 ± 0.00 | 100.00 ± 0.00 | 100.00 ± 0.00 | 2.00 below at most: DOES NOT HOLD |"),
        ({"loss": [2.0, 1.1]}, "| erat, two nodes | 0.000 | 10.000 | +5.00 ± 0.00 (5.00) |"),
        ({"loss": [2.01, 0.995]}, "| erat, two nodes | 0.500 | 0.500 |"),
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


def test_a_seed_without_its_other_runs_is_left_out() -> None:
    text, holds = report([*study(), run(7, "two nodes", accuracy=0.1)])
    assert holds
    assert "over seeds (erat: 3)" in text


def test_a_difference_is_judged_by_its_error_and_by_the_third_arm_s_size() -> None:
    assert shift([0.0, 2.0]) == pytest.approx((1.0, 1.0))
    assert shift([0.25]) == (0.25, 0.0)
    # Student's 99.5 % quantile: 63.66 with one degree of freedom, 4.604 with four.
    assert slack([0.0, 2.0], 0.01) == pytest.approx(63.66, abs=0.01)
    assert slack([1.0, -1.0, 0.0, 1.0, -1.0], 0.01) == pytest.approx(4.604 * 0.4472, abs=0.001)
    wide = [0.1, -0.1, 0.1, -0.1]
    assert alike(wide, [0.05, 0.05, -0.05, 0.05], 0.01)
    assert not alike(wide, [0.01, 0.01, -0.01, 0.01], 0.01)
    assert not alike([0.1, 0.1, 0.1, 0.11], wide, 0.01)
