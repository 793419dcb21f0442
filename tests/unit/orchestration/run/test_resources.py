"""Tests what a worker asks of Ray, and how many trials have room on machines, as Ray itself places them."""

from __future__ import annotations

from typing import Any

import pytest

from erat.config import build
from erat.errors import UserError
from orchestration.run.resources import needs, per_device, places, trials, words


@pytest.mark.parametrize(
    ("share", "workers"), [(0.6, 8), (0.5, 16), (1 / 3, 24), (0.34, 16), (0.07, 112), (0.1, 80), (0.29, 24)]
)
def test_a_fraction_is_of_one_device(share: float, workers: int) -> None:
    assert places({"CPU": 1.0, "GPU": share}, {"CPU": 999.0, "GPU": 8.0}) == workers
    assert per_device(share) == workers // 8


@pytest.mark.parametrize(("gpus", "workers"), [(0.0, 64), (1.0, 8), (2.0, 4), (3.0, 2), (9.0, 0)])
def test_whole_devices(gpus: float, workers: int) -> None:
    assert places({"CPU": 1.0, "GPU": gpus}, {"CPU": 64.0, "GPU": 8.0}) == workers
    assert per_device(gpus) == 1


def test_trials_of_several_workers_may_span_nodes() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}, {}]
    assert [trials({"CPU": 1.0}, workers, None, nodes) for workers in (1, 2, 4, 7)] == [6, 3, 1, 0]
    assert trials({"CPU": 1.0}, 8, 5, nodes) == 1, "it can do with five"


@pytest.mark.parametrize(
    ("preset", "keys", "gpus"),
    [
        ("demo", {}, 0.0),
        ("paper", {}, 1.0),
        ("official", {"defense.name": "at"}, 1.0),
        ("paper", {"resources.gpu": 0.25}, 0.25),
        ("paper", {"resources.device": "cpu"}, 0.0),
        ("demo", {"resources.device": "cuda", "resources.gpu": 2}, 2.0),
    ],
)
def test_the_presets_of_the_paper_ask_for_a_gpu(preset: str, keys: dict[str, Any], gpus: float) -> None:
    assert needs(build(preset, keys)) == {"CPU": 1.0, "GPU": gpus}


def test_cuda_without_a_gpu_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"resources.device=cuda needs resources.gpu above 0 on Ray.*got resources.gpu=0"
    ):
        needs(build("demo", {"resources.device": "cuda"}))


def test_the_devices_are_named_before_anything_runs() -> None:
    assert words({"CPU": 1.0, "GPU": 0.0}, 0) == "on the CPU"
    assert words({"CPU": 1.0}, 8) == "on the CPU (8 GPUs unused: resources.gpu=1 gives each worker one)"
    assert words({"CPU": 1.0, "GPU": 1.0}, 8) == "each worker on 1 GPU of 8"
    assert words({"CPU": 1.0, "GPU": 0.25}, 1) == "each worker on 0.25 GPU of 1"
