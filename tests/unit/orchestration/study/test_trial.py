"""Tests a trial: what is shown of it follows from its result, and a change makes a new trial."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from erat.result import RunResult
from orchestration.study.ledger import Ledger
from orchestration.study.trial import Trial
from tests.trials import make_trial, with_result

FIGURES = {"val_accuracy": 0.5, "best_val_accuracy": 0.6, "final_test_accuracy": 0.4, "best_val_test_accuracy": 0.45}


def test_one_that_nobody_has_begun_is_queued_and_has_no_figures() -> None:
    trial = Trial(0, "c", {}, config={"train.epochs": 16})
    assert (trial.status, trial.ended, trial.epoch, trial.epochs) == ("queued", False, 0, 16)
    assert (trial.seconds, trial.seconds_left, trial.val_accuracy, trial.error) == (0.0, None, None, None)


@pytest.mark.parametrize(
    ("status", "ended", "shown"),
    [
        ("queued", False, False),
        ("running", False, False),
        ("done", True, True),
        ("stopped", True, True),
        ("failed", True, False),
    ],
)
def test_test_accuracy_is_for_those_that_finished(status: str, ended: bool, shown: bool) -> None:
    trial = make_trial(status=status, epoch=4, epochs=10, **FIGURES)
    assert trial.ended is ended
    assert (trial.val_accuracy, trial.best_val_accuracy) == (0.5, 0.6)
    figures = (trial.final_test_accuracy, trial.best_val_test_accuracy)
    assert figures == ((0.4, 0.45) if shown else (None, None))


def test_time_left_is_of_a_running_trial_at_its_own_pace() -> None:
    trial = make_trial(status="running", epoch=4, epochs=10, seconds=20.0)
    assert trial.seconds_left == 30.0
    assert with_result(trial, status="queued").seconds_left is None
    assert with_result(trial, epochs=0).seconds_left is None


def test_it_is_replaced_and_never_changed() -> None:
    trial = make_trial(status="done", **FIGURES)
    with pytest.raises(FrozenInstanceError):
        trial.number = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        trial.so_far.status = "failed"  # type: ignore[misc]
    assert replace(trial, number=1).so_far is trial.so_far


def test_the_ledger_keeps_a_result_under_the_names_that_it_always_had(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    result = RunResult("c", "done", 2, 0.5, 0.6, 0.4, 0.45, 8.0, 100.0, 0.6, "ab", None, [0.6, 0.5])
    ledger.finish(result, sweep="s", mlflow_run_id="run")
    event = json.loads(ledger.path.read_text())
    assert list(event) == ["event", "time", "cell", "sweep", "result", "error"]
    names = "cell status epochs val_accuracy best_val_accuracy final_test_accuracy best_val_test_accuracy train_seconds"
    more = "peak_memory_mb noise_rate checksum error val_history device mlflow_run_id"
    assert list(event["result"]) == [*names.split(), *more.split()]
    trial = ledger.with_outcome(Trial(3, "c", {}, "paper"))
    assert (trial.number, trial.status, trial.mlflow_run_id) == (3, "done", "run")
    assert RunResult.of({**event["result"], "of a later version": 1}) == result
    assert ledger.with_outcome(Trial(4, "d", {})).result is None


def test_an_end_of_an_earlier_version_lacks_figures_and_has_its_error_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "failed", "cell": "c", "result": {}, "error": "boom"}\n')
    found = Ledger(path).outcome("c")
    assert found is not None
    assert (found.cell, found.status, found.error, found.epochs, found.val_history) == ("c", "failed", "boom", 0, [])
