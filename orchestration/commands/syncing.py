"""Puts right what MLflow has of a study, and says what was done."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from erat.errors import UserError
from orchestration.api import load_study
from orchestration.report.crafting import craft_view
from orchestration.run.heartbeat import driving
from orchestration.search.sync import sync
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.tracking.store import without_password
from orchestration.tracking.tracker import Tracker


def sync_and_show(name: str, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Put right what MLflow has of a study, print how far it is and what was done, and return the numbers.

    Raises:
        UserError: There is no such study, it runs, or MLflow's store cannot be opened, read or written.
    """
    study = load_study(name, workspace)
    workspace = workspace.sharing(study.spec.base.storage.path)
    with driving(workspace, name), craft_view(doing="sync") as view:
        tracker = Tracker.open(workspace)
        # The ledger is read when nobody drives the study any more.
        ledger = Ledger(workspace.ledger)
        done = sync(
            name,
            study.spec,
            workspace,
            ledger,
            tracker,
            show=lambda number, total: view.show(name, "runs", number, total),
        )
    if waiting := tracker.flush():
        raise UserError(
            f"MLflow does not answer any more: {waiting} entries are kept; the same command sends them later"
        )
    uri = without_password(tracker.uri)
    found = f"{done.runs} runs looked at" if done.runs else "no runs there"
    if done.made or done.mended:
        console.print(
            f"{found}; {done.made} made, {done.mended} put right, {done.epochs} epochs added: {uri}", markup=False
        )
    else:
        console.print(f"{found}, nothing to put right: {uri}", markup=False)
    return {"name": name, "tracking_uri": tracker.uri, **done.content()}
