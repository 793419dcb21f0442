"""One trial as a person sees it: a row of the live table, of the summary and of the plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# queued -> running -> done | stopped (early, by the scheduler) | failed; an interrupted trial is queued again.
STATUSES = ("queued", "running", "done", "stopped", "failed")
FINISHED = ("done", "stopped")


@dataclass
class TrialRow:
    """Accuracies in [0, 1], times in seconds.

    Attributes:
        number: place in the sweep, from 0.
        cell: digest of the run's configuration.
        params: the searched dotted keys and their values.
        source: "paper" for a point of the paper's own grid, "optuna" for a proposal, "baseline" for a reference run.
        epoch, epochs: done and in all.
        val_accuracy: latest while running; the best-so-far decides nothing here.
        best_val_accuracy: largest over epochs.
        final_test_accuracy: clean test accuracy of the last epoch.
        best_val_test_accuracy: clean test accuracy of the epoch with the best validation accuracy.
    """

    number: int
    cell: str
    params: dict[str, Any]
    source: str = "optuna"
    status: str = "queued"
    epoch: int = 0
    epochs: int = 0
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None
    final_test_accuracy: float | None = None
    best_val_test_accuracy: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    error: str | None = None
    mlflow_run_id: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def take_in(self, result: Mapping[str, Any]) -> None:
        """Show what a result, finished or so far, says (the fields of `trial.RunResult`)."""
        self.status, self.error = result["status"], result.get("error")
        self.epoch, self.seconds = result["epochs"], result["train_seconds"]
        running = self.status == "running" and self.epoch > 0
        self.seconds_left = self.seconds / self.epoch * (self.epochs - self.epoch) if running else None
        self.val_accuracy, self.best_val_accuracy = result["val_accuracy"], result["best_val_accuracy"]
        if self.status in FINISHED:
            self.final_test_accuracy = result["final_test_accuracy"]
            self.best_val_test_accuracy = result["best_val_test_accuracy"]
        self.mlflow_run_id = result.get("mlflow_run_id") or self.mlflow_run_id
