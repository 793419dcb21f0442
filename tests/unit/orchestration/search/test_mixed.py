"""Tests a search over choices, integers and conditional keys: from the space's file to ledger, resume and page."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from erat.result import RunResult
from orchestration.report.document import write_report
from orchestration.report.notation import header
from orchestration.search.driver import make_queue
from orchestration.search.launch import make_sampler
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.parameters import ten_digits
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec

NAME, SELECTOR, ETA, THRESHOLD = "defense.name", "defense.selector", "defense.eta", "defense.threshold"
STEPS, LR = "defense.steps", "train.lr"
TOTAL = 14
FIGURES = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
CONTENT: dict[str, Any] = {
    "name": "mixed",
    "about": "choices, whole numbers and conditions",
    "parameters": {
        NAME: {"choices": ["erat", "dividemix", "ce"]},
        SELECTOR: {"choices": ["rebalance", "mixture"], "when": {NAME: ["erat", "dividemix"]}},
        ETA: {"low": 0, "high": 1, "when": {SELECTOR: "rebalance"}},
        THRESHOLD: {"low": 0.1, "high": 0.9, "when": {SELECTOR: "mixture"}},
        STEPS: {"type": "int", "low": 1, "high": 9, "step": 2, "when": {NAME: "erat"}},
        LR: {"low": 0.01, "high": 0.3, "log": True},
    },
    "points": [
        {NAME: "ce", LR: 0.1},
        {NAME: "erat", SELECTOR: "rebalance", ETA: 0.1, STEPS: 7, LR: 0.1},
    ],
    "proposals": TOTAL - 2,
    "window": 2,
}


def outcome(cell: str, params: dict[str, Any]) -> RunResult:
    """Return how a trial ends, as a function of its values."""
    reached = {"erat": 0.8, "dividemix": 0.7, "ce": 0.4}[params[NAME]] + 0.1 * params.get(ETA, 0.2) - params[LR]
    content = {"cell": cell, "status": "done", "epochs": 16, "val_history": [reached]} | dict.fromkeys(FIGURES, reached)
    return RunResult.of(content)


def search(workspace: Workspace, total: int) -> list[dict[str, Any]]:
    """Continue the study until it has `total` trials, and return the values of all of them."""
    spec, ledger = StudySpec(parse_space(CONTENT, "mixed.yaml"), "demo", {}), Ledger(workspace.ledger)
    register(ledger, "mixed", spec, total)
    sampler = make_sampler(StudySpec.of(spec.content()))

    def on_proposed(trial: Any) -> None:
        if trial.number not in ledger.studies["mixed"].proposals:
            ledger.append(
                "proposed",
                sweep="mixed",
                number=trial.number,
                params=trial.params,
                source=trial.source,
                cell=trial.cell,
            )

    queue = make_queue(spec, total, "mixed", ledger, sampler, on_proposed=on_proposed)
    while (trial := queue.next()) is not None:
        ended = outcome(trial.cell, trial.params)
        ledger.finish(ended, sweep="mixed")
        queue.record(trial.number, ended)
    return [queue.trials[number].params for number in range(total)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("whole"))
    search(made, TOTAL)
    return made


def values(workspace: Workspace) -> list[dict[str, Any]]:
    proposals = Ledger(workspace.ledger).studies["mixed"].proposals
    return [proposals[number].params for number in range(TOTAL)]


def test_a_trial_has_the_keys_that_its_choices_call_for(workspace: Workspace) -> None:
    tried = values(workspace)
    assert tried[:2] == CONTENT["points"]
    assert {params[NAME] for params in tried} == {"erat", "dividemix", "ce"}, "or nothing here tests conditions"
    assert {params.get(SELECTOR) for params in tried} == {"rebalance", "mixture", None}
    for params in tried:
        assert (SELECTOR in params) == (params[NAME] != "ce")
        assert (ETA in params) == (params.get(SELECTOR) == "rebalance")
        assert (THRESHOLD in params) == (params.get(SELECTOR) == "mixture")
        assert (STEPS in params) == (params[NAME] == "erat")
        assert STEPS not in params or (type(params[STEPS]) is int and params[STEPS] in (1, 3, 5, 7, 9))
        assert params[LR] == ten_digits(params[LR])
        assert 0.01 <= params[LR] <= 0.3


@pytest.mark.parametrize("cut", [1, 2, 5, 8, 13])
def test_a_search_cut_anywhere_goes_on_with_the_same_trials(workspace: Workspace, cut: int, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "workspace")
    search(other, cut)
    assert search(other, TOTAL) == values(workspace)


@pytest.mark.parametrize("form", ["html", "csv", "md", "latex"])
def test_reports_leave_what_a_trial_lacks_empty(workspace: Workspace, form: str, tmp_path: Path) -> None:
    path = write_report(workspace, "mixed", form, str(tmp_path / f"mixed.{form}"))
    text = path.read_text()
    assert "dividemix" in text
    if form == "csv":
        for record in csv.DictReader(text.splitlines()):
            assert (record[ETA] == "") == (record[SELECTOR] != "rebalance")
    if form == "html":
        for words in (
            "Each line is a trial, through its settings",
            *(f"Validation accuracy over {header(key)};" for key in CONTENT["parameters"]),
            "Importance of the settings that every trial has",
        ):
            assert words in text
        drawings = text.split('id="drawings">')[1].split("</script>")[0]
        assert "NaN" not in drawings
        assert "parallel" in json.loads(drawings)["figures"]
