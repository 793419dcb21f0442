"""How runs end: read from their directories, and passed to the tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from erat.result import RunResult, summarise
from orchestration.report.summary import best
from orchestration.run.directory import ENDS, METRICS, RunDirectory, left_over
from orchestration.run.retries import DEVICE_FAULT, OUT_OF_MEMORY, Retries, Retry
from orchestration.storage.lease import latest
from orchestration.study.confirmations import confirmed, winner
from orchestration.study.trial import FINISHED, Trial
from orchestration.tracking.tracker import Ending, Tracker

SUMMARY_METRICS = ("final_test_accuracy", "best_val_test_accuracy", "best_val_accuracy", "train_seconds")


def read_end(
    run: RunDirectory,
    number: int,
    request: str,
    pause_after: int | None,
    retries: Retries,
    lacked_memory: Callable[[int, str], bool],
    session: str = "",
) -> RunResult | Retry:
    """Return how the run of a trial ended or paused, or a `Retry` if it is to run again.

    Args:
        run: the run's directory; on shared storage, what the worker wrote is fetched first.
        number: number of the trial.
        request: name of the study's stop request; see `stop_request`.
        pause_after: epoch after which the trial was to pause; None: it was to run to the end.
        retries: what went wrong with the study's trials before.
        lacked_memory: called with a trial that ran out of memory, and its error; returns whether fewer trials than
            usual ran beside it.
        session: in whose name the workers of the trial hold its run on shared storage.
    """
    run.fetch(METRICS, *ENDS)
    run.fetch_artifacts()
    result, stop_epoch = run.read_result(), run.stop_epoch(request)
    if result is not None and result.status != "done" and _is_late(run, session):
        result = None
    if result is not None and result.status == "paused":
        rows = run.read_metrics()[:pause_after]
        if not left_over(result, pause_after) and len(rows) == pause_after:
            return _up_to(result, rows)
        # A promoted trial whose worker died before it began; or the figures up to the rung are damaged, and the
        # worker writes them again.
        result = None
    if result is None or (result.error or "").startswith((OUT_OF_MEMORY, DEVICE_FAULT)):
        return _failed(run, number, result, retries, lacked_memory)
    if result.status == "stopped" or (result.status == "done" and stop_epoch is not None):
        # Data-parallel workers may notice the stop request only after later epochs, or when they are done.
        result = _up_to(replace(result, status="stopped"), run.read_metrics()[:stop_epoch])
    return result


def _is_late(run: RunDirectory, session: str) -> bool:
    """Return whether a result is that of an earlier worker of this trial, which had lost the run by then."""
    attempt = run.attempt_of_result()
    if attempt is None or run.workspace.storage is None:
        return False
    last = latest(run.workspace.storage, run.cell)
    return last is not None and last["session"] == session and attempt < last["attempt"]


def _failed(
    run: RunDirectory,
    number: int,
    result: RunResult | None,
    retries: Retries,
    lacked_memory: Callable[[int, str], bool],
) -> RunResult | Retry:
    """Decide what to do with a run that left no result, or that ran out of memory, or whose GPU failed.

    Returns:
        The retry, or the result "failed" with the reason.
    """
    rows = run.read_metrics()
    verdict: str | Retry
    error = (retries.lacked_memory(number, len(rows)) if result is None else result.error) or ""
    if error.startswith(OUT_OF_MEMORY):
        verdict = retries.out_of_memory(number, error, fewer=lacked_memory(number, error))
    elif result is not None:
        verdict = retries.died(number, len(rows), error)
    elif (refusal := run.read_error()) is not None:
        verdict = refusal
    elif (departure := run.read_departure()) is not None:
        verdict = Retry("departure", f"its worker was {departure}")
    else:
        verdict = retries.died(number, len(rows))
    if isinstance(verdict, Retry):
        return verdict
    return replace(result or summarise(run.cell, "failed", rows), error=verdict)


def _up_to(result: RunResult, rows: Sequence[Mapping[str, Any]]) -> RunResult:
    """Return a result with the figures of these epochs alone; the run may have gone further.

    Args:
        result: the result of the run, whose status is kept.
        rows: the figures of each epoch that counts, in order.
    """
    kept = {key: getattr(result, key) for key in ("noise_rate", "checksum", "peak_memory_mb", "device")}
    return replace(summarise(result.cell, result.status, rows), **kept)


def ending(
    result: RunResult, run: RunDirectory, *, at_rung: bool = False
) -> tuple[Ending, dict[str, float | None], Path | None, str | None, dict[str, int] | None]:
    """Return what `Tracker.finish` is told of the result of a run, in the order of its arguments.

    Args:
        result: the result.
        run: the run's directory, whose artifacts are stored unless the run failed or is paused.
        at_rung: whether the run was stopped at a rung, after the last of its epochs.
    """
    return (
        cast("Ending", result.status),
        {} if result.status == "paused" else {key: getattr(result, key) for key in SUMMARY_METRICS},
        run.artifacts if result.status in FINISHED else None,
        result.error,
        {"rung": result.epochs} if at_rung or result.status == "paused" else None,
    )


def track_end(tracker: Tracker, run_id: str, result: RunResult, run: RunDirectory, *, at_rung: bool = False) -> None:
    """Pass the result of a run to the tracker, where its id is `run_id`; for the others see `ending`."""
    tracker.finish(run_id, *ending(result, run, at_rung=at_rung))


def track_winner(tracker: Tracker, rows: Sequence[Trial]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Add to the MLflow runs of the candidates what their seeds say; return the metrics and tags of the winner.

    Args:
        tracker: where runs are tracked.
        rows: the trials of a study that has ended.

    Returns:
        Metrics and tags for the study's own run: the means and spreads of the winner, if it is confirmed, and its
        number and cell.
    """
    for each in confirmed(rows):
        if each.trial.mlflow_run_id is not None:
            tracker.add(each.trial.mlflow_run_id, each.figures())
    chosen, over = best(rows), winner(rows)
    tags = {} if chosen is None else {"best_trial": chosen.number, "best_cell": chosen.cell}
    return {} if over is None else over.figures(), tags
