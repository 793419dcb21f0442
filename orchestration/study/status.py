"""Where a sweep stands according to the ledger and its cells' folders: one row a trial, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from erat.errors import unknown_name
from erat.result import summarise
from orchestration.run.directory import read_metrics
from orchestration.run.heartbeat import is_running
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.rows import TrialRow
from orchestration.study.spec import StudySpec


def spec_of(ledger: Ledger, name: str) -> StudySpec:
    """The specification of a known sweep.

    Raises:
        UserError: no such sweep; near matches.
    """
    if name not in ledger.studies:
        raise unknown_name("sweep", name, ledger.studies or ["(none yet)"])
    return StudySpec.of(ledger.studies[name].spec)


def rows_of(
    workspace: Workspace, ledger: Ledger, name: str, spec: StudySpec | None = None
) -> tuple[list[TrialRow], int]:
    """The trials proposed so far, and how many there are to be."""
    sweep = ledger.studies[name]
    spec = spec or StudySpec.of(sweep.spec)
    rows = []
    for number, proposal in spec.proposals(sweep).items():
        folder, config = workspace.run_directory(proposal.cell), spec.config(proposal.params)
        row = TrialRow(number, proposal.cell, proposal.params, proposal.source)
        row.epochs, row.config = config.train.epochs, config.flat()
        outcome = ledger.outcome(proposal.cell, name)
        if outcome is not None:
            row.take_in(outcome.result)
        elif folder.exists():
            state = "running" if is_running(folder) else "queued"
            row.take_in(asdict(summarise(proposal.cell, state, read_metrics(folder))))
        rows.append(row)
    return rows, sweep.trials + len(spec.space.baselines)


def not_begun(spec: StudySpec, trials: int, rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Rows for the runs that are planned and known, but not proposed yet: baselines first, then the paper's points."""
    points = spec.space.scaled_points(spec.base.data.name)[:trials]
    known = {row.number for row in rows}
    planned = [("baseline", entry) for entry in spec.space.baselines] + [("paper", dict(point)) for point in points]
    missing = []
    for number, (source, params) in enumerate(planned):
        if number not in known:
            config = spec.config(params)
            row = TrialRow(number, config.digest(), dict(params), source)
            row.epochs, row.config = config.train.epochs, config.flat()
            missing.append(row)
    return missing
