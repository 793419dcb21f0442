"""Tests successive halving on a real Ray cluster: trials pause, go on from their checkpoints, and survive kills."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from erat.config import load_config
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from tests.e2e.commands import Command, Said
from tests.e2e.sweeps import begun, events, gone, table, wait_until, writer
from tests.workers import kill_workers

EPOCHS, RUNGS = 6, [2, 4]
BASE = [
    "defense.name=ce",
    "corruption.data=none",
    "corruption.labels=none",
    "data.limit=300",
    f"train.epochs={EPOCHS}",
    "train.batch_size=16",
    "train.schedule=cosine",
]
# Trials of two blocks; a study that is disturbed is compared with all that both do, or the first one.
ALL, ONE_BLOCK = 12, 6
# The window is given, because "auto" depends on the number of slots. Two blocks, of which six trials reach the first
# rung, two the second and one the end.
SPACE: dict[str, Any] = {
    "name": "halved",
    "about": "a learning rate and a weight decay",
    "parameters": {
        "train.lr": {"low": 0.001, "high": 0.2, "log": True},
        "train.weight_decay": {"low": 0, "high": 1},
    },
    "points": [],
    "proposals": 12,
    "pruner": "halving",
    "rungs": RUNGS,
    "block": 6,
    "window": 4,
    "baselines": [],
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that writes the file of a space: the space above with changes."""
    return writer(tmp_path_factory.mktemp("space"), SPACE)


def decisions(workspace: Workspace, sweep: str, trials: int = ALL) -> dict[str, set[tuple[int, int]]]:
    """Return kind of a ledger entry -> (number of the trial, epoch), for what rungs cause of the first `trials`."""
    number_of = {trial.cell: trial.number for trial in Ledger(workspace.ledger).studies[sweep].proposals.values()}
    found: dict[str, set[tuple[int, int]]] = {"paused": set(), "promoted": set(), "stopped": set(), "done": set()}
    for event in events(workspace, sweep):
        if event["event"] == "promoted":
            found["promoted"].add((event["number"], event["epoch"]))
        elif event["event"] in found:
            found[event["event"]].add((number_of[event["cell"]], event["result"]["epochs"]))
    return {kind: {entry for entry in entries if entry[0] < trials} for kind, entries in found.items()}


@pytest.fixture(scope="module")
def first(command: Command, space: Callable[..., str]) -> Said:
    """Run the study with which others are compared, on two slots."""
    said = command("sweep", "--space", space(), "--name", "first", *BASE, "--json")
    assert said.code == 0, said.err
    return said


def assert_same(said: Said, own: Workspace, first: Said, workspace: Workspace, trials: int = ONE_BLOCK) -> None:
    """Assert that a study has the trials, results and decisions of the first study's first `trials`."""
    assert len(table(said.json)) == trials
    assert table(said.json) == table(first.json)[:trials]
    assert decisions(own, "first") == decisions(workspace, "first", trials)


@pytest.mark.slow
class TestFromBeginningToEnd:
    def test_of_each_block_a_third_goes_on_from_each_rung(self, first: Said, workspace: Workspace) -> None:
        made = decisions(workspace, "first")
        assert Counter(epoch for _, epoch in made["paused"]) == {RUNGS[0]: 12, RUNGS[1]: 4}
        assert Counter(epoch for _, epoch in made["promoted"]) == {RUNGS[0]: 4, RUNGS[1]: 2}
        assert Counter(epoch for _, epoch in made["stopped"]) == {RUNGS[0]: 8, RUNGS[1]: 2}
        assert Counter(epoch for _, epoch in made["done"]) == {EPOCHS: 2}
        for numbers in (range(6), range(6, 12)):
            assert sum(number in numbers for number, _ in made["done"]) == 1
        statuses = Counter(run["status"] for run in first.json["runs"])
        assert statuses == {"stopped": 10, "done": 2}

    def test_a_trial_that_paused_has_the_numbers_of_one_that_did_not(
        self, first: Said, workspace: Workspace, tmp_path: Path
    ) -> None:
        (one, *_) = [run for run in first.json["runs"] if run["status"] == "done"]
        config = load_config(workspace.run_directory(one["cell"]) / "config.json")
        undisturbed = execute_run(config, Workspace(tmp_path / "alone"))
        ended = Ledger(workspace.ledger).outcome(one["cell"])
        assert ended is not None
        assert ended.val_history == undisturbed.val_history
        assert ended.final_test_accuracy == undisturbed.final_test_accuracy == one["final_test_accuracy"]

    def test_a_stopped_trial_leaves_no_checkpoint(self, first: Said, workspace: Workspace) -> None:
        for run in first.json["runs"]:
            folder = workspace.run_directory(run["cell"])
            assert (folder / "checkpoint.pt").exists() == (run["status"] == "done")
            assert not (folder / "previous-checkpoint.pt").exists()

    def test_mlflow_says_how_each_trial_ended(self, first: Said, workspace: Workspace) -> None:
        import mlflow

        client = mlflow.MlflowClient(first.json["tracking_uri"])
        for run in first.json["runs"]:
            found = client.get_run(run["mlflow_run_id"])
            assert (found.info.status, found.data.tags["status"]) == ("FINISHED", run["status"])
            points = client.get_metric_history(run["mlflow_run_id"], "val_accuracy")
            epochs = len(RunDirectory(workspace, run["cell"]).read_metrics())
            assert [point.step for point in points] == list(range(1, epochs + 1))

    def test_on_one_slot_it_makes_the_same_table(
        self, first: Said, command: Command, space: Callable[..., str], tmp_path: Path, workspace: Workspace
    ) -> None:
        alone = Workspace(tmp_path / "alone")
        words = [
            "sweep",
            "--space",
            space(),
            "--name",
            "first",
            *BASE,
            "--trials",
            str(ONE_BLOCK),
            "--max-concurrent",
            "1",
        ]
        said = command(*words, "--json", at=alone)
        assert said.code == 0, said.err
        assert_same(said, alone, first, workspace)


