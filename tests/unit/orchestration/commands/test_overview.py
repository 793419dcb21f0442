"""Tests plans and states: the counts are right, and looking at them changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from erat.config import RunConfig, build
from erat.errors import UserError
from orchestration.commands import overview
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from tests.five_trials import propose, result, said, spec
from tests.trials import make_trial


class TestStatus:
    def test_no_sweep_yet_says_how_to_begin(self, workspace: Workspace, console: Console) -> None:
        assert overview.of_all(workspace, console) == []
        assert "python orchestrate.py sweep --space" in said(console)
        assert not workspace.ledger.exists()

    def test_every_sweep_is_counted(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        register(ledger, "b", spec({"train.epochs": 2}), 7)
        first, second = overview.of_all(workspace, console)
        assert first == {
            "name": "a",
            "space": "mine",
            "preset": "demo",
            "trials": 6,
            "done": 1,
            "stopped": 1,
            "running": 0,
            "paused": 0,
            "failed": 1,
            "left": 3,
        }
        assert (second["name"], second["trials"], second["left"]) == ("b", 8, 8)

    def test_one_sweep_trial_by_trial(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        content = overview.of_sweep(workspace, "a", console)
        states = [(run["number"], run["status"], run["epoch"]) for run in content["runs"]]
        assert states == [(0, "done", 4), (1, "failed", 1), (2, "stopped", 2), (3, "queued", 1), (4, "queued", 0)]
        assert {key: content[key] for key in ("trials", "done", "stopped", "failed", "left")} == {
            "trials": 6,
            "done": 1,
            "stopped": 1,
            "failed": 1,
            "left": 3,
        }
        text = said(console)
        assert "retry a" in text
        assert "resume a" in text

    def test_it_says_which_place_is_out_and_why(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        assert "excluded" not in overview.of_sweep(workspace, "a", console)
        ledger.append("place", sweep="a", where="GPU 3 of node 10.0.0.7 (abcdef)", out="3 trials died there")
        ledger.append("place", sweep="a", where="node 10.0.0.8 (fedcba)", out="4 trials died there")
        ledger.append("place", sweep="a", where="node 10.0.0.8 (fedcba)", out=None)
        content = overview.of_sweep(workspace, "a", console)
        assert content["excluded"] == {"GPU 3 of node 10.0.0.7 (abcdef)": "3 trials died there"}
        assert "excluded: GPU 3 of node 10.0.0.7 (abcdef), because 3 trials died there" in said(console)

    def test_a_trial_whose_run_is_held_is_running(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        cell = ledger.studies["a"].proposals[3].cell
        with FileLock(workspace.run_directory(cell) / ".lock"):
            content = overview.of_sweep(workspace, "a", console)
        assert content["runs"][3] == {"number": 3, "cell": cell, "status": "running", "epoch": 1}
        assert (content["running"], content["left"]) == (1, 3)

    def test_a_finished_sweep_offers_nothing_more(self, workspace: Workspace, console: Console) -> None:
        made, ledger = spec(), Ledger(workspace.ledger)
        register(ledger, "a", made, 0)
        cell = propose(ledger, made, 0, {"defense.name": "ce"}, "baseline")
        ledger.finish(result(cell, "done"), sweep="a")
        assert overview.of_sweep(workspace, "a", console)["left"] == 0
        assert "resume" not in said(console)
        assert "retry" not in said(console)

    def test_an_unknown_sweep_names_the_near_ones(self, workspace: Workspace, ledger: Ledger, console: Console) -> None:
        register(ledger, "budgets", spec(), 1)
        with pytest.raises(UserError, match="unknown sweep 'budget': did you mean budgets"):
            overview.of_sweep(workspace, "budget", console)


class TestWords:
    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            ({}, "trusted (clean images and labels)"),
            ({"val.trusted": False}, "plain accuracy misleads"),
            ({"val.trusted": False, "val.objective": "perturbed"}, "corrupted like the rest"),
        ],
    )
    def test_which_validation_it_was_is_said(self, overrides: dict[str, Any], words: str) -> None:
        text = overview.validation_words(build("demo", overrides))
        assert words in text
        assert ("misleads" in text) == (words == "plain accuracy misleads")

    def test_without_a_poison_plain_accuracy_is_no_matter(self) -> None:
        clean = {"val.trusted": False, "corruption.data": "none"}
        assert "misleads" not in overview.validation_words(build("demo", clean))

    def test_a_run_ends_with_its_accuracies_and_its_folder(self, workspace: Workspace, console: Console) -> None:
        config: RunConfig = build("demo")
        figures = {"final_test_accuracy": 0.9512, "best_val_test_accuracy": 0.96}
        row = make_trial(0, config.digest(), status="done", **figures)
        overview.show_run(row, workspace, console)
        assert "0.951" in said(console)
        assert "0.960" in said(console)
        assert str(workspace.run_directory(config.digest())) in said(console).replace("\n", "")
