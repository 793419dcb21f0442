"""Tests whole sweeps on a real Ray cluster and MLflow store: they end, resume, extend and survive failures."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from erat.config import load_config
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from tests.e2e.commands import Command, Said
from tests.e2e.sweeps import begun, events, gone, processes_of, table, wait_until, writer
from tests.workers import kill_workers

EPOCHS = 6
# Plain training on clean digits takes a second per trial. In most of its range weight decay spoils the training, so
# that some proposals are stopped early.
BASE = [
    "defense.name=ce",
    "corruption.data=none",
    "corruption.labels=none",
    "data.limit=600",
    f"train.epochs={EPOCHS}",
    "train.batch_size=16",
]
SPACE: dict[str, Any] = {
    "name": "tiny",
    "about": "a learning rate and a weight decay",
    "parameters": {
        "train.lr": {"low": 0.01, "high": 0.2, "log": True},
        "train.weight_decay": {"low": 0, "high": 5},
    },
    "points": [
        {"train.lr": 0.1, "train.weight_decay": 0},
        {"train.lr": 0.05, "train.weight_decay": 0.0005},
    ],
    "proposals": 2,
    "window": 2,
    "grace": 0.5,
    "baselines": [{"train.momentum": 0}],
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that writes the file of a space: the tiny space with changes."""
    return writer(tmp_path_factory.mktemp("space"), SPACE)


# --- a sweep from beginning to end ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(command: Command, space: Callable[..., str]) -> Said:
    """Run the sweep with which others are compared."""
    said = command("sweep", "--space", space(), "--name", "first", *BASE, "--json")
    assert said.code == 0, said.err
    return said


