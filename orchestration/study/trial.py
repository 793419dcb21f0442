"""A trial: one configuration in a study, and how its run stands. What is shown of it is derived from its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erat.result import RunResult

FINISHED = ("done", "stopped")


@dataclass(frozen=True, slots=True)
class Trial:
    """Accuracies in [0, 1], times in seconds. What changes makes a new one (`dataclasses.replace`).

    Attributes:
        number: place in the study, from 0.
        cell: digest of the run's configuration.
        params: its dotted keys on top of the study's own, and their values.
        source: "paper" for a point of the paper's own grid, "optuna" for a proposal, "baseline" for a listed run,
            "train" for a run outside any study.
        config: the whole configuration, by dotted keys; empty where nobody has asked for it.
        result: of the run so far, or at its end; none: nobody has begun it.
        mlflow_run_id: its run in MLflow; none: it has none yet.
    """

    number: int
    cell: str
    params: dict[str, Any]
    source: str = "optuna"
    config: dict[str, Any] = field(default_factory=dict)
    result: RunResult | None = None
    mlflow_run_id: str | None = None

    @property
    def so_far(self) -> RunResult:
        """The result; of a trial that nobody has begun an empty one."""
        return self.result or RunResult(self.cell, "queued")

    @property
    def status(self) -> str:
        """Queued, running, and then done, stopped (early, by the pruner) or failed; interrupted, it is queued again."""
        return self.so_far.status

    @property
    def ended(self) -> bool:
        """Whether it is done, stopped or failed."""
        return self.status not in ("queued", "running")

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.so_far.epochs

    @property
    def epochs(self) -> int:
        """Epochs in all; 0 where the configuration is not known."""
        return int(self.config.get("train.epochs", 0))

    @property
    def val_accuracy(self) -> float | None:
        """Of the latest epoch."""
        return self.so_far.val_accuracy

    @property
    def best_val_accuracy(self) -> float | None:
        """The largest over epochs; while the trial runs, it decides nothing."""
        return self.so_far.best_val_accuracy

    @property
    def final_test_accuracy(self) -> float | None:
        """Clean test accuracy of the last epoch; none while the trial runs, and of one that failed."""
        return self.so_far.final_test_accuracy if self.status in FINISHED else None

    @property
    def best_val_test_accuracy(self) -> float | None:
        """Clean test accuracy of the epoch with the best validation accuracy; none like `final_test_accuracy`."""
        return self.so_far.best_val_test_accuracy if self.status in FINISHED else None

    @property
    def seconds(self) -> float:
        """Time of training so far."""
        return self.so_far.train_seconds

    @property
    def seconds_left(self) -> float | None:
        """Time until a running trial ends, at its pace so far; none before its first epoch."""
        running = self.status == "running" and self.epoch > 0
        return self.seconds / self.epoch * (self.epochs - self.epoch) if running else None

    @property
    def error(self) -> str | None:
        """Why it failed."""
        return self.so_far.error
