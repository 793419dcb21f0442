"""A trial: one configuration in a study, and the state of its run. What is shown of it is derived from its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erat.result import RunResult

FINISHED = ("done", "stopped")
NO_CONFIG: dict[str, Any] = {}  # of all trials in a ledger, which keeps no configurations
CONFIRMING = 10_000_000  # the number of a confirmation is this, times 1, 2, ..., plus the number of its candidate


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration in a study, and the state of its run. Accuracies are in [0, 1] and times in seconds.

    A trial is immutable: each change makes a new one with `dataclasses.replace`.

    Attributes:
        number: position in the study, from 0; for a confirmation see `confirmation`.
        cell: digest of the run's configuration.
        params: dotted key -> value, applied on top of the configuration that all trials of the study start from.
        source: "paper" for a point of the paper's own grid, "optuna" for a proposal, "baseline" for a listed run,
            "confirm" for a trial that repeats one of the best trials with another seed, "train" for a run outside any
            study.
        config: the whole configuration, dotted key -> value; empty if it was not asked for.
        result: result of the run so far, or at its end; None if the run has not begun.
        mlflow_run_id: id of its run in MLflow; None if there is none yet.
        rungs: epochs, ascending, at which the pruner pauses the trial; empty if it never pauses.
        promoted: the last rung from which it was promoted; 0 if it was not, or has not been so far.
        seeds: for a confirmation, the number of seeds with which its candidate is trained in all; otherwise 1.
    """

    number: int
    cell: str
    params: dict[str, Any]
    source: str = "optuna"
    config: dict[str, Any] = field(default_factory=dict)
    result: RunResult | None = None
    mlflow_run_id: str | None = None
    rungs: tuple[int, ...] = ()
    promoted: int = 0
    seeds: int = 1

    @property
    def so_far(self) -> RunResult:
        """Return the result so far; an empty one with the status "queued" if the run has not begun."""
        return self.result or RunResult(self.cell, "queued")

    @property
    def status(self) -> str:
        """Return "queued", "running", "paused" (at a rung), "done", "stopped" (early, by the pruner) or "failed".

        A trial that is interrupted is queued again, and so is one that is promoted from its rung.
        """
        return self.so_far.status

    @property
    def ended(self) -> bool:
        """Return whether the trial is done, stopped or failed."""
        return self.status in ("done", "stopped", "failed")

    @property
    def confirms(self) -> int | None:
        """Return the number of the trial that this one repeats with another seed; None if it is no confirmation."""
        return self.number % CONFIRMING if self.number >= CONFIRMING else None

    def placed_tags(self) -> dict[str, int]:
        """Return what MLflow says of its place in the search: which trial it confirms, from which rung it goes on."""
        confirms = {} if self.confirms is None else {"confirms": self.confirms}
        return confirms | ({"promoted": self.promoted} if self.promoted else {})

    @property
    def at_rung(self) -> bool:
        """Return whether the trial waits at a rung, or was stopped at one."""
        return self.status == "paused" or (self.status == "stopped" and self.epoch in self.rungs)

    @property
    def until(self) -> int:
        """Return the epoch up to which the trial runs: the next rung, or else the last epoch."""
        return next((rung for rung in self.rungs if rung > self.promoted), self.epochs)

    @property
    def epoch(self) -> int:
        """Return the number of epochs done."""
        return self.so_far.epochs

    @property
    def epochs(self) -> int:
        """Return the number of epochs in all; 0 if `config` is empty."""
        return int(self.config.get("train.epochs", 0))

    @property
    def val_accuracy(self) -> float | None:
        """Return the validation accuracy of the latest epoch; None before the first one."""
        return self.so_far.val_accuracy

    @property
    def best_val_accuracy(self) -> float | None:
        """Return the largest validation accuracy of all epochs so far; None before the first one.

        While the trial runs, this value is only shown: the best trial of a study is chosen among those that ended.
        """
        return self.so_far.best_val_accuracy

    @property
    def final_test_accuracy(self) -> float | None:
        """Return the clean test accuracy of the last epoch; None unless the trial is done or stopped."""
        return self.so_far.final_test_accuracy if self.status in FINISHED else None

    @property
    def best_val_test_accuracy(self) -> float | None:
        """Return the clean test accuracy of the epoch with the best validation accuracy.

        It is None unless the trial is done or stopped.
        """
        return self.so_far.best_val_test_accuracy if self.status in FINISHED else None

    @property
    def seconds(self) -> float:
        """Return the training time so far, in seconds."""
        return self.so_far.train_seconds

    @property
    def seconds_left(self) -> float | None:
        """Return the expected seconds until a running trial ends or pauses at a rung, judged by its epochs so far.

        It is None before the first epoch is done, and if the trial does not run.
        """
        running = self.status == "running" and self.epoch > 0
        return self.seconds / self.epoch * max(0, self.until - self.epoch) if running else None

    @property
    def error(self) -> str | None:
        """Return one line that says why the trial failed, or None."""
        return self.so_far.error


def confirmation(candidate: int, repeat: int) -> int:
    """Return the number of the trial that repeats trial `candidate` with the `repeat`-th further seed, from 1.

    The number does not depend on how many trials the search has, so that it stays when the search is extended.
    """
    return CONFIRMING * repeat + candidate
