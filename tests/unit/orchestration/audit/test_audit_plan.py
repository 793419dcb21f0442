"""Tests how long an audit takes: its stages, the time left for them, and the estimate against real trainings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from erat.audit.audit import Plan, examine, plan
from erat.audit.settings import plain_settings, robust_settings
from erat.data.types import ImageSet
from erat.engine.checkpoint import save
from orchestration.audit.plan import Costs, Stage, TimeLeft, calibrate, memory, stages

COSTS = Costs(warm=1.0, late=4.0, plain=0.5, look=0.01, attack=0.1)


@pytest.fixture
def audited(make_images: Callable[..., ImageSet]) -> Plan:
    images = make_images(400, size=12, seed=1)
    robust = robust_settings(images, {"train.epochs": 12, "defense.warmup_epochs": 3, "defense.policy": "svhn"})
    return plan(images, robust, plain_settings(robust), 2)


def test_the_stages_are_what_is_done_in_that_order(audited: Plan, tmp_path: Path) -> None:
    todo = stages(audited, COSTS, tmp_path, search=True, trusted=0)
    assert [stage.name for stage in todo] == [
        *("budgets x 0.25", "budgets x 0.5", "budgets x 1", "budgets x 2"),
        *("fold 1 of 2, robust", "fold 1 of 2, plain", "fold 2 of 2, robust", "fold 2 of 2, plain"),
        *("robustness", "all images", "writing"),
    ]
    assert [len(stage.seconds) for stage in todo] == [12] * 8 + [18, 12, 1]
    fold, plain, everything = todo[4].seconds, todo[5].seconds, todo[9].seconds
    assert fold[0] == pytest.approx(200 * 1.0 + 2 * 200 * 0.01)
    assert fold[3] == pytest.approx(0.6 * 200 * 4.0 + 2 * 200 * 0.01)
    assert fold[11] - fold[5] == plain[11] - plain[5] == pytest.approx(200 * 0.01), "a third look in the judged epochs"
    assert plain[0] == pytest.approx(200 * 0.5 + 2 * 200 * 0.01)
    assert everything[:4] == (400.0, 400.0, 400.0, pytest.approx(0.6 * 400 * 4))
    assert todo[8].seconds[0] < todo[8].seconds[1] == todo[8].seconds[8] > todo[8].seconds[9], "as they come"
    assert sum(todo[8].seconds) == pytest.approx(2 * (10 * 200 * 0.01 + 8 * 200 * 0.1))
    trusted = stages(audited, COSTS, tmp_path, search=False, trusted=30)
    assert sum(trusted[4].seconds) == pytest.approx(2 * 30 * (10 * 0.01 + 8 * 0.1))


def test_what_is_kept_is_not_done_again(audited: Plan, tmp_path: Path) -> None:
    for name in ("search.pt", "fold-0.pt", "robustness.pt"):
        save(tmp_path / name, {})
    save(tmp_path / "all" / "checkpoint.pt", {"history": [{}] * 9})
    todo = stages(audited, COSTS, tmp_path, search=True, trusted=0)
    assert [stage.name for stage in todo] == ["fold 2 of 2, robust", "fold 2 of 2, plain", "all images", "writing"]
    assert len(todo[2].seconds) == 3
    save(tmp_path / "fold-1.pt", {})
    save(tmp_path / "all" / "checkpoint.pt", {"history": [{}] * 12})
    assert [stage.name for stage in stages(audited, COSTS, tmp_path, search=True, trusted=0)] == ["writing"]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_said_from_the_first_epoch_and_follows_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestration.audit.plan.TRUST", 1e-9)
    clock = Clock()
    left = TimeLeft(
        [
            Stage("first", "robust", (10.0, 20.0)),
            Stage("second", "plain", (5.0, 5.0)),
            Stage("third", "robust", (10.0, 20.0)),
        ],
        clock,
    )
    assert left.seconds == 70
    clock.now += 20  # twice as long as expected, so the rest is expected to take twice as long too
    assert left("first", 1, 2) == "about 2:00 left in all"
    clock.now += 40
    assert left("first", 2, 2) == "about 1:20 left in all"
    clock.now += 5  # plain training takes as long as expected
    assert left("second", 1, 2) == "about 1:05 left in all"
    clock.now += 5
    left("second", 2, 2)
    assert left.seconds == pytest.approx(60)
    clock.now += 60
    left("third", 2, 2)
    assert left.seconds == 0
    assert left("unknown", 1, 2) == ""


def test_one_short_step_that_took_long_says_little_of_the_rest() -> None:
    clock = Clock()
    left = TimeLeft([Stage("robustness", "rest", (0.01, 10.0, 10.0)), Stage("all", "robust", (50.0, 50.0))], clock)
    clock.now += 2  # networks are built first
    left("robustness", 1, 3)
    assert 120 < left.seconds < 400
    clock.now += 10
    left("robustness", 2, 3)
    assert 100 < left.seconds < 150


def test_of_a_training_that_goes_on_the_first_epochs_are_not_counted() -> None:
    clock = Clock()
    left = TimeLeft([Stage("all images", "robust", (10.0, 10.0))], clock)  # epochs 9 and 10 of 10
    clock.now += 10
    assert left("all images", 9, 10) == "about 0:10 left in all"


@pytest.mark.slow
def test_calibration_comes_within_a_factor_of_real_trainings(
    audited: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factor is two, measured in processor time, on which other programs have no influence."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    costs = calibrate(audited)
    todo = stages(audited, costs, tmp_path, search=False, trusted=0)
    expected = sum(sum(stage.seconds) for stage in todo[:2])
    began = time.perf_counter()
    examine(audited, 0)
    took = time.perf_counter() - began
    assert took / 2 < expected < 2 * took, (took, expected)


def test_calibration_moves_no_random_stream_and_changes_no_image(audited: Plan) -> None:
    before, state = audited.images.fingerprint, torch.get_rng_state()
    calibrate(audited)
    assert torch.equal(torch.get_rng_state(), state)
    assert ImageSet(audited.images.images, audited.images.labels, audited.images.class_names).fingerprint == before


def test_memory_holds_images_and_networks(audited: Plan) -> None:
    need = memory(audited)
    assert need is not None and 1 < need < 500
