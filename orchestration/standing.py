"""Where a sweep stands according to the ledger and its cells' folders: one row a trial, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from erat.errors import unknown_name
from orchestration.home import Home
from orchestration.presence import is_running
from orchestration.rows import TrialRow
from orchestration.state import Ledger
from orchestration.sweep import SweepSpec
from orchestration.trial import read_metrics, summarise


def spec_of(ledger: Ledger, name: str) -> SweepSpec:
    """The specification of a known sweep.

    Raises:
        UserError: no such sweep; near matches.
    """
    if name not in ledger.sweeps:
        raise unknown_name("sweep", name, ledger.sweeps or ["(none yet)"])
    return SweepSpec.of(ledger.sweeps[name].spec)


def rows_of(home: Home, ledger: Ledger, name: str, spec: SweepSpec | None = None) -> tuple[list[TrialRow], int]:
    """The trials proposed so far, and how many there are to be."""
    sweep = ledger.sweeps[name]
    spec = spec or SweepSpec.of(sweep.spec)
    rows = []
    for number, proposal in spec.proposals(sweep).items():
        folder, config = home.cell(proposal.cell), spec.config(proposal.params)
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


def not_begun(spec: SweepSpec, trials: int, rows: Sequence[TrialRow]) -> list[TrialRow]:
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
