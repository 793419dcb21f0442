"""Shows the trials of a study as a pandas table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestration.study.confirmations import FIGURES, confirmed
from orchestration.study.trial import Trial

if TYPE_CHECKING:
    from pandas import DataFrame

_OWN = (
    "number",
    "status",
    "source",
    "params",
    "epoch",
    "val_accuracy",
    "best_val_accuracy",
    "final_test_accuracy",
    "best_val_test_accuracy",
    "seconds",
    "mlflow_run_id",
    "cell",
    "error",
    "promoted",
    "confirms",
)
COLUMNS = (*_OWN, *FIGURES)


def results_of(trials: Sequence[Trial]) -> DataFrame:
    """Return a table with a row per trial: the columns `COLUMNS`, then one for each configuration key."""
    from pandas import DataFrame  # imported here because it loads slowly

    over = {each.trial.number: each.figures() for each in confirmed(trials)}
    keys = list(dict.fromkeys(key for trial in trials for key in trial.config))
    rows = [
        {name: getattr(trial, name) for name in _OWN} | over.get(trial.number, {}) | dict(trial.config)
        for trial in trials
    ]
    return DataFrame(rows, columns=[*COLUMNS, *keys])
