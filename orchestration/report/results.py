"""Results of runs as `--json` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestration.report.summary import best
from orchestration.study.confirmations import confirmed, winner
from orchestration.study.trial import Trial


def result_json(row: Trial) -> dict[str, Any]:
    """Return a run as `--json` prints it; a confirmation also says which trial it `confirms`, and its seed."""
    more = {} if row.confirms is None else {"confirms": row.confirms, "seed": row.config.get("train.seed")}
    return more | {
        "cell": row.cell,
        "status": row.status,
        "config": row.config,
        "final_test_accuracy": row.final_test_accuracy,
        "best_val_test_accuracy": row.best_val_test_accuracy,
        "val_accuracy": row.val_accuracy,
        "train_seconds": row.seconds,
        "mlflow_run_id": row.mlflow_run_id,
        "error": row.error,
    }


def best_json(rows: Sequence[Trial]) -> dict[str, Any] | None:
    """Return the best trial as `--json` prints it, with its number and searched values; None if no trial qualifies.

    If it was chosen by its mean over several seeds, `confirmed` has mean, spread, their number and the seeds.
    """
    chosen, over = best(rows), winner(rows)
    if chosen is None:
        return None
    content = result_json(chosen) | {"params": chosen.params, "number": chosen.number}
    return content | ({} if over is None else {"confirmed": over.content()})


def confirmed_json(rows: Sequence[Trial]) -> dict[str, Any]:
    """Return `confirmed`, the candidates over their seeds, as `--json` prints it; nothing if there are none."""
    candidates = [each.content() for each in confirmed(rows)]
    return {"confirmed": candidates} if candidates else {}