class TestFromBeginningToEnd:
    def test_it_prints_one_object_with_every_trial(self, first: Said, workspace: Workspace) -> None:
        content = first.json
        assert content.keys() == {"name", "tracking_uri", "wall_seconds", "best", "runs"}
        assert (content["name"], content["tracking_uri"]) == ("first", f"sqlite:///{workspace.mlflow_database}")
        lr = [run["config"]["train.lr"] for run in content["runs"]]
        decay = [run["config"]["train.weight_decay"] for run in content["runs"]]
        assert len(content["runs"]) == 5
        assert (lr[:3], decay[:3]) == ([0.1, 0.1, 0.05], [0.0005, 0.0, 0.0005])
        assert all(0.01 <= value <= 0.2 for value in lr)
        assert len(set(lr)) == 4
        assert content["runs"][0]["config"]["train.momentum"] == 0
        assert [run["status"] for run in content["runs"][:3]] == ["done"] * 3
        assert {run["status"] for run in content["runs"][3:]} <= {"done", "stopped"}
        assert "stopped" in {run["status"] for run in content["runs"]}, "or nothing here tests stopping"
        assert all(run["error"] is None and 0 <= run["final_test_accuracy"] <= 1 for run in content["runs"])

    def test_the_best_is_chosen_by_validation_and_can_be_pasted(self, first: Said, workspace: Workspace) -> None:
        best = first.json["best"]
        ledger = Ledger(workspace.ledger)
        reached = {run["cell"]: ledger.outcome(run["cell"], "first") for run in first.json["runs"][1:]}
        done = {cell: o.best_val_accuracy for cell, o in reached.items() if o and o.status == "done"}
        assert done[best["cell"]] == max(done.values())
        assert best["number"] > 0, "no baseline"
        (line,) = [line for line in first.err.splitlines() if "orchestrate.py train" in line]
        assert f"train.lr={best['config']['train.lr']}" in line

    def test_the_ledger_has_every_step(self, first: Said, workspace: Workspace) -> None:
        kinds = [event["event"] for event in events(workspace, "first")]
        assert kinds.count("sweep") == 1
        assert kinds.count("proposed") == 5
        assert kinds.count("done") + kinds.count("stopped") == 5
        proposals = Ledger(workspace.ledger).studies["first"].proposals
        assert [proposals[number].source for number in range(5)] == ["baseline", "paper", "paper", "optuna", "optuna"]
        assert [proposals[number].cell for number in range(5)] == [run["cell"] for run in first.json["runs"]]

    def test_mlflow_has_a_parent_and_a_child_per_trial(self, first: Said, workspace: Workspace) -> None:
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{workspace.mlflow_database}")
        experiment = client.get_experiment_by_name("erat")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.sweep = 'first'")
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = {run.data.tags["cell"]: run for run in runs if run is not parent}
        assert len(children) == 5
        assert parent.info.status == "FINISHED"
        assert {"summary.md", "summary.csv", "spec.json"} <= {
            file.path for file in client.list_artifacts(parent.info.run_id)
        }
        for shown in first.json["runs"]:
            child = children[shown["cell"]]
            assert child.info.run_id == shown["mlflow_run_id"]
            assert child.info.status == "FINISHED"
            tags = child.data.tags
            assert tags["mlflow.parentRunId"] == parent.info.run_id
            assert [tags[key] for key in ("dataset", "data_corruption", "label_noise", "defense", "backbone")] == [
                "mnist",
                "none",
                "none",
                "ce",
                "small",
            ]
            assert (tags["noise_rate"], tags["seed"], tags["status"]) == ("0.0", "0", shown["status"])
            assert float(child.data.params["train.lr"]) == shown["config"]["train.lr"]
            assert child.data.params.keys() == shown["config"].keys()
            assert child.data.metrics["final_test_accuracy"] == shown["final_test_accuracy"]
            assert child.data.metrics["best_val_test_accuracy"] == shown["best_val_test_accuracy"]
            for name in ("test_accuracy", "val_accuracy", "train_loss", "epoch_seconds", "images_per_second"):
                steps = [metric.step for metric in client.get_metric_history(child.info.run_id, name)]
                assert sorted(steps) == list(range(1, len(steps) + 1)), name
                assert len(steps) == EPOCHS or shown["status"] == "stopped"
            files = {file.path for file in client.list_artifacts(child.info.run_id)}
            assert {"config.yaml", "environment.json", "selection.json", "confusion.json", "model.pt"} <= files

    def test_stopping_is_seen_in_the_epochs(self, first: Said, workspace: Workspace) -> None:
        for run in first.json["runs"]:
            epochs = len(RunDirectory(workspace, run["cell"]).read_metrics())
            assert epochs == EPOCHS if run["status"] == "done" else EPOCHS // 2 <= epochs < EPOCHS

    def test_the_report_is_written_and_named(self, first: Said, workspace: Workspace) -> None:
        folder = workspace.report("first")
        names = {file.name for file in folder.iterdir()}
        assert {"summary.md", "summary.csv", "spec.json"} <= names
        assert any(name.endswith(".png") for name in names)
        assert str(folder / "summary.md") in first.err
        assert "preset demo" in first.err
        assert "trusted (clean images and labels)" in first.err
        assert "Traceback" not in first.err

    def test_status_shows_it(self, first: Said, command: Command) -> None:
        content = command("status", "first", "--json").json
        assert (content["trials"], content["left"], content["failed"]) == (5, 0, 0)
        assert [run["status"] for run in content["runs"]] == [run["status"] for run in first.json["runs"]]

    def test_the_same_command_again_trains_nothing(
        self, first: Said, command: Command, space: Callable[..., str], workspace: Workspace
    ) -> None:
        before = workspace.ledger.read_bytes()
        touched = {file: file.stat().st_mtime_ns for file in workspace.root.glob("cells/*/checkpoint.pt")}
        again = command("sweep", "--space", space(), "--name", "first", *BASE, "--json")
        assert again.code == 0, again.err
        assert again.json["runs"] == first.json["runs"]
        assert again.json["best"] == first.json["best"]
        assert workspace.ledger.read_bytes() == before
        assert {file: file.stat().st_mtime_ns for file in touched} == touched
        assert "5/5 trials" in again.err

    def test_what_the_ledger_missed_is_read_from_the_runs(
        self, first: Said, command: Command, workspace: Workspace
    ) -> None:
        """For every trial the driver was killed between the end of the trial and its own entry in the ledger."""
        kept = [
            line
            for line in workspace.ledger.read_text().splitlines()
            if json.loads(line)["event"] in ("sweep", "proposed")
        ]
        workspace.ledger.write_text("".join(line + "\n" for line in kept))
        again = command("resume", "first", "--json")
        assert again.code == 0, again.err
        assert table(again.json) == table(first.json)
        took = [run["train_seconds"] for run in again.json["runs"]]
        assert took == pytest.approx([run["train_seconds"] for run in first.json["runs"]]), "nothing was trained anew"

    def test_more_trials_extend_it(self, first: Said, command: Command, space: Callable[..., str]) -> None:
        words = ["sweep", "--space", space(), "--name", "first", "--trials", "6", *BASE, "--json"]
        said = command(*words)
        assert said.code == 0, said.err
        assert len(said.json["runs"]) == 7
        assert table(said.json)[:5] == table(first.json)
        assert len({run["cell"] for run in said.json["runs"]}) == 7


