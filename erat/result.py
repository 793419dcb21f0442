"""The result of a run, in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeVar

R = TypeVar("R", bound="RunResult")


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run, or its state so far. Accuracies are in [0, 1], and none where the run did not get so far.

    Attributes:
        cell: the digest of the run's configuration.
        status: "done", "stopped" (early, on request) or "failed"; for a run that has not ended, "running", "queued" or
            "paused" (after an epoch that was given ahead, to go on later).
        epochs: the number of epochs done.
        val_accuracy: the validation accuracy of the last epoch.
        best_val_accuracy: the largest validation accuracy of all epochs.
        final_test_accuracy: the clean test accuracy of the last epoch, the primary figure.
        best_val_test_accuracy: the clean test accuracy of the epoch with the best validation accuracy.
        train_seconds: the seconds of training alone, over all restarts.
        peak_memory_mb: the peak memory in units of 2**20 bytes: of tensors on a GPU, of the whole process on the CPU.
        noise_rate: the realised share of wrong training labels.
        checksum: the checksum of the poisoned images in the store.
        error: the reason of a failure, in one line.
        val_history: the validation accuracy after each epoch.
        device: the device of the training, "cpu" or the name of a GPU; None in results from before it was recorded.
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
        """Return the result stored in `content` under the names of the fields; other names are ignored."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})


def summarise(cell: str, status: str, rows: Sequence[Mapping[str, Any]]) -> RunResult:
    """Return the result of a run.

    Args:
        cell: the digest of the run's configuration.
        status: as in `RunResult`.
        rows: the figures of each epoch, in order.
    """
    if not rows:
        return RunResult(cell, status)
    best = max(rows, key=itemgetter("val_accuracy"))  # the first of several equal epochs
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
