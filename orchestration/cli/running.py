"""Runs or plans a study for a verb, and shows what came of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from orchestration.commands.console import EXIT_FAILED, err, show_failure, stopped
from orchestration.terminal import program

if TYPE_CHECKING:
    from orchestration.api import Study


def plan_or_run(
    study: Study, address: str | None, at_most: int | None, as_json: bool, *, dry_run: bool, slots: int | None = None
) -> None:
    """Show what a study would run if this is a dry run; run what is left of it otherwise."""
    if dry_run:
        plan_and_show(study, address, slots, at_most, as_json)
    else:
        run_and_show(study, address, at_most, as_json)


def run_and_show(study: Study, address: str | None, at_most: int | None, as_json: bool, *, retry: bool = False) -> None:
    """Run what is left of a study, show its results, and exit with status 1 if a trial failed."""
    from orchestration.commands import overview
    from orchestration.report.notation import number_of
    from orchestration.report.results import best_json, confirmed_json, result_json
    from orchestration.run.directory import RunDirectory

    _say_if_fewer(study)
    try:
        (study.retry if retry else study.run)(address, at_most=at_most)
    except KeyboardInterrupt:
        again = f"{program()} resume {study.name}" if study.begun else "the same command"
        raise stopped(f"nothing finished is lost. Go on with: {again}") from None
    end = study.end
    assert end is not None, "it ran"
    rows = end.driver.trials
    overview.show_sweep(end, err)
    if as_json:
        content = {
            "name": study.name,
            "tracking_uri": end.driver.tracker.uri,
            "wall_seconds": end.wall_seconds,
            "best": best_json(rows),
            "runs": [result_json(row) for row in rows],
        } | confirmed_json(rows)
        print(json.dumps(content))
    failed = [row for row in rows if row.status == "failed"]
    for row in failed:
        err.print(f"trial {number_of(row)} failed:", style="bold red")
        show_failure(row.error, RunDirectory(study.workspace, row.cell).log)
    if failed:
        err.print(f"try the failed ones again with: {program()} retry {study.name}")
        raise typer.Exit(EXIT_FAILED)


def plan_and_show(study: Study, address: str | None, slots: int | None, at_most: int | None, as_json: bool) -> None:
    """Show what a study would run, and how long it takes, on the cluster at `address`, on `slots`, or here."""
    from orchestration.commands.plan import find_room, plan_sweep
    from orchestration.study.ledger import Ledger

    _say_if_fewer(study)
    ledger = Ledger(study.workspace.ledger)
    room = find_room(study.spec.base, address, slots, at_most)
    content = plan_sweep(study.name, study.spec, study.search_trials, study.workspace, ledger, err, room)
    if as_json:
        print(json.dumps(content))


def _say_if_fewer(study: Study) -> None:
    if study.asked < study.search_trials:
        err.print(
            f"the sweep has {study.search_trials} search trials already; asking for {study.asked} takes none away"
        )
