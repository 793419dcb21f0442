"""Tests how an epoch reaches the driver: in the report of the trial, sealed from everything that chooses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erat.engine.report import EpochReport
from erat.result import RunResult
from orchestration.cluster import execution
from orchestration.run.directory import RunDirectory, stop_request
from orchestration.run.retries import Retries, Retry
from orchestration.search.driver import StudyDriver
from orchestration.search.ends import read_end
from orchestration.search.observations import Observation
from orchestration.search.tune import Progress, QueueScheduler, QueueSearcher
from orchestration.storage.lease import Lease
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial
from orchestration.tracking.tracker import Tracker
from tests.tracked import Untracked

ETA, EPOCHS = "defense.eta", 6
SPACE = {"name": "mine", "about": "a test", "parameters": {ETA: {"low": 0, "high": 1}}, "window": 2}


class FakeSampler:
    """A sampler whose values follow from the numbers, and which keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Observation]] = []

    def given(self, number: int, params: Mapping[str, Any]) -> None: ...

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        return dict(known or {ETA: (number + 1) / 100})

    def tell(self, number: int, observation: Observation) -> None:
        self.told.append((number, replace(observation, cost=None)))


class FakeTracker(Untracked):
    """A tracker that keeps its calls, and what waits for them while it is held."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int, float]] = []
        self.started: list[tuple[str, str | None, bool]] = []
        self.held = False
        self.waiting: list[Callable[[], None]] = []

    def start_run(self, cell: str, config: Mapping[str, Any], **options: Any) -> str:
        self.started.append((cell, options["known"], options["fresh"]))
        return f"run-{cell}"

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        self.epochs.append((run_id.removeprefix("run-"), epoch, row["test_accuracy"]))

    def finish(self, run_id: str, status: str, summary: Mapping[str, Any], *_: Any) -> None: ...

    def then(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)
        if not self.held:
            self.release()

    def release(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class World:
    """A driver and what Tune calls, with fakes of the sampler and the tracker; its trials report as a worker does."""

    def __init__(self, workspace: Workspace, total: int = 3) -> None:
        self.workspace, self.tracker, self.sampler = workspace, FakeTracker(), FakeSampler()
        spec = StudySpec(parse_space(SPACE, "mine.yaml"), "demo", {"train.epochs": EPOCHS})
        self.ledger = Ledger(workspace.ledger)
        register(self.ledger, "a", spec, total)
        self.seen: list[list[int]] = []
        self.driver = StudyDriver(
            "a",
            spec,
            total,
            workspace,
            self.ledger,
            self.tracker,  # type: ignore[arg-type]
            "parent",
            self.sampler,
            view=lambda rows: self.seen.append([row.number for row in rows]),
        )
        self.searcher = QueueSearcher(self.driver, 2, ahead=False)
        self.scheduler = QueueScheduler(self.driver)
        self.progress = Progress(self.driver, self.searcher.held, lambda: "", patience=600)
        self.stopped: list[tuple[int, int]] = []

    def begin(self, name: str) -> Any:
        trial = SimpleNamespace(trial_id=name, config=self.searcher.suggest(name))
        self.progress.on_trial_start(0, [], trial)
        return trial

    def reports(self, trial: Any, *history: EpochReport) -> dict[str, Any]:
        result = execution._report(history)
        self.scheduler.on_trial_result(None, trial, result)
        self.progress.on_trial_result(0, [], trial, result)
        return result

    def directory(self, number: int) -> RunDirectory:
        return RunDirectory(self.workspace, self.driver.queue.trials[number].cell)

    def leaves(self, number: int, status: str, *history: EpochReport) -> None:
        run = self.directory(number)
        run.write_metrics(history)
        row = self.driver.queue.trials[number].so_far
        result = replace(row, status=status, epochs=len(history))
        (run.path / "result.json").write_text(json.dumps(asdict(result)))


def report(epoch: int, val_accuracy: float, test_accuracy: float = 0.125) -> EpochReport:
    numbers = {entry.name: 0.5 for entry in fields(EpochReport) if entry.type in ("float", "float | None")}
    numbers |= {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
    return EpochReport(**numbers | {"epoch": epoch}, labelled_per_class=[1, 2])  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Workspace(tmp_path / "workspace"))


def test_an_epoch_needs_no_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = world.begin("t")

    def read(*_: Any) -> list[Any]:
        raise AssertionError("nothing is read while a trial waits")

    for name in ("read_metrics", "fetch", "read_result"):
        monkeypatch.setattr(RunDirectory, name, read)
    world.reports(trial, report(1, 0.3))
    world.reports(trial, report(1, 0.3), report(2, 0.6))
    world.reports(trial, report(1, 0.3), report(2, 0.6), report(3, 0.5))
    row = world.driver.queue.trials[0]
    assert (row.status, row.so_far.val_history, row.best_val_accuracy) == ("running", [0.3, 0.6, 0.5], 0.6)
    assert row.seconds == 1.5
    assert [epoch for _, epoch, _ in world.tracker.epochs] == [1, 2, 3], "each once"
    assert world.seen[-3:] == [[0]] * 3, "the view is given what changed, not all rows"


def test_an_epoch_that_comes_again_takes_the_place_of_the_first(world: World) -> None:
    trial = world.begin("t")
    world.reports(trial, report(1, 0.3))
    world.reports(trial, report(1, 0.3), report(2, 0.4))
    world.reports(trial, report(1, 0.3), report(2, 0.5))
    assert world.driver.queue.trials[0].so_far.val_history == [0.3, 0.5]
    assert [epoch for _, epoch, _ in world.tracker.epochs] == [1, 2]


def test_with_a_storage_status_finds_the_epochs_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    world = World(Workspace(tmp_path / "workspace").sharing(str(tmp_path / "shared")))
    trial = world.begin("t")
    history = [report(epoch, epoch / 10) for epoch in (1, 2, 3)]
    for epochs in (1, 2, 3):
        world.reports(trial, *history[:epochs])
        assert [row["val_accuracy"] for row in world.directory(0).read_metrics()] == [0.1, 0.2, 0.3][:epochs]
    world.reports(trial, history[0], report(2, 0.7))  # after a restart
    assert [row["val_accuracy"] for row in world.directory(0).read_metrics()] == [0.1, 0.7]


@pytest.mark.parametrize(("status", "counts"), [("failed", False), ("stopped", False), ("done", True)])
def test_a_result_of_a_worker_that_had_lost_its_run_does_not_count(tmp_path: Path, status: str, counts: bool) -> None:
    """It was cut off, its trial went on with another worker, and then its result arrived all the same."""
    world = World(Workspace(tmp_path / "home").sharing(str(tmp_path / "shared")))
    trial = world.begin("t")
    cell, storage = world.directory(0).cell, world.driver.workspace.storage
    assert storage is not None
    workers = [Lease(storage, cell, trial.config["session"]) for _ in range(2)]
    for worker in workers:
        worker.take()
    late = replace(
        world.driver.queue.trials[0].so_far, status=status, epochs=1, val_accuracy=0.5, best_val_accuracy=0.5
    )
    late = replace(late, final_test_accuracy=0.5, best_val_test_accuracy=0.5)
    for worker, is_counted in zip(workers, (counts, True), strict=True):
        content = asdict(late) | {"attempt": worker.attempt}
        storage.write(f"cells/{cell}/result.json", json.dumps(content).encode())
        storage.write(f"cells/{cell}/metrics.jsonl", json.dumps(asdict(report(1, 0.5))).encode())
        ended = read_end(world.directory(0), 0, "stop", None, Retries(), lambda *_: False, trial.config["session"])
        assert isinstance(ended, Retry) != is_counted


def test_epochs_that_were_missed_are_read_from_the_directory(world: World) -> None:
    trial = world.begin("t")
    history = [report(epoch, epoch / 10) for epoch in (1, 2, 3)]
    world.directory(0).write_metrics(history)
    world.reports(trial, *history)
    assert world.driver.queue.trials[0].so_far.val_history == [0.1, 0.2, 0.3]
    assert [epoch for _, epoch, _ in world.tracker.epochs] == [1, 2, 3]


def test_a_run_that_goes_on_continues_its_row(world: World) -> None:
    trial = world.begin("t")
    history = [report(epoch, epoch / 10) for epoch in (1, 2, 3)]
    world.directory(0).write_metrics(history[:2])
    world.progress.on_trial_start(0, [], trial)
    assert world.driver.queue.trials[0].epoch == 2
    world.reports(trial, *history)
    assert world.driver.queue.trials[0].so_far.val_history == [0.1, 0.2, 0.3]


def numbers_of(content: Any) -> set[float]:
    """Return all numbers in a report, at any depth."""
    if isinstance(content, Mapping):
        return set().union(*map(numbers_of, content.values()), set())
    if isinstance(content, list | tuple):
        return set().union(*map(numbers_of, content), set())
    return {float(content)} if isinstance(content, int | float) else set()


def test_the_test_accuracy_is_no_number_of_a_report(world: World) -> None:
    trial = world.begin("t")
    sent = world.reports(trial, report(1, 0.3, test_accuracy=0.876))
    assert sent.keys() == {"val_accuracy", "best_val_accuracy", "epoch", execution.FIGURES}
    assert numbers_of(sent) == {0.3, 1.0}
    assert "0.876" in sent[execution.FIGURES], "it travels, for the driver"
    assert world.tracker.epochs[-1][2] == 0.876


@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_is_chosen_by_the_test_accuracy(tmp_path: Path, sign: int) -> None:
    """Two studies that differ in the test accuracies alone ask, stop and tell the same."""
    decisions = []
    for place, scale in (("one", 0.0), ("other", sign * 0.4)):
        world = World(Workspace(tmp_path / place), total=6)
        stopped: list[tuple[int, int]] = []
        world.driver.stop = lambda number, epoch, stopped=stopped: stopped.append((number, epoch))  # type: ignore[method-assign]
        asked = []
        for number in range(6):
            trial = world.begin(f"t{number}")
            asked.append(trial.config["config"])
            history = [
                report(epoch, (5 - number + epoch / 10) / 10, 0.5 + scale * (number - 2) / 3)
                for epoch in range(1, EPOCHS + 1)
            ]
            for epoch in range(1, EPOCHS + 1):
                world.reports(trial, *history[:epoch])
            world.leaves(number, "done", *history)
            world.searcher.on_trial_complete(trial.trial_id, execution._report(history))
        decisions.append((asked, stopped, world.sampler.told))
    assert decisions[0] == decisions[1]
    assert decisions[0][1], "some trial was stopped"


def test_a_report_without_figures_is_left_to_the_end(world: World) -> None:
    trial = world.begin("t")
    world.progress.on_trial_result(0, [], trial, execution._figures(2, 0.5, 0.5))
    assert world.driver.queue.trials[0].epoch == 0
    world.leaves(0, "done", *(report(epoch, 0.5) for epoch in range(1, EPOCHS + 1)))
    figures = dict.fromkeys(("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy"), 0.5)
    content = {"cell": trial.config["cell"], "status": "done", "epochs": EPOCHS, **figures}
    (world.directory(0).path / "result.json").write_text(json.dumps(content))
    world.searcher.on_trial_complete("t", {})
    assert world.driver.queue.trials[0].status == "done"
    assert [epoch for _, epoch, _ in world.tracker.epochs] == list(range(1, EPOCHS + 1))


def test_an_end_is_written_when_the_tracker_has_it_and_counts_at_once(world: World) -> None:
    """A run that the ledger calls done would never be completed in MLflow, if the driver died before that."""
    trial = world.begin("t")
    history = [report(1, 0.3), report(2, 0.4)]
    world.reports(trial, *history)
    world.driver.stop(0, 2)
    world.leaves(0, "stopped", *history)
    world.tracker.held = True
    with world.ledger.in_background():
        world.searcher.on_trial_complete("t", {})
        world.ledger.flush()
        cell, request = trial.config["cell"], world.directory(0).path / stop_request("a")
        assert world.ledger.outcome(cell, "a").status == "stopped"  # type: ignore[union-attr]
        assert Ledger(world.workspace.ledger).outcome(cell, "a") is None
        assert request.exists(), "a driver that dies now stops the run at the same epoch again"
        world.tracker.release()
        world.ledger.flush()
        assert Ledger(world.workspace.ledger).outcome(cell, "a").val_history == [0.3, 0.4]  # type: ignore[union-attr]
    assert not request.exists()


def test_ids_of_mlflow_stand_in_the_ledger_and_a_later_session_uses_them(world: World, tmp_path: Path) -> None:
    cells = [world.begin(name).config["cell"] for name in "tu"]
    assert world.tracker.started == [(cell, None, True) for cell in cells], "new ones are not searched for"
    assert Ledger(world.workspace.ledger).studies["a"].tracked == {cell: f"run-{cell}" for cell in cells}
    events = [json.loads(line) for line in world.workspace.ledger.read_text().splitlines()]
    world.workspace.ledger.write_text(
        "".join(json.dumps(event) + "\n" for event in events if event.get("mlflow_run_id") != f"run-{cells[1]}")
    )
    later = World(world.workspace)
    for name in "tu":
        later.begin(name)
    assert later.tracker.started == [(cells[0], f"run-{cells[0]}", False), (cells[1], None, False)]


def test_a_driver_at_work_leaves_everything_on_the_disk_and_real_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path / "workspace")
    tracker = Tracker.open(workspace)
    searches: list[Any] = []
    search = tracker._sender.client.search_runs
    monkeypatch.setattr(
        tracker._sender.client, "search_runs", lambda *asked, **more: searches.append(asked) or search(*asked)
    )
    world = World(workspace)
    parent = tracker.start_parent("a", kind="sweep", tags={})
    world.driver.tracker, world.driver.parent = tracker, parent
    history = [report(epoch, epoch / 10) for epoch in range(1, EPOCHS + 1)]
    searches.clear()
    with world.driver.at_work():
        trial = world.begin("t")
        for epoch in range(1, EPOCHS + 1):
            world.reports(trial, *history[:epoch])
        world.leaves(0, "done", *history)
        world.directory(0).artifacts.mkdir(exist_ok=True)
        world.searcher.on_trial_complete("t", {})
        world.begin("u")
        world.driver.interrupted()
    done: Trial = world.driver.queue.trials[0]
    kept = Ledger(workspace.ledger).outcome(done.cell)
    assert isinstance(kept, RunResult)
    assert kept.mlflow_run_id == done.mlflow_run_id
    assert not searches
    runs = {run.data.tags["cell"]: run for run in search([tracker._sender.experiment_id], "tags.source = 'optuna'")}
    assert runs[done.cell].info.run_id == done.mlflow_run_id
    assert (runs[done.cell].info.status, runs[done.cell].data.metrics["val_accuracy"]) == ("FINISHED", 0.6)
    assert runs[world.driver.queue.trials[1].cell].info.status == "KILLED"


def test_threads_that_compute_give_way_to_a_driver_at_work(tmp_path: Path) -> None:
    before, driver = sys.getswitchinterval(), World(Workspace(tmp_path / "workspace")).driver
    driver.tracker.in_background = lambda **_: nullcontext()  # type: ignore[assignment]
    with driver.at_work():
        assert 0 < sys.getswitchinterval() < before / 5
    assert sys.getswitchinterval() == before
