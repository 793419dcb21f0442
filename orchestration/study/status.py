"""Where a study stands according to the ledger and its cells' folders: its trials, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from erat.errors import unknown_name
from erat.result import summarise
from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import is_running
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial


def spec_of(ledger: Ledger, name: str) -> StudySpec:
    """The specification of a known sweep.

    Raises:
        UserError: no such sweep; near matches.
    """
    if name not in ledger.studies:
        raise unknown_name("sweep", name, ledger.studies or ["(none yet)"])
    return StudySpec.of(ledger.studies[name].spec)


def trials_of(
    workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec | None = None
) -> tuple[list[Trial], int]:
    """The trials proposed so far, and how many there are to be."""
    sweep = ledger.studies[name]
    spec = spec or StudySpec.of(sweep.spec)
    trials = []
    for proposed in spec.proposals(sweep).values():
        run = RunDirectory(workspace, proposed.cell)
        trial = ledger.with_outcome(replace(proposed, config=spec.config(proposed.params).flat()), name)
        if trial.result is None and run.path.exists():
            state = "running" if is_running(run) else "queued"
            trial = replace(trial, result=summarise(trial.cell, state, run.read_metrics()))
        trials.append(trial)
    return trials, spec.size(sweep.trials)


def not_begun(spec: StudySpec, total: int, trials: Sequence[Trial]) -> list[Trial]:
    """The runs that are known ahead, but not proposed yet."""
    known = {trial.number for trial in trials}
    planned = enumerate(spec.known_ahead(total))
    return [spec.trial(number, *entry) for number, entry in planned if number not in known]
