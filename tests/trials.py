"""Trials for tests, made from what is shown of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from erat.result import RunResult
from orchestration.study.trial import Trial


def make_trial(
    number: int = 0,
    cell: str = "c",
    params: dict[str, Any] | None = None,
    source: str = "optuna",
    status: str = "queued",
    *,
    epoch: int = 0,
    epochs: int = 0,
    seconds: float = 0.0,
    config: dict[str, Any] | None = None,
    mlflow_run_id: str | None = None,
    **figures: Any,
) -> Trial:
    """A trial that stands so; `figures` are fields of its result."""
    result = RunResult(cell, status, epochs=epoch, train_seconds=seconds, **figures)
    known = ({"train.epochs": epochs} if epochs else {}) | (config or {})
    return Trial(number, cell, params or {}, source, known, result, mlflow_run_id)


def with_result(trial: Trial, **figures: Any) -> Trial:
    """The trial, with other figures in its result."""
    return replace(trial, result=replace(trial.so_far, **figures))


def planned(number: int, kind: str, noise: str, test: float | None, status: str = "done") -> Trial:
    """A trial of CE on poison of this kind, with an l_2 budget of 1.25, and label noise of this kind, at 60 %."""
    norm = {} if kind == "none" else {"corruption.norm": "l2", "corruption.epsilon": 1.25}
    config = {
        "defense.name": "ce",
        "corruption.data": kind,
        "corruption.labels": noise,
        "corruption.rate": 0.6 if noise != "none" else 0.0,
        "train.seed": number,
    } | norm
    return make_trial(number, f"c{number}", {}, "baseline", status, final_test_accuracy=test, config=config)


PLANNED = [
    planned(0, "none", "none", 0.98),
    planned(1, "none", "none", 0.96),
    planned(2, "none", "symmetric", 0.60),
    planned(3, "uhp", "none", 0.30),
    planned(4, "uhp", "none", 0.40),
    planned(5, "uhp", "none", None, "failed"),
    planned(6, "uhp", "symmetric", None, "running"),
]
