"""The state of a study according to the ledger and the directories of its runs: its trials, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from erat.errors import unknown_name
from erat.result import summarise
from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import is_running
from orchestration.storage.workspace import Workspace
from orchestration.study.confirmations import expected
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial


def spec_of(ledger: Ledger, name: str) -> StudySpec:
    """Return the specification of the study of this name in the ledger.

    Raises:
        UserError: There is no such study, for which the message suggests similar names, or its specification is
            damaged.
    """
    if name not in ledger.studies:
        raise unknown_name("sweep", name, ledger.studies or ["(none yet)"])
    return StudySpec.of(ledger.studies[name].spec)


def trials_of(
    workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec | None = None
) -> tuple[list[Trial], int]:
    """Return the trials proposed so far, with the state of their runs, and the number of trials in all.

    Args:
        workspace: the workspace of the study.
        ledger: its ledger, which must have the study.
        name: name of the study.
        spec: its specification, if it was read before.
    """
    sweep = ledger.studies[name]
    spec = spec or StudySpec.of(sweep.spec)
    trials = []
    for proposed in spec.proposals(sweep).values():
        run = RunDirectory(workspace, proposed.cell)
        trial = ledger.with_outcome(spec.completed(proposed), name)
        if trial.status == "queued" and run.path.exists():  # not begun, begun, or promoted from a rung
            state, metrics = "running" if is_running(run) else "queued", run.read_metrics()[: trial.until]
            if state == "running" or len(metrics) >= trial.epoch:
                trial = replace(trial, result=summarise(trial.cell, state, metrics))
        trials.append(trial)
    return trials, spec.size(sweep.trials) + confirmations_of(spec, sweep.trials, trials)


def confirmations_of(spec: StudySpec, trials: int, rows: Sequence[Trial]) -> int:
    """Return the number of trials that repeat the best ones, as far as it is known before the search is over.

    Args:
        spec: specification of the study.
        trials: number of trials of the search.
        rows: the trials proposed so far.
    """
    confirm = spec.confirmation
    return 0 if confirm is None else expected(rows, trials, confirm.top, confirm.seeds)


def not_begun(spec: StudySpec, total: int, trials: Sequence[Trial]) -> list[Trial]:
    """Return the listed runs and points of the paper that have not been proposed yet, as trials.

    Args:
        spec: specification of the study.
        total: number of trials of the search.
        trials: the trials proposed so far.
    """
    known = {trial.number for trial in trials}
    planned = enumerate(spec.known_ahead(total))
    return [spec.trial(number, *entry) for number, entry in planned if number not in known]