# --- failures ---------------------------------------------------------------------------------------------------------


class TestFailures:
    @pytest.mark.slow
    def test_a_trial_that_bursts_does_not_stop_the_sweep_and_is_retried_alone(
        self, command: Command, space: Callable[..., str], workspace: Workspace
    ) -> None:
        bursting = space(
            parameters={"train.lr": {"low": 0.01, "high": 1e6, "log": True}},
            points=[{"train.lr": 1e6}, {"train.lr": 0.05}],
            proposals=0,
            baselines=[],
        )
        words = ["sweep", "--space", bursting, "--name", "bursting", *BASE, "--json"]
        said = command(*words)
        assert said.code == 1
        failed, good = said.json["runs"]
        assert (failed["status"], good["status"]) == ("failed", "done")
        assert "the loss became" in failed["error"]
        assert said.json["best"]["cell"] == good["cell"]
        assert "trial 0 failed:" in said.err
        assert said.err.splitlines()[-1].endswith("python orchestrate.py retry bursting")
        assert "Traceback" not in said.err, "the end of it is enough"

        again = command(*words)
        assert (again.code, table(again.json)) == (1, table(said.json))
        kinds = [event["event"] for event in events(workspace, "bursting")]
        assert kinds.count("failed") == 1, "the same command leaves failures as they are"

        untouched = (workspace.run_directory(good["cell"]) / "result.json").stat().st_mtime_ns
        retried = command("retry", "bursting", "--json")
        assert (retried.code, table(retried.json)) == (1, table(said.json)), "it bursts every time"
        new = events(workspace, "bursting")[len(kinds) :]
        assert [(event["event"], event["cell"]) for event in new] == [
            ("retry", failed["cell"]),
            ("failed", failed["cell"]),
        ]
        assert (workspace.run_directory(good["cell"]) / "result.json").stat().st_mtime_ns == untouched

    @pytest.mark.slow
    def test_a_trial_whose_worker_is_killed_goes_on_to_the_same_result(
        self, command: Command, space: Callable[..., str], cluster: Cluster, workspace: Workspace, tmp_path: Path
    ) -> None:
        words = ["sweep", "--space", space(proposals=0, baselines=[]), "--name", "killed", *BASE, "train.seed=5"]
        words[words.index(f"train.epochs={EPOCHS}")] = "train.epochs=30"
        killer = threading.Thread(target=kill_after_an_epoch, args=(cluster, workspace, "killed"))
        killer.start()
        with pytest.warns(UserWarning, match=r"the worker died after epoch \d+; it goes on"):
            said = command(*words, "--json")
        killer.join()
        assert said.code == 0, said.err
        assert [run["status"] for run in said.json["runs"]] == ["done", "done"]
        for run in said.json["runs"]:
            config = load_config(workspace.run_directory(run["cell"]) / "config.json")
            undisturbed = execute_run(config, Workspace(tmp_path / "alone"))
            assert undisturbed.final_test_accuracy == run["final_test_accuracy"]
            ended = Ledger(workspace.ledger).outcome(run["cell"])
            assert ended is not None and ended.val_history == undisturbed.val_history


def kill_after_an_epoch(cluster: Cluster, workspace: Workspace, sweep: str) -> None:
    """Kill the cluster's trial workers once the sweep's first trial has trained for an epoch."""
    wait_for_an_epoch(workspace, sweep)
    kill_workers(cluster)


def wait_for_an_epoch(workspace: Workspace, sweep: str, ended: int = 0) -> None:
    """Wait until a trial is under way, after at least this many have ended."""

    def under_way() -> bool:
        ledger = Ledger(workspace.ledger)
        runs = [trial.cell for trial in ledger.studies[sweep].proposals.values()] if sweep in ledger.studies else []
        left = [run for run in runs if ledger.outcome(run, sweep) is None]
        return len(runs) - len(left) >= ended and any(RunDirectory(workspace, run).read_metrics() for run in left)

    wait_until(under_way, f"no trial of {sweep} came under way")


