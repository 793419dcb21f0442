"""Tests that MLflow is put right from the ledger and the runs' own files, and that what is right is not touched."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from threading import Event
from typing import Any
from zlib import crc32

import pytest
from rich.console import Console

from erat.errors import UserError
from erat.result import summarise
from orchestration.commands.syncing import sync_and_show
from orchestration.run.directory import RunDirectory
from orchestration.search import launch
from orchestration.search.sync import Synced, sync
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from orchestration.study.status import trials_of
from orchestration.tracking.sender import Sender
from orchestration.tracking.tracker import Tracker
from tests.five_trials import ETA, result, said, spec
from tests.tracked import history, runs

EPOCHS = 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Workspace(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def tracker(workspace: Workspace) -> Tracker:
    return Tracker.open(workspace)


class Study:
    """A study without MLflow: one trial is done, one failed, one was stopped, one interrupted, one has not begun."""

    def __init__(self, workspace: Workspace, tracker: Tracker, name: str) -> None:
        self.workspace, self.tracker, self.name = workspace, tracker, name
        self.ledger, self.spec = Ledger(workspace.ledger), spec({"train.seed": crc32(name.encode())})
        register(self.ledger, name, self.spec, 4)
        self.cells = [self.trial(0, {"defense.name": "ce"}, "baseline", "done", EPOCHS)]
        for number, (state, epochs) in enumerate(
            (("failed", 1), ("stopped", 2), ("interrupted", 3), ("proposed", 0)), 1
        ):
            self.cells.append(self.trial(number, {ETA: number / 10}, "paper", state, epochs))

    def trial(self, number: int, params: dict[str, Any], source: str, state: str, epochs: int) -> str:
        cell = self.spec.config(params).digest()
        event = {"sweep": self.name, "number": number, "params": params, "source": source, "cell": cell}
        self.ledger.append("proposed", **event)
        if state == "proposed":
            return cell
        rows = [
            {"epoch": epoch, "val_accuracy": epoch / 10, "test_accuracy": 0.2, "epoch_seconds": 2.0}
            for epoch in range(1, epochs + 1)
        ]
        run = RunDirectory(self.workspace, cell)
        run.artifacts.mkdir(parents=True)
        (run.artifacts / "environment.json").write_text("{}")
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if state != "interrupted":
            ended = replace(summarise(cell, state, rows), error="boom" if state == "failed" else None)
            self.ledger.finish(ended, sweep=self.name, mlflow_run_id="unsent-of-a-dead-driver")
        return cell

    def sync(self, **options: Any) -> Synced:
        return sync(self.name, self.spec, self.workspace, self.ledger, self.tracker, **options)

    def runs(self) -> dict[str, Any]:
        """Return what MLflow has: cell, or "parent" -> run."""
        found = runs(self.tracker, f"tags.sweep = '{self.name}'")
        by_cell = {run.data.tags.get("cell", "parent"): run for run in found}
        assert len(by_cell) == len(found), "no run is there twice"
        return by_cell

    def check(self) -> None:
        """Assert that MLflow has what the ledger and the directories say."""
        found = self.runs()
        assert set(found) == {"parent", *self.cells[:4]}, "what has not begun has no run"
        states = [
            ("FINISHED", "done", 4),
            ("FAILED", "failed", 1),
            ("FINISHED", "stopped", 2),
            ("KILLED", "interrupted", 3),
        ]
        for cell, (status, tag, epochs) in zip(self.cells, states, strict=False):
            run = found[cell]
            assert (run.info.status, run.data.tags["status"], run.data.tags.get("error")) == (
                status,
                tag,
                "boom" if tag == "failed" else None,
            )
            assert history(self.tracker, run.info.run_id) == [(epoch, epoch / 10) for epoch in range(1, epochs + 1)]
            assert run.data.tags["mlflow.parentRunId"] == found["parent"].info.run_id
            assert run.data.params["train.epochs"] == str(EPOCHS)
            assert self.ledger.studies[self.name].tracked[cell] == run.info.run_id
            artifacts = [item.path for item in self.tracker._sender.client.list_artifacts(run.info.run_id)]
            assert artifacts == (["environment.json"] if tag in ("done", "stopped") else [])
        done = found[self.cells[0]]
        assert done.data.metrics["final_test_accuracy"] == 0.2
        ended = self.ledger.outcome(self.cells[0])
        assert ended is not None and ended.time is not None
        assert done.info.end_time == int(ended.time * 1000)
        assert done.info.start_time == int((ended.time - 2.0 * EPOCHS) * 1000)
        parent = found["parent"]
        assert (parent.info.status, parent.data.tags["status"]) == ("KILLED", "interrupted"), "two trials are left"


@pytest.fixture
def study(workspace: Workspace, tracker: Tracker, request: pytest.FixtureRequest) -> Study:
    return Study(workspace, tracker, request.node.name.replace("[", "-").rstrip("]"))


def test_what_mlflow_lacks_entirely_is_made_and_only_once(study: Study) -> None:
    shown: list[tuple[int, int]] = []
    assert study.sync(show=lambda *numbers: shown.append(numbers)) == Synced(runs=0, made=5, mended=0, epochs=10)
    study.check()
    assert shown == [(number, 5) for number in range(1, 6)]
    ledger, before = (
        study.workspace.ledger.read_bytes(),
        {cell: run.to_dictionary() for cell, run in study.runs().items()},
    )
    assert study.sync() == Synced(runs=5)
    assert {cell: run.to_dictionary() for cell, run in study.runs().items()} == before
    assert study.workspace.ledger.read_bytes() == ledger


def test_whatever_is_wrong_is_put_right(study: Study) -> None:
    study.sync()
    runs, client = study.runs(), study.tracker._sender.client
    done, failed, stopped, interrupted = (runs[cell].info.run_id for cell in study.cells[:4])
    for run in (done, interrupted, runs["parent"].info.run_id):
        client.update_run(run, status="RUNNING")  # as drivers leave it that are killed
    client.set_tag(failed, "status", "running")
    client.delete_tag(failed, "error")
    client.delete_run(stopped)
    assert study.sync() == Synced(runs=4, made=1, mended=4, epochs=2)
    study.check()
    assert study.sync() == Synced(runs=5)
    client.set_tag(done, "dataset", "another")
    client.set_tag(done, "error", "none, really")
    assert study.sync().mended == 1
    study.check()


def test_epochs_that_are_missing_are_added_and_no_other_twice(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    log_epochs = Sender._log_epochs
    with monkeypatch.context() as patch:  # the server refuses one of them
        patch.setattr(
            Sender, "_log_epochs", lambda self, run, epochs: log_epochs(self, run, [e for e in epochs if e[1] != 2])
        )
        study.sync()
    with pytest.raises(AssertionError):
        study.check()
    assert study.sync() == Synced(runs=5, mended=3, epochs=3)
    study.check()
    assert study.sync() == Synced(runs=5)


def test_a_resume_looks_at_what_ended_alone(study: Study) -> None:
    assert study.sync(resuming=True) == Synced(made=3, epochs=7)
    runs = study.runs()
    assert set(runs) == {"parent", *study.cells[:3]}
    assert runs["parent"].info.status == "KILLED", "until the driver begins it again"
    assert study.sync(resuming=True) == Synced(runs=3)


def test_a_study_that_goes_on_does_not_wait_for_ever(study: Study) -> None:
    left = iter([False, False, True])
    assert study.sync(resuming=True, enough=lambda: next(left)) == Synced(made=1, epochs=EPOCHS, whole=False)
    assert set(study.runs()) == {"parent", study.cells[0]}


def test_a_run_of_an_earlier_version_and_one_with_another_name_are_right(study: Study) -> None:
    study.sync()
    runs = study.runs()
    done, stopped = (runs[study.cells[number]].info.run_id for number in (0, 2))
    client = study.tracker._sender.client
    client.set_tag(done, "mlflow.runName", "my favourite")
    completed = StudySpec.completed

    def with_a_new_key(self: Any, trial: Any) -> Any:
        whole = completed(self, trial)
        return replace(whole, config={**whole.config, "train.new": 1})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudySpec, "completed", with_a_new_key)
        assert study.sync(resuming=True) == Synced(runs=4)
    assert "train.new" not in client.get_run(stopped).data.params
    assert client.get_run(done).data.tags["mlflow.runName"] == "my favourite"
    client.set_tag(done, "status", "running")
    assert study.sync(resuming=True) == Synced(runs=4, mended=1)
    assert client.get_run(done).data.tags["mlflow.runName"] == "my favourite"


def test_a_study_that_goes_on_is_put_right_first(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> Tracker:
        return launch._open_tracker(study.name, study.spec, study.workspace, study.ledger, Event())

    monkeypatch.setattr(Tracker, "open", lambda workspace: study.tracker)
    assert opened() is study.tracker
    assert set(study.runs()) == {"parent", *study.cells[:3]}

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(study.tracker._sender.client, "search_runs", away)
    with pytest.warns(UserWarning, match="is left as it is: MLflow's store .* cannot be read: away"):
        assert opened() is study.tracker


def test_the_command_says_what_it_did(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=500)
    monkeypatch.setattr(Tracker, "open", lambda workspace: study.tracker)
    content = sync_and_show(study.name, study.workspace, console)
    numbers = {"runs": 0, "made": 5, "mended": 0, "epochs": 10}
    assert content == {"name": study.name, "tracking_uri": study.tracker.uri, **numbers}
    sync_and_show(study.name, study.workspace, console)
    made, again = said(console).splitlines()
    assert made.startswith("no runs there; 5 made, 0 put right, 10 epochs added: sqlite:")
    assert again.startswith("5 runs looked at, nothing to put right: sqlite:")


def test_a_study_that_is_over_ends_its_own_run(study: Study) -> None:
    for number, cell in enumerate(study.cells[3:], start=3):
        study.ledger.finish(replace(result(cell, "done"), best_val_accuracy=number / 10), sweep=study.name)
    study.workspace.report(study.name).mkdir(parents=True)
    (study.workspace.report(study.name) / "summary.csv").write_text("a")
    study.sync()
    parent = study.runs()["parent"]
    assert (parent.info.status, parent.data.tags["status"]) == ("FAILED", "failed")
    assert (parent.data.tags["best_trial"], parent.data.tags["best_cell"]) == ("4", study.cells[4])
    assert [item.path for item in study.tracker._sender.client.list_artifacts(parent.info.run_id)] == ["summary.csv"]
    assert study.sync() == Synced(runs=6)


def test_what_another_study_trained_is_no_run_of_this_one(study: Study, workspace: Workspace, tracker: Tracker) -> None:
    study.ledger.finish(result(study.cells[4], "done"), sweep="another", mlflow_run_id="elsewhere")
    study.sync()
    study.check()
    rows, _ = trials_of(workspace, study.ledger, study.name, study.spec)
    assert rows[4].mlflow_run_id == "elsewhere"
    assert rows[0].mlflow_run_id == study.runs()[study.cells[0]].info.run_id, "not the one that was never sent"


def test_a_store_that_cannot_be_read_is_one_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(study.tracker._sender.client, "search_runs", away)
    with pytest.raises(UserError, match=r"^MLflow's store sqlite:.* cannot be read: away; try again later$"):
        study.sync()
