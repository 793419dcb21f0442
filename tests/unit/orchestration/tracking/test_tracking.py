"""Tests tracking on a real SQLite store: names, parents and children, repeated calls, endings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from erat.engine.report import EpochReport
from orchestration.storage.workspace import Workspace
from orchestration.tracking.text import EPOCH_METRICS, compare_hint, run_name
from orchestration.tracking.tracker import Ending, Tracker
from tests.tracked import CONFIG, begin, history, runs


def test_child_has_the_tags_and_params_of_the_design(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep, "c0ffee")
    run = tracker._sender.client.get_run(run_id)
    [parent] = runs(tracker, f"tags.sweep = '{sweep}' and tags.role = 'parent'")
    assert run.data.tags == {
        "dataset": "mnist",
        "data_corruption": "uhp",
        "label_noise": "symmetric",
        "noise_rate": "0.6",
        "defense": "erat",
        "backbone": "small",
        "seed": "3",
        "cell": "c0ffee",
        "sweep": sweep,
        "source": "optuna",
        "status": "running",
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.runName": "erat uhp+symmetric60% eps_inf=0.1 eps_2=0.8 eta=0.3 seed=3",
    }
    assert run.data.params == {key: str(value) for key, value in CONFIG.items()} | {
        "data.root": "none",
        "data.flip": "false",
    }
    assert run.info.status == "RUNNING"
    assert (parent.data.tags["kind"], parent.info.run_name) == ("sweep", sweep)
    assert {found.info.run_id for found in runs(tracker, compare_hint(sweep))} == {run_id, parent.info.run_id}


def test_run_names() -> None:
    assert run_name({"defense.name": "ce", "corruption.data": "none"}) == "ce clean seed=0"
    assert run_name({"defense.name": "ce", "corruption.data": "up", "train.seed": 1}) == "ce up seed=1"
    assert run_name({"defense.name": "erat", "defense.epsilon_inf": 8 / 255}) == "erat clean eps_inf=0.03137 seed=0"
    # An ablation must not pass for the whole method, with which it shares all other settings.
    assert run_name({"defense.name": "erat", "defense.adversarial": False}) == "ERAT w/o AT clean seed=0"


def test_odd_names_and_values_survive(tracker: Tracker) -> None:
    long = "x" * 7000
    config = {f"key.{number}": number for number in range(250)} | {
        "a@b(c)|d,e/f": "8/255",
        "empty": "",
        "long": long,
        "unicode": "é ∞\nnext line",
    }
    sweep = "it's a sweep"
    parent = tracker.start_parent(sweep, kind="matrix", tags={"grid": None, "note": long, "what(ever)": 1})
    run_id = tracker.start_run("cell", config, parent=parent, sweep=sweep, source="paper")
    params = tracker._sender.client.get_run(run_id).data.params
    assert len(params) == len(config)
    assert params["a_b_c__d_e_f"] == "8/255"
    assert params["empty"] == ""
    assert params["unicode"] == config["unicode"]
    assert (len(params["long"]), params["long"][-5:]) == (6000, "xx...")
    tags = tracker._sender.client.get_run(parent).data.tags
    assert (tags["grid"], tags["what_ever_"], len(tags["note"])) == ("none", "1", 5000)
    assert {run.info.run_id for run in runs(tracker, compare_hint(sweep))} == {parent, run_id}
    assert tracker.start_parent(sweep, kind="matrix", tags={}) == parent


def test_run_without_a_parent(tracker: Tracker, sweep: str) -> None:
    child = begin(tracker, sweep, "shared-cell")
    alone = tracker.start_run("shared-cell", CONFIG, parent=None, sweep=None, source="train")
    assert alone != child
    assert tracker.start_run("shared-cell", CONFIG, parent=None, sweep=None, source="train") == alone
    assert "sweep" not in tracker._sender.client.get_run(alone).data.tags


# -- Going on ----------------------------------------------------------------------------------------------------------


def test_reopening_makes_no_second_run(tracker: Tracker, workspace: Workspace, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "failed", {}, error="boom")
    later = Tracker.open(workspace)
    # The same run elsewhere: a param cannot change, and a new one is added.
    assert begin(later, sweep, **{"data.root": "/elsewhere", "new.key": 1}) == run_id
    run = later._sender.client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"]) == ("RUNNING", "running")
    assert "error" not in run.data.tags
    assert (run.data.params["data.root"], run.data.params["new.key"]) == ("none", "1")
    assert len(runs(later, compare_hint(sweep))) == 2
    assert begin(later, sweep, "another cell") != run_id


def test_epochs_are_logged_under_the_names_of_the_design(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    row = dict.fromkeys(EPOCH_METRICS, 0.5)
    tracker.log_epoch(run_id, row, 1)
    infinite = {"val_accuracy": float("nan"), "train_loss": float("inf"), "selection_recall": None}
    tracker.log_epoch(run_id, row | infinite, 2)
    assert tracker._sender.client.get_run(run_id).data.metrics == dict.fromkeys(EPOCH_METRICS, 0.5)
    assert history(tracker, run_id, "test_accuracy") == [(1, 0.5), (2, 0.5)]
    for name in infinite:
        assert history(tracker, run_id, name) == [(1, 0.5)]


def test_the_design_names_every_number_of_a_report() -> None:
    numbers = {entry.name for entry in fields(EpochReport) if entry.type in ("float", "float | None")}
    assert numbers == set(EPOCH_METRICS)


def test_every_finite_number_of_an_epoch_is_logged(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    row = {
        "epoch": 1,
        "val_accuracy": 0.5,
        "private_number": 1,
        "labelled_per_class": [1, 2],
        "flag": True,
        "loss_terms": {"ce": 0.25, "of/main": 1.0, "nan": float("nan"), "none": None},
        "numbers": {"lambda_u": 12.5, "inf": float("inf"), "val_accuracy": 0.9, "odd: %": 2.0},
    }
    tracker.log_epoch(run_id, row, 1)
    tracker.log_epoch(run_id, row | {"loss_terms": {}, "numbers": {"lambda_u": 25.0}}, 2)
    logged = {"val_accuracy": 0.5, "private_number": 1, "lambda_u": 25.0, "odd_ _": 2.0}
    assert tracker._sender.client.get_run(run_id).data.metrics == logged | {"loss/ce": 0.25, "loss/of/main": 1.0}
    assert history(tracker, run_id, "lambda_u") == [(1, 12.5), (2, 25.0)]
    assert history(tracker, run_id, "loss/ce") == [(1, 0.25)]


def test_a_name_that_mlflow_would_refuse_costs_no_epoch(tracker: Tracker, sweep: str) -> None:
    """If one metric has a bad name, MLflow refuses all metrics that are sent with it."""
    run_id = begin(tracker, sweep)
    names = ["", ".", "..", "../up", "/", "a//b", "a/../b", "a/./b", "/root", "x" * 300, "y" * 244 + "/", "ä ö-ü.1"]
    row = {"val_accuracy": 0.5, "loss_terms": dict.fromkeys(names, 1.0), "numbers": dict.fromkeys(names, 2.0)}
    tracker.log_epoch(run_id, row, 1)
    metrics = tracker._sender.client.get_run(run_id).data.metrics
    assert history(tracker, run_id) == [(1, 0.5)]
    expected = {"_", "_/up", "_/_", "a/_/b", "_/root", "x" * 250, "y" * 244 + "/_", "ä ö-ü.1"}
    assert metrics.keys() == {"val_accuracy"} | expected | {f"loss/{name}"[:250].rstrip("/") for name in expected}


def test_more_numbers_than_mlflow_takes_at_once(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.log_epoch(run_id, {"val_accuracy": 0.5, "numbers": {f"n{i}": float(i) for i in range(2100)}}, 1)
    metrics = tracker._sender.client.get_run(run_id).data.metrics
    assert len(metrics) == 2101 and metrics["n2099"] == 2099
    assert history(tracker, run_id) == [(1, 0.5)]


def test_replays_add_only_what_is_missing(tracker: Tracker, workspace: Workspace, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    assert history(tracker, run_id) == []
    for epoch in (1, 2, 3):
        tracker.log_epoch(run_id, {"val_accuracy": epoch / 10, "train_loss": 1.0}, epoch)
    assert history(tracker, run_id) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    later = Tracker.open(workspace)
    assert begin(later, sweep) == run_id
    for epoch in range(1, 6):
        later.log_epoch(run_id, {"val_accuracy": epoch / 10}, epoch)
    assert history(later, run_id) == [(epoch, epoch / 10) for epoch in range(1, 6)]


@pytest.mark.parametrize(
    ("status", "in_mlflow"),
    [
        ("done", "FINISHED"),
        ("stopped", "FINISHED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
        ("paused", "SCHEDULED"),
    ],
)
def test_endings(tracker: Tracker, sweep: str, status: Ending, in_mlflow: str) -> None:
    run_id = begin(tracker, sweep)
    summary = {"final_test_accuracy": 0.9, "best_val_test_accuracy": 0.8, "best_val_accuracy": float("nan")}
    tracker.finish(run_id, status, summary, error="head " + "." * 9000 + " tail" if status == "failed" else None)
    run = tracker._sender.client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"]) == (in_mlflow, status)
    assert run.data.metrics == {"final_test_accuracy": 0.9, "best_val_test_accuracy": 0.8}
    assert run.data.tags.get("error", " tail").endswith(" tail")
    assert run.info.end_time is not None


def test_a_run_that_pauses_says_where_and_goes_on_as_the_same_run(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "paused", {}, tags={"rung": 30})
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    again = tracker.start_run(
        "cell", CONFIG, parent=parent, sweep=sweep, source="optuna", tags={"promoted": 30, "status": "not so"}
    )
    assert again == run_id
    run = tracker._sender.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert {key: run.data.tags[key] for key in ("status", "rung", "promoted")} == {
        "status": "running",
        "rung": "30",
        "promoted": "30",
    }


def test_what_is_known_only_later_is_added_to_a_run_that_has_ended(tracker: Tracker, sweep: str) -> None:
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "done", {"final_test_accuracy": 0.9})
    tracker.add(run_id, {"val_accuracy_mean": 0.8, "val_accuracy_std": None, "seeds_done": 3}, {"note": 1})
    run = tracker._sender.client.get_run(run_id)
    assert (run.info.status, run.data.tags["status"], run.data.tags["note"]) == ("FINISHED", "done", "1")
    assert run.data.metrics == {"final_test_accuracy": 0.9, "val_accuracy_mean": 0.8, "seeds_done": 3.0}


def test_a_confirmation_names_its_candidate_and_a_study_its_best_trial(tracker: Tracker, sweep: str) -> None:
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    child = tracker.start_run("c1", CONFIG, parent=parent, sweep=sweep, source="confirm", tags={"confirms": 7})
    assert tracker._sender.client.get_run(child).data.tags["confirms"] == "7"
    tracker.finish_parent(parent, summary={}, ok=True, tags={"best_trial": 7, "best_cell": "c0"})
    tags = tracker._sender.client.get_run(parent).data.tags
    assert (tags["best_trial"], tags["best_cell"], tags["status"]) == ("7", "c0", "done")


def test_artifacts_lie_in_the_workspace(tracker: Tracker, workspace: Workspace, sweep: str, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "tables" / "selection.json").write_text("{}")
    run_id = begin(tracker, sweep)
    tracker.finish(run_id, "done", {"train_seconds": 1.0}, tmp_path)
    assert {item.path for item in tracker._sender.client.list_artifacts(run_id)} == {"config.yaml", "tables"}
    stored = workspace.mlflow_artifacts / run_id / "artifacts"
    assert (stored / "tables" / "selection.json").read_text() == "{}"


@pytest.mark.parametrize(("ok", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_parent_ends(tracker: Tracker, sweep: str, tmp_path: Path, ok: bool, status: str) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    parent = tracker.start_parent(sweep, kind="sweep", tags={})
    tracker.finish_parent(parent, summary={"best_val_accuracy": 0.7}, artifacts=tmp_path, ok=ok)
    run = tracker._sender.client.get_run(parent)
    assert (run.info.status, run.data.metrics) == (status, {"best_val_accuracy": 0.7})
    assert [item.path for item in tracker._sender.client.list_artifacts(parent)] == ["table.csv"]
    assert tracker.start_parent(sweep, kind="sweep", tags={}) == parent
    assert tracker._sender.client.get_run(parent).info.status == "RUNNING"
