"""Tests the state of a study with rungs as its ledger and its run directories tell it, wherever it was killed."""

from __future__ import annotations

import json
from collections import Counter

from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import at_work
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.status import trials_of
from orchestration.study.trial import Trial
from tests.searches import search_spec, write_search

RUNGS = (4, 12)


def state_of(workspace: Workspace, name: str = "s") -> tuple[dict[int, Trial], int]:
    rows, total = trials_of(workspace, Ledger(workspace.ledger), name)
    return {row.number: row for row in rows}, total


def add_epochs(workspace: Workspace, trial: Trial, epochs: int) -> None:
    file = workspace.run_directory(trial.cell) / "metrics.jsonl"
    row = json.loads(file.read_text().splitlines()[-1])
    file.write_text("".join(json.dumps(row | {"epoch": epoch}) + "\n" for epoch in range(1, epochs + 1)))


def test_a_search_to_its_end(workspace: Workspace) -> None:
    write_search(workspace, "s", search_spec(), 12)
    trials, total = state_of(workspace)
    assert total == 12
    ends = Counter((trial.status, trial.epoch, trial.promoted, trial.at_rung) for trial in trials.values())
    assert ends == {("stopped", 4, 0, True): 8, ("stopped", 12, 4, True): 3, ("done", 36, 12, False): 1}
    assert {trial.rungs for trial in trials.values()} == {RUNGS}


def test_those_that_wait_at_a_rung_are_paused_wherever_the_driver_was_killed(workspace: Workspace) -> None:
    write_search(workspace, "s", search_spec(), 12, most=30)
    trials, total = state_of(workspace)
    paused = [trial for trial in trials.values() if trial.status == "paused"]
    assert total == 12
    assert paused
    assert {(trial.epoch, trial.so_far.epochs, trial.until) for trial in paused} == {(4, 4, 4)}
    assert all(trial.mlflow_run_id for trial in paused)
    assert all(trial.best_val_accuracy for trial in paused)
    others = {trial.status for trial in trials.values()} - {"paused"}
    assert others <= {"queued"}, "nothing runs, and nothing was decided"


def test_what_was_promoted_waits_runs_and_is_interrupted(workspace: Workspace) -> None:
    ledger = write_search(workspace, "s", search_spec(), 12, most=48)
    known = ledger.studies["s"]
    number, rung = next((number, rung) for number, rung in known.promoted.items() if rung == 4)
    before = state_of(workspace)[0][number]
    add_epochs(workspace, before, 4)
    waits = state_of(workspace)[0][number]
    assert (waits.status, waits.promoted, waits.epoch, waits.until) == ("queued", rung, 4, 12)
    add_epochs(workspace, waits, 6)
    interrupted = state_of(workspace)[0][number]
    assert (interrupted.status, interrupted.epoch) == ("queued", 6)
    assert interrupted.mlflow_run_id == waits.mlflow_run_id
    with at_work(RunDirectory(workspace, waits.cell)):
        running = state_of(workspace)[0][number]
    assert (running.status, running.epoch, running.promoted) == ("running", 6, 4)
    add_epochs(workspace, waits, 20)
    beyond = state_of(workspace)[0][number]
    assert beyond.epoch == 12, "what another study trained beyond the next rung is not of this one"


def test_a_promoted_trial_whose_files_are_elsewhere_keeps_what_the_ledger_has(workspace: Workspace) -> None:
    ledger = write_search(workspace, "s", search_spec(), 12, most=48)
    number = next(iter(ledger.studies["s"].promoted))
    (workspace.run_directory(ledger.studies["s"].proposals[number].cell) / "metrics.jsonl").unlink()
    assert state_of(workspace)[0][number].epoch == 4


def test_confirmations_count_as_trials_of_the_study(workspace: Workspace) -> None:
    spec = search_spec(confirm={"top": 3, "seeds": 3})
    write_search(workspace, "s", spec, 12, most=40)
    assert state_of(workspace)[1] == 12 + 3 * 2
    write_search(workspace, "s", spec, 12)
    trials, total = state_of(workspace)
    assert total == len(trials) == 12 + 1 * 2, "one trial alone came to its end"
    confirming = [trial for trial in trials.values() if trial.confirms is not None]
    assert {(trial.source, trial.seeds, trial.rungs) for trial in confirming} == {("confirm", 3, ())}
    assert [trial.config["train.seed"] for trial in confirming] == [1, 2]
    assert {trial.status for trial in confirming} == {"done"}


def test_without_rungs_nothing_pauses(workspace: Workspace) -> None:
    write_search(workspace, "s", search_spec(pruner="none"), 3)
    trials, _ = state_of(workspace)
    assert {(trial.rungs, trial.promoted, trial.until, trial.at_rung) for trial in trials.values()} == {
        ((), 0, 36, False)
    }
