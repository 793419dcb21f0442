"""Tests the learning rate over time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from erat.engine.schedule import learning_rate
from erat.sections import TrainConfig


def rates(times: list[float], **options: Any) -> list[float]:
    return [learning_rate(TrainConfig(**options), time) for time in times]


def test_step_multiplies_at_each_milestone() -> None:
    got = rates([0, 59.99, 60, 79.9, 80, 100], lr=0.05, epochs=100, schedule="step", milestones=(60, 80), gamma=0.1)
    assert got == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


def test_cosine_falls_from_the_peak_to_zero() -> None:
    got = rates([0, 5, 10, 15, 20, 25], lr=0.4, epochs=20, schedule="cosine")
    assert got == pytest.approx([0.4, 0.4 * (2 + 2**0.5) / 4, 0.2, 0.4 * (2 - 2**0.5) / 4, 0.0, 0.0])


def test_onecycle_rises_for_three_tenths_and_falls() -> None:
    """It starts at 1/25 of the peak, is half-way at 15 %, peaks at 30 %, is half-way down at 65 %, and ends near 0."""
    got = rates([0, 1.5, 3, 6.5, 10, 12], lr=0.1, epochs=10, schedule="onecycle")
    assert got == pytest.approx([0.004, 0.052, 0.1, 0.05 * (1 + 1e-4), 1e-5, 1e-5])


def test_onecycle_is_what_torch_anneals() -> None:
    """There is one value per step, counted as in torch's scheduler: step s of S is at s / (S - 1) of the way."""
    import torch

    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    total = 101
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total, pct_start=0.3, final_div_factor=400)
    config = TrainConfig(lr=0.1, epochs=10, schedule="onecycle")
    for step in range(total):
        # Their rise ends at step 0.3 * S - 1, this project's at 0.3 of the way.
        peak = 0.3 * total - 1
        time = 3 * step / peak if step <= peak else 3 + 7 * (step - peak) / (total - 1 - peak)
        assert learning_rate(config, time) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step() if step < total - 1 else None


@pytest.mark.parametrize("schedule", ["step", "onecycle", "cosine"])
def test_rates_stay_within_the_peak_and_move_smoothly_but_for_steps(schedule: str) -> None:
    times = [i / 50 for i in range(501)]
    got = rates(times, lr=0.1, epochs=10, schedule=schedule, milestones=(6,))
    assert max(got) == pytest.approx(0.1)
    assert min(got) >= 0
    jumps = sum(abs(a - b) > 0.002 for a, b in itertools.pairwise(got))
    assert jumps == (1 if schedule == "step" else 0)