# --- kills ------------------------------------------------------------------------------------------------------------


def wait_for(workspace: Workspace, sweep: str, kind: str, count: int) -> None:
    """Wait until the ledger has as many entries of this kind."""

    def there() -> bool:
        found = events(workspace, sweep) if workspace.ledger.exists() else []
        return sum(event["event"] == kind for event in found) >= count

    wait_until(there, f"{sweep} never had {count} x {kind}")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count", "trials"), [("paused", 4, ONE_BLOCK), ("promoted", 1, ALL)])
def test_a_study_whose_driver_is_killed_goes_on_to_the_same_table(
    kind: str,
    count: int,
    trials: int,
    first: Said,
    command: Command,
    space: Callable[..., str],
    own_workspace: Workspace,
    workspace: Workspace,
) -> None:
    words = ("sweep", "--space", space(), "--name", "first", "--trials", str(trials), *BASE)
    process = begun(own_workspace, *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(own_workspace, "first", kind, count)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    gone(own_workspace, 120)
    said = command("resume", "first", "--json", at=own_workspace)
    assert said.code == 0, said.err
    assert_same(said, own_workspace, first, workspace, trials)
    ended = Counter(event["cell"] for event in events(own_workspace, "first") if event["event"] in ("done", "stopped"))
    assert set(ended.values()) == {1}, "each ended once"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:trial .* the worker died")
def test_a_study_whose_workers_are_killed_makes_the_same_table(
    first: Said,
    command: Command,
    space: Callable[..., str],
    cluster: Cluster,
    own_workspace: Workspace,
    workspace: Workspace,
) -> None:
    killed: list[int] = []

    def kill() -> None:
        for kind in ("paused", "promoted"):
            wait_for(own_workspace, "first", kind, 1)
            killed.extend(kill_workers(cluster))

    killer = threading.Thread(target=kill)
    killer.start()
    words = ("sweep", "--space", space(), "--name", "first", "--trials", str(ONE_BLOCK), *BASE)
    said = command(*words, "--json", at=own_workspace)
    killer.join()
    assert len(killed) >= 2
    assert said.code == 0, said.err
    assert_same(said, own_workspace, first, workspace)


# --- data-parallel trials ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_data_parallel_trials_pause_and_go_on(
    command: Command, space: Callable[..., str], workspace: Workspace
) -> None:
    """Both workers leave after the rung's epoch; the next trial would otherwise wait for their place for ever."""
    small = space(proposals=2, block=2, rungs=[2], window=2)
    base = [word for word in BASE if not word.startswith("train.epochs")]
    said = command(
        "sweep", "--space", small, "--name", "parallel", *base, "train.epochs=3", "train.workers=2", "--json"
    )
    assert said.code == 0, said.err
    assert sorted(run["status"] for run in said.json["runs"]) == ["done", "stopped"]
    made = decisions(workspace, "parallel")
    (done,) = [number for number, _ in made["done"]]
    assert made == {
        "paused": {(0, 2), (1, 2)},
        "promoted": {(done, 2)},
        "stopped": {(1 - done, 2)},
        "done": {(done, 3)},
    }
    assert len(RunDirectory(workspace, said.json["runs"][done]["cell"]).read_metrics()) == 3
