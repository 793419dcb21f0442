"""Tests the estimate of a run's time: from earlier runs of the same kind, or from a few steps on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from erat.config import RunConfig
from erat.options import Free
from erat.registry import DEFENSES
from erat.result import RunResult
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.storage.workspace import Workspace
from orchestration.study import estimate
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec

Make = Callable[..., RunConfig]


@pytest.fixture
def workspace(tmp_path: Any) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture(autouse=True)
def _calibration_says_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_calibrated", lambda config: 1000.0)


def ran(config: RunConfig, workspace: Workspace, *epoch_seconds: float, device: str | None = "cpu") -> None:
    """Add a run with these seconds per epoch to the ledger; without any, the run never ended."""
    ledger, cell = Ledger(workspace.ledger), config.digest()
    if "a" not in ledger.studies:
        spec = StudySpec.listing("a", "", [{}], "demo", {})
        ledger.append("sweep", name="a", spec=spec.content(), trials=9)
    number, params = len(ledger.studies["a"].proposals), config.flat()
    ledger.append("proposed", sweep="a", number=number, params=params, source="paper", cell=cell)
    if epoch_seconds:
        figures = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
        took = {"epochs": len(epoch_seconds), "train_seconds": sum(epoch_seconds)} | dict.fromkeys(figures, 0.5)
        took |= {} if device is None else {"device": device}
        ledger.finish(RunResult.of(took | {"cell": cell, "status": "done"}), sweep="a")


def seconds(config: RunConfig, workspace: Workspace, on_ray: bool = True) -> float:
    return estimate.History(Ledger(workspace.ledger), on_ray=on_ray).seconds(config)


class TestFromHistory:
    def test_epochs_times_the_median_of_what_an_epoch_took(self, make_config: Make, workspace: Workspace) -> None:
        for seed, took in enumerate([(1.0, 3.0), (4.0, 4.0), (90.0, 90.0)]):
            ran(make_config({"train.seed": seed}), workspace, *took)
        assert seconds(make_config({"train.seed": 7}), workspace) == 3 * 4.0

    def test_without_history_it_is_calibrated(self, make_config: Make, workspace: Workspace) -> None:
        assert seconds(make_config(), workspace) == 3 * 1000.0

    def test_a_run_that_never_ended_an_epoch_says_nothing(self, make_config: Make, workspace: Workspace) -> None:
        ran(make_config({"train.seed": 1}), workspace)
        assert seconds(make_config(), workspace) == 3 * 1000.0

    @pytest.mark.parametrize(
        "same",
        [
            {"train.seed": 3},
            {"defense.eta": 0.9},
            {"defense.epsilon_2": 0.3},
            {"defense.lambda_u": 0, "defense.ramp_epochs": 2, "defense.step_ratio": 0.3},
            {"corruption.data": "urp"},
            {"corruption.labels": "symmetric"},
        ],
    )
    def test_what_costs_nothing_does_not_tell_runs_apart(
        self, same: dict[str, Any], make_config: Make, workspace: Workspace
    ) -> None:
        ran(make_config(), workspace, 2.0)
        assert seconds(make_config(same), workspace) == 3 * 2.0

    @pytest.mark.parametrize(
        "other",
        [
            {"defense.steps": 1},
            {"defense.adversarial": False},
            {"defense.select_every": 2},
            {"defense.consistency": False},
            {"defense.warmup_epochs": 0},
            {"defense.name": "ce"},
            {"model.name": "resnet18"},
            {"data.limit": 500},
            {"data.image_size": 14},
            {"train.batch_size": 32},
        ],
    )
    def test_what_costs_does(self, other: dict[str, Any], make_config: Make, workspace: Workspace) -> None:
        ran(make_config(), workspace, 2.0)
        assert seconds(make_config(other), workspace) == 3 * 1000.0

    def test_so_does_every_option_of_a_new_defense_that_is_not_said_to_be_free(
        self, register: Callable[..., None], make_config: Make, workspace: Workspace
    ) -> None:
        class Mine(DEFENSES["ce"]):  # type: ignore[misc]
            class Options(DEFENSES.options("ce")):  # type: ignore[misc]
                name: str = "mine"
                rounds: int = 1
                taste: Free[float] = 0.5

        register(DEFENSES, "mine", Mine)
        mine = {"defense.name": "mine"}
        ran(make_config(mine), workspace, 2.0)
        assert seconds(make_config(mine | {"defense.taste": 0.9}), workspace) == 3 * 2.0
        assert seconds(make_config(mine | {"defense.rounds": 2}), workspace) == 3 * 1000.0
        memory = [
            estimate._memory_signature(make_config(mine | more))
            for more in ({"defense.taste": 1}, {"defense.rounds": 2})
        ]
        assert [signature == estimate._memory_signature(make_config(mine)) for signature in memory] == [True, False]


class TestDevices:
    """Tests that runs on a GPU say nothing about a CPU, and runs on one GPU nothing about another."""

    GPU: ClassVar = {"resources.gpu": 1}

    @pytest.fixture(autouse=True)
    def _history(self, make_config: Make, workspace: Workspace) -> None:
        for number, (device, took) in enumerate({"cpu": 8.0, "Fast": 1.0, "Slow": 4.0, None: 99.0}.items()):
            for seed in range(2 if device == "Slow" else 1):
                ran(make_config({"train.seed": 10 * number + seed}), workspace, took, device=device)

    def test_each_has_its_own(self, make_config: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for name, took in (("Fast", 1.0), ("Slow", 4.0), ("Unheard of", 1000.0)):
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
            assert seconds(make_config(self.GPU), workspace) == 3 * took
            assert seconds(make_config(self.GPU | {"resources.device": "cpu"}), workspace) == 3 * 8.0

    def test_ray_hides_a_gpu_that_is_not_asked_for(
        self, make_config: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fast")
        assert seconds(make_config(), workspace) == 3 * 8.0
        assert seconds(make_config(), workspace, on_ray=False) == 3 * 1.0

    @pytest.mark.parametrize("asked", [{"resources.gpu": 0.5}, {"resources.gpu": 1, "resources.device": "cuda"}])
    def test_the_gpus_of_other_machines_are_taken_as_they_were(
        self, asked: dict[str, Any], make_config: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert seconds(make_config(asked), workspace) == 3 * 4.0, "most ran on it"
        assert seconds(make_config(asked | {"defense.name": "ce"}), workspace) == 3 * 1000.0

    def test_results_that_do_not_say_are_left_out(self, make_config: Make, tmp_path: Path) -> None:
        old = Workspace(tmp_path / "old")
        ran(make_config(), old, 2.0, device=None)
        assert seconds(make_config(), old) == 3 * 1000.0

    def test_a_run_says_what_it_ran_on(self, make_config: Make, workspace: Workspace) -> None:
        result = execute_run(make_config({"defense.name": "ce", "data.limit": 100, "train.epochs": 1}), workspace)
        assert result.device == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())
        stored = RunDirectory(workspace, result.cell).read_result()
        assert stored is not None
        assert stored.device == result.device


@pytest.mark.parametrize(
    ("cpu", "workers", "cores", "slots"), [(1, 1, 8, 8), (2, 1, 8, 4), (1, 2, 8, 4), (3, 2, 8, 1), (16, 1, 8, 1)]
)
def test_trials_side_by_side(
    cpu: int, workers: int, cores: int, slots: int, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    config = make_config({"resources.cpu": cpu, "train.workers": workers, "train.batch_size": 12})
    assert estimate.local_slots(config) == slots


@pytest.mark.parametrize(
    ("gpus", "keys", "slots"),
    [
        (8, {}, 64),
        (8, {"resources.gpu": 1}, 8),
        (8, {"resources.gpu": 0.6}, 8),
        (8, {"resources.gpu": 2, "train.workers": 2}, 2),
        (8, {"resources.gpu": 1, "resources.device": "cpu"}, 64),
        (0, {"resources.gpu": 1}, 64),
    ],
)
def test_trials_on_this_machine_s_gpus(
    gpus: int, keys: dict[str, Any], slots: int, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted as Ray places them; without a GPU, the cores count alone."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert estimate.local_slots(make_config(keys)) == slots


class TestCalibration:
    CALIBRATED = estimate._calibrated

    @pytest.fixture(autouse=True)
    def _for_real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estimate, "_calibrated", type(self).CALIBRATED)

    def test_it_measures_a_few_steps_and_once_for_runs_of_one_sort(
        self, make_config: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes: list[int] = []
        trainer = estimate.Trainer

        def counting(config: RunConfig, data: Any) -> Any:
            sizes.append(len(data.train))
            return trainer(config, data)

        monkeypatch.setattr(estimate, "Trainer", counting)
        tiny = {"data.limit": 400, "defense.steps": 1}
        times = [seconds(make_config(tiny | {"train.seed": seed}), workspace) for seed in (0, 4)]
        assert 0 < times[0] == times[1] < 60
        assert len(sizes) == 1
        assert 16 * estimate.CALIBRATION_STEPS <= sizes[0] <= 32 * estimate.CALIBRATION_STEPS

    def test_nothing_is_written(self, make_config: Make, workspace: Workspace) -> None:
        seconds(make_config({"data.limit": 200, "defense.steps": 1}), workspace)
        assert list(workspace.root.iterdir()) == []


def test_work_tells_long_runs_from_short_ones(make_config: Make) -> None:
    """By counted operations ERAT makes 23 and 24 passes where CE makes 3; those of the first layer differ a little."""
    ce, erat, at = (estimate.work(make_config({"defense.name": name})) for name in ("ce", "erat", "at"))
    assert ce < at < erat
    assert erat / ce == pytest.approx((23 + 24) / 3, rel=0.15)
    assert estimate.work(make_config({"defense.name": "ce", "train.epochs": 6})) == 2 * ce


class TestDisk:
    @pytest.mark.slow
    def test_a_run_and_its_set_take_about_what_was_said(self, make_config: Make, workspace: Workspace) -> None:
        config = make_config({"data.limit": 300, "corruption.data": "urp", "data.image_size": 14, "train.epochs": 1})
        said = estimate.disk([config], [config])
        execute_run(config, workspace)
        model = workspace.run_directory(config.digest()) / "artifacts" / "model.pt"
        took = sum(file.stat().st_size for file in workspace.root.rglob("*") if file.is_file()) + model.stat().st_size
        assert took == pytest.approx(said - estimate.RECORD_BYTES, rel=0.1), "MLflow copies the model"

    def test_nothing_to_do_takes_nothing(self) -> None:
        assert estimate.disk([], []) == 0
