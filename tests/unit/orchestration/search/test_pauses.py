"""Tests what the driver makes of trials that pause at a rung, without Ray and MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ray.tune.search import Searcher

from erat.result import RunResult
from orchestration.run.retries import Retry
from orchestration.search.driver import StudyDriver
from orchestration.search.observations import Observation
from orchestration.search.tune import QueueSearcher
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from tests.tracked import Untracked

RATE = "train.lr"
EPOCHS, RUNGS = 6, [2, 4]
SPACE = {
    "name": "mine",
    "about": "a test",
    "parameters": {RATE: {"low": 0.001, "high": 1}},
    "pruner": "halving",
    "rungs": RUNGS,
    "block": 3,
    "window": 2,
}


class FakeSampler:
    """A sampler whose values follow from the numbers."""

    def given(self, number: int, params: Mapping[str, Any]) -> None: ...

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        return dict(known or {RATE: (number + 1) / 100})

    def tell(self, number: int, observation: Observation) -> None: ...


class FakeTracker(Untracked):
    """A tracker that keeps what it is told of starts and ends."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str, dict[str, Any], Path | None]] = []
        self.started: list[str] = []
        self.epochs: dict[str, list[int]] = {}
        self.tags: dict[str, dict[str, Any]] = {}

    def start_run(self, cell: str, config: Mapping[str, Any], **options: Any) -> str:
        self.started.append(cell)
        self.tags.setdefault(f"run-{cell}", {}).update(options["tags"])
        return f"run-{cell}"

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        self.epochs.setdefault(run_id, []).append(epoch)

    def finish(
        self,
        run_id: str,
        status: str,
        summary: Mapping[str, Any],
        artifacts: Path | None = None,
        error: Any = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self.tags.setdefault(run_id, {}).update(tags or {})
        self.ends.append((run_id, status, dict(summary), artifacts))


class World:
    """A driver of three trials, whose surroundings are all fake, except for the disk."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.tracker = workspace, FakeTracker()
        spec = StudySpec(parse_space(SPACE, "mine.yaml"), "demo", {"defense.name": "ce", "train.epochs": EPOCHS})
        self.ledger = Ledger(workspace.ledger)
        register(self.ledger, "a", spec, 3)
        self.driver = StudyDriver(
            "a", spec, 3, workspace, self.ledger, self.tracker, "parent", FakeSampler()  # type: ignore[arg-type]
        )  # fmt: skip

    def begin(self) -> dict[str, Any] | None:
        """Start the next trial and return its parameters, or None if there is none at present."""
        if (trial := self.driver.queue.next()) is None:
            return None
        parameters = self.driver.trial_parameters(trial)
        self.driver.started(trial.number)
        return parameters

    def folder(self, number: int) -> Path:
        return self.workspace.run_directory(self.driver.queue.trials[number].cell)

    def leaves(self, number: int, status: str | None, *accuracies: float) -> None:
        """Write what a worker leaves after these epochs; without a status it died before it wrote a result."""
        rows = [
            {"epoch": epoch, "val_accuracy": value, "test_accuracy": value, "epoch_seconds": 1.0}
            for epoch, value in enumerate(accuracies, start=1)
        ]
        (self.folder(number) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder(number) / "checkpoint.pt").write_text("weights")
        (self.folder(number) / "result.json").unlink(missing_ok=True)
        if status is not None:
            figures = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
            content = {"cell": self.folder(number).name, "status": status, "epochs": len(rows), "device": "cpu"}
            content |= dict.fromkeys(figures, accuracies[-1]) | {"val_history": list(accuracies), "noise_rate": 0.5}
            (self.folder(number) / "result.json").write_text(json.dumps(content))

    def pauses(self, number: int, *accuracies: float) -> RunResult:
        self.leaves(number, "paused", *accuracies)
        result = self.driver.ended(number)
        assert isinstance(result, RunResult)
        return result

    def statuses(self) -> list[str]:
        return [trial.status for trial in self.driver.trials]

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.workspace.ledger.read_text().splitlines()]
        return [line for line in lines if line["event"] == kind]


@pytest.fixture
def world(workspace: Workspace) -> World:
    """Three trials under way."""
    made = World(workspace)
    assert [(made.begin() or {})["pause_after"] for _ in range(3)] == [2, 2, 2]
    return made


def test_a_trial_at_a_rung_is_recorded_as_such(world: World) -> None:
    result = world.pauses(0, 0.1, 0.3)
    assert (result.status, result.epochs, result.best_val_accuracy) == ("paused", 2, 0.3)
    assert (result.noise_rate, result.device) == (0.5, "cpu")
    assert world.statuses() == ["paused", "running", "running"]
    (event,) = world.events("paused")
    assert (event["sweep"], event["cell"], event["result"]["epochs"]) == ("a", result.cell, 2)
    assert event["result"]["mlflow_run_id"] == f"run-{result.cell}"
    assert world.tracker.ends == [(f"run-{result.cell}", "paused", {}, None)], "no final figures, and no artifacts"
    assert world.tracker.tags[f"run-{result.cell}"] == {"rung": 2}
    assert world.ledger.outcome(result.cell, "a") is None, "it has not ended"


def test_what_another_study_trained_beyond_the_rung_does_not_count(world: World) -> None:
    world.leaves(0, None, 0.1, 0.3, 0.9)
    world.driver.epoch(0)
    assert world.driver.queue.trials[0].so_far.val_history == [0.1, 0.3]
    result = world.pauses(0, 0.1, 0.3, 0.9)
    assert (result.status, result.epochs, result.val_history, result.best_val_accuracy) == (
        "paused",
        2,
        [0.1, 0.3],
        0.3,
    )


def test_the_best_of_a_block_goes_on_at_once_and_the_others_are_stopped(world: World) -> None:
    for number, reached in [(2, 0.4), (0, 0.3), (1, 0.5)]:
        assert world.driver.queue.exhausted is False
        world.pauses(number, 0.1, reached)
    going_on = world.begin()
    assert going_on is not None
    assert (going_on["number"], going_on["pause_after"]) == (1, 4)
    assert world.statuses() == ["stopped", "running", "stopped"]
    assert [(event["number"], event["epoch"]) for event in world.events("promoted")] == [(1, 2)]
    assert [event["result"]["epochs"] for event in world.events("stopped")] == [2, 2]
    assert world.tracker.started.count(going_on["cell"]) == 2, "its run is open again"
    assert {(run, status) for run, status, *_ in world.tracker.ends[3:]} == {
        (f"run-{world.folder(number).name}", "stopped") for number in (0, 2)
    }
    assert world.tracker.ends[-1][3] is not None, "a stopped trial hands its artifacts over"
    tags = [world.tracker.tags[f"run-{world.folder(number).name}"] for number in range(3)]
    assert tags == [{"rung": 2}, {"rung": 2, "promoted": 2}, {"rung": 2}]
    assert world.driver.queue.trials[1].promoted == 2
    assert [(world.folder(number) / "checkpoint.pt").exists() for number in range(3)] == [False, True, False]
    world.pauses(1, 0.1, 0.5, 0.5, 0.6)
    last = world.begin()
    assert last is not None
    assert (last["number"], last["pause_after"]) == (1, None)
    world.leaves(1, "done", *[0.6] * EPOCHS)
    world.driver.ended(1)
    assert world.begin() is None
    assert world.driver.queue.exhausted
    assert world.statuses() == ["stopped", "done", "stopped"]


def test_a_stopped_trial_keeps_the_checkpoint_that_others_use(world: World) -> None:
    for number in range(3):
        world.pauses(number, 0.1, 0.5 - number / 10)
    done = json.loads((world.folder(1) / "result.json").read_text()) | {"status": "done"}
    (world.folder(1) / "result.json").write_text(json.dumps(done))  # by the command `train`
    with FileLock(world.folder(2) / ".lock"):
        world.begin()
    assert world.statuses() == ["running", "stopped", "stopped"]
    assert [(world.folder(number) / "checkpoint.pt").exists() for number in range(3)] == [True, True, True]


def test_a_stopped_trial_keeps_the_checkpoint_that_another_study_goes_on_from(world: World) -> None:
    for number in range(3):
        world.pauses(number, 0.1, 0.5 - number / 10)
    cell = world.driver.queue.trials[1].cell
    world.ledger.append("sweep", name="b", spec={}, trials=3)
    world.ledger.finish(RunResult(cell, "paused", 2, 0.5, 0.5, val_history=[0.1, 0.5]), sweep="b")
    world.begin()
    assert world.statuses() == ["running", "stopped", "stopped"]
    assert [(world.folder(number) / "checkpoint.pt").exists() for number in range(3)] == [True, True, False]


def test_a_trial_that_paused_while_mlflow_was_away_is_tracked_when_it_is_stopped(world: World) -> None:
    for number in range(3):
        world.pauses(number, 0.1, 0.5 - number / 10)
    kept = [json.loads(line) for line in world.workspace.ledger.read_text().splitlines()]
    for line in kept:
        line.get("result", {}).pop("mlflow_run_id", None)
    words = "".join(json.dumps(line) + "\n" for line in kept if line["event"] != "tracked")
    world.workspace.ledger.write_text(words)
    again = World(world.workspace)
    again.begin()
    assert again.statuses() == ["running", "stopped", "stopped"]
    assert [status for _, status, *_ in again.tracker.ends] == ["stopped", "stopped"]


def test_a_promoted_trial_whose_worker_dies_before_it_begins_runs_again(world: World) -> None:
    for number in range(3):
        world.pauses(number, 0.1, 0.5 - number / 10)
    assert (world.begin() or {})["number"] == 0
    with pytest.warns(UserWarning, match="trial 0: the worker died after epoch 2; it goes on"):
        assert isinstance(world.driver.ended(0), Retry)
    assert world.statuses()[0] == "queued"
    assert len(world.events("paused")) == 3, "the pause before is not recorded again"


def test_a_pause_whose_figures_are_damaged_is_made_again(world: World) -> None:
    """Without the figures of the rung, its block could never be decided."""
    world.leaves(0, "paused", 0.1, 0.3)
    rows = (world.folder(0) / "metrics.jsonl").read_text().splitlines()
    (world.folder(0) / "metrics.jsonl").write_text(f"{rows[0]}\nboom\n")
    with (
        pytest.warns(UserWarning, match="trial 0: the worker died after epoch 1; it goes on"),
        pytest.warns(UserWarning, match="1 epochs of it count"),
    ):
        verdict = world.driver.ended(0)
    assert isinstance(verdict, Retry)
    assert world.pauses(0, 0.1, 0.3).status == "paused"


def test_a_run_that_another_study_finished_counts_with_all_its_epochs(world: World) -> None:
    world.leaves(0, "done", *[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    result = world.driver.ended(0)
    assert isinstance(result, RunResult)
    assert (result.status, result.epochs) == ("done", EPOCHS)
    run = f"run-{result.cell}"
    assert world.tracker.epochs[run] == [1, 2, 3, 4, 5, 6]
    assert world.tracker.ends[-1][:2] == (run, "done")


def test_a_trial_that_pauses_late_still_goes_on(world: World) -> None:
    """Its last epoch is known before its pause; the block must not be decided in between."""
    for number in (1, 2):
        world.pauses(number, 0.1, 0.2)
    world.leaves(0, None, 0.1, 0.9)
    world.driver.epoch(0)
    assert world.begin() is None
    world.pauses(0, 0.1, 0.9)
    assert (world.begin() or {})["number"] == 0


def test_a_study_that_is_resumed_leaves_paused_trials_alone(world: World, workspace: Workspace) -> None:
    for number in range(2):
        world.pauses(number, 0.1, 0.5 - number / 10)
    world.driver.interrupted()
    again = World(workspace)
    started = again.begin()
    assert started is not None
    assert (started["number"], started["pause_after"]) == (2, 2)
    assert again.begin() is None
    assert again.statuses() == ["paused", "paused", "running"]
    again.pauses(2, 0.1, 0.2)
    assert (again.begin() or {})["number"] == 0
    again.driver.interrupted()
    third = World(workspace)
    going_on = third.begin()
    assert going_on is not None
    assert (going_on["number"], going_on["pause_after"]) == (0, 4)
    assert third.begin() is None
    assert third.statuses() == ["running", "stopped", "stopped"]
    assert len(third.events("promoted")) == 1
    assert len(third.events("stopped")) == 2


def test_tune_gives_the_slot_of_a_paused_trial_to_another(workspace: Workspace) -> None:
    """The search ends only when every block is decided and what was promoted has ended."""
    world = World(workspace)
    search = QueueSearcher(world.driver, 1, ahead=False)
    order = []
    for step in range(6):
        parameters = search.suggest(f"tune {step}")
        number, pause_after = parameters["number"], parameters["pause_after"]
        assert search.suggest("one more") is None, "there is one slot"
        world.driver.started(number)
        epochs = pause_after or EPOCHS
        world.leaves(number, "done" if pause_after is None else "paused", *[number / 10] * epochs)
        search.on_trial_complete(f"tune {step}")
        order.append((number, epochs))
        if pause_after is None:
            break
    assert order == [(0, 2), (1, 2), (2, 2), (2, 4), (2, EPOCHS)]
    assert search.suggest("at the end") == Searcher.FINISHED
