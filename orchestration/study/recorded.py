"""What the ledger has of a study and of a run that ended, as objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from erat.result import RunResult
from orchestration.study.trial import Trial


@dataclass(frozen=True, slots=True)
class RecordedResult(RunResult):
    """How a run last ended, according to the ledger.

    Attributes:
        mlflow_run_id: id of the run in MLflow that has the result; None if there is none.
        time: when the result was recorded, in seconds since 1970; None if an old ledger does not say.
        sweep: the study that recorded it; None for a run outside any study.
    """

    mlflow_run_id: str | None = None
    time: float | None = None
    sweep: str | None = None


@dataclass
class StudyRecord:
    """A study in the ledger.

    Attributes:
        name: name of the study.
        spec: its specification, as `StudySpec.content` returns it.
        trials: number of the search's trials that were asked for, without the listed runs.
        began: when it was begun, in seconds since 1970; None if an old ledger does not say.
        proposals: number of a trial -> the trial, for all trials proposed so far.
        stopped: digest of a run -> its result, for the runs that this study stopped early.
        paused: digest of a run -> its result at the last rung that it reached.
        promoted: number of a trial -> epoch of the last rung from which it was promoted.
        tracked: digest of a run -> id of the run in MLflow, under this study.
        totals: the numbers of trials that were asked for, in order, each larger than the one before.
        out: GPU or node that was excluded -> why; see `orchestration.run.places`.
        windows: one of these numbers -> the window of the trials by which it extended the search, if it has its own.
    """

    name: str
    spec: dict[str, Any]
    trials: int = 0
    began: float | None = None
    proposals: dict[int, Trial] = field(default_factory=dict)
    stopped: dict[str, RecordedResult] = field(default_factory=dict)
    paused: dict[str, RecordedResult] = field(default_factory=dict)
    promoted: dict[int, int] = field(default_factory=dict)
    tracked: dict[str, str] = field(default_factory=dict)
    totals: list[int] = field(default_factory=list)
    out: dict[str, str] = field(default_factory=dict)
    windows: dict[int, int] = field(default_factory=dict)
