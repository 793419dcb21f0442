"""How a run ended, in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

R = TypeVar("R", bound="RunResult")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended, or how far it is. Accuracies in [0, 1]; none where the run did not get so far.

    Attributes:
        cell: digest of the run's configuration.
        status: "done", "stopped" (early, on request) or "failed"; of a run that has not ended "running" or "queued".
        epochs: done.
        val_accuracy: of the last epoch; best_val_accuracy: the largest.
        final_test_accuracy: clean test accuracy of the last epoch, the primary figure.
        best_val_test_accuracy: clean test accuracy of the epoch with the best validation accuracy.
        train_seconds: of training alone, over all restarts.
        error: why it failed, in one line.
        val_history: validation accuracy after each epoch.
        device: what it was trained on, "cpu" or the name of a GPU; none in results of before this was written down.
    """

    cell: str
    status: str
    epochs: int = 0
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None
    final_test_accuracy: float | None = None
    best_val_test_accuracy: float | None = None
    train_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    noise_rate: float | None = None
    checksum: str | None = None
    error: str | None = None
    val_history: list[float] = field(default_factory=list)
    device: str | None = None

    @classmethod
    def of(cls: type[R], content: Mapping[str, Any]) -> R:
        """Read back what was stored under the names of the fields; others are passed over."""
        return cls(**{entry.name: content[entry.name] for entry in fields(cls) if entry.name in content})


def summarise(cell: str, status: str, rows: Sequence[Mapping[str, Any]]) -> RunResult:
    """Return the result that a run's epochs amount to."""
    if not rows:
        return RunResult(cell, status)
    best = max(rows, key=lambda row: row["val_accuracy"])  # the first of equals
    return RunResult(
        cell,
        status,
        epochs=len(rows),
        val_accuracy=rows[-1]["val_accuracy"],
        best_val_accuracy=best["val_accuracy"],
        final_test_accuracy=rows[-1]["test_accuracy"],
        best_val_test_accuracy=best["test_accuracy"],
        train_seconds=sum(row["epoch_seconds"] for row in rows),
        val_history=[row["val_accuracy"] for row in rows],
    )