# --- interruptions, with a Ray that the command starts ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, None], ids=str)
def test_a_sweep_that_is_cut_short_ends_as_if_it_had_not_been(
    sign: signal.Signals | None, first: Said, command: Command, space: Callable[..., str], own_workspace: Workspace
) -> None:
    words = ("sweep", "--space", space(), "--name", "cut", *BASE)
    process = begun(own_workspace, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_an_epoch(own_workspace, "cut", ended=2)
    if sign is None:
        asked = command("cancel", "cut", at=own_workspace)
        assert asked.code == 0, asked.err
    else:
        process.send_signal(sign)
    _, err = process.communicate(timeout=300)
    if sign is not signal.SIGKILL:
        assert process.returncode == 130
        assert err.splitlines()[-1].endswith("python orchestrate.py resume cut")
        assert "Traceback" not in err
        assert gone(own_workspace, 120), processes_of(own_workspace)
    else:
        assert process.returncode == -signal.SIGKILL
        gone(own_workspace, 120)  # otherwise the resumed sweep waits for the runs that they hold
    ended = [event for event in events(own_workspace, "cut") if event["event"] in ("done", "stopped", "failed")]
    assert 2 <= len(ended) < 5
    assert "failed" not in {event["event"] for event in ended}
    said = command("resume", "cut", "--json", at=own_workspace)
    assert said.code == 0, said.err
    assert table(said.json) == table(first.json)
    assert len([e for e in events(own_workspace, "cut") if e["event"] in ("done", "stopped")]) == 5, "each ended once"


# --- data-parallel trials ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_data_parallel_trial_is_stopped_early_and_the_sweep_ends(
    command: Command, space: Callable[..., str], workspace: Workspace
) -> None:
    """Two workers use gloo through Ray Train; were a trial killed, not asked to stop, the next would wait for ever."""
    decaying = space(
        parameters={"train.weight_decay": {"low": 0, "high": 5}},
        points=[{"train.weight_decay": 0}, {"train.weight_decay": 0.0001}],
        proposals=1,
        window=1,  # the proposal is compared with the first point
        baselines=[],
    )
    said = command("sweep", "--space", decaying, "--name", "parallel", *BASE, "train.workers=2", "--json")
    assert said.code == 0, said.err
    point, other, proposal = said.json["runs"]
    assert (point["status"], other["status"], proposal["status"]) == ("done", "done", "stopped")
    assert point["config"]["train.workers"] == 2
    outcome = Ledger(workspace.ledger).outcome(proposal["cell"], "parallel")
    assert outcome is not None
    assert outcome.epochs == EPOCHS // 2, "where it was decided, however far the workers were"
    assert len(RunDirectory(workspace, point["cell"]).read_metrics()) == EPOCHS


# --- choices, whole numbers and conditions ---------------------------------------------------------------------------

MIXED = {
    "name": "mixed",
    "about": "a schedule, what belongs to one of them, and a batch size",
    "parameters": {
        "train.schedule": {"choices": ["step", "cosine"]},
        "train.gamma": {"low": 0.1, "high": 0.9, "when": {"train.schedule": "step"}},
        "train.batch_size": {"type": "int", "low": 16, "high": 48, "step": 16},
    },
    "points": [{"train.schedule": "cosine", "train.batch_size": 32}],
    "proposals": 5,
}


@pytest.mark.slow
def test_a_search_over_choices_and_conditions(command: Command, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(MIXED, sort_keys=False))
    base = [word for word in BASE if not word.startswith(("train.batch_size", "train.epochs"))]
    words = ["sweep", "--space", str(path), "--name", "mixed", *base, "train.epochs=2", "train.milestones=1", "--json"]
    first = command(*words, "--trials", "3")
    assert first.code == 0, first.err
    whole = command(*words, "--trials", "6")
    assert whole.code == 0, whole.err
    assert whole.json["runs"][:3] == first.json["runs"]
    proposals = [Ledger(workspace.ledger).studies["mixed"].proposals[number] for number in range(6)]
    assert {proposal.params["train.schedule"] for proposal in proposals} == {"step", "cosine"}
    for proposal, run in zip(proposals, whole.json["runs"], strict=True):
        assert ("train.gamma" in proposal.params) == (proposal.params["train.schedule"] == "step")
        assert {key: run["config"][key] for key in proposal.params} == proposal.params
        assert run["config"]["train.batch_size"] in (16, 32, 48)
        assert run["status"] in ("done", "stopped")
    table = (workspace.report("mixed") / "summary.csv").read_text()
    (line,) = [line for line in table.splitlines() if ",paper," in line]
    assert ",cosine,,32," in line
