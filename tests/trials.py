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
