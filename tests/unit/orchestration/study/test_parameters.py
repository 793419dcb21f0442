"""Tests integers, choices and conditions of a search space: what may be tried, and one-line errors for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, IntDistribution

from erat.errors import UserError
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import SearchSpace, load_space, parse_space
from orchestration.study.spec import StudySpec

ETA, STEPS, SELECTOR, THRESHOLD = "defense.eta", "defense.steps", "defense.selector", "defense.threshold"
CHOICE = {"choices": ["rebalance", "mixture"]}
MIXED: dict[str, Any] = {
    SELECTOR: CHOICE,
    ETA: {"low": 0, "high": 1, "when": {SELECTOR: "rebalance"}},
    THRESHOLD: {"low": 0.1, "high": 0.9, "when": {SELECTOR: ["mixture"]}},
    STEPS: {"type": "int", "low": 1, "high": 9, "step": 2},
}


def space(parameters: dict[str, Any] = MIXED, **changes: Any) -> SearchSpace:
    return parse_space({"name": "mixed", "about": "a test", "parameters": parameters} | changes, "FILE")


class TestKinds:
    def test_optuna_sees_whole_numbers_and_choices(self) -> None:
        seen = space(MIXED | {"train.batch_size": {"type": "int", "low": 8, "high": 64, "log": True}}).distributions(
            "mnist"
        )
        assert seen[SELECTOR] == CategoricalDistribution(["rebalance", "mixture"])
        assert seen[STEPS] == IntDistribution(1, 9, step=2)
        assert seen["train.batch_size"] == IntDistribution(8, 64, log=True)

    def test_choices_are_what_the_key_makes_of_them(self) -> None:
        made = space({"corruption.epsilon": {"choices": ["8/255", 0, 0.1]}, "data.flip": {"choices": [True, False]}})
        assert made.parameters["corruption.epsilon"].samples(1.0) == [8 / 255, 0.0, 0.1]
        assert made.parameters["data.flip"].samples(1.0) == [True, False]

    def test_examples_try_every_choice_and_every_conditional_key(self) -> None:
        examples = space().examples("mnist")
        assert {example[SELECTOR] for example in examples} == {"rebalance", "mixture"}
        assert {example[STEPS] for example in examples} >= {1, 5, 9}
        assert {example.get(THRESHOLD) for example in examples} >= {0.1, 0.9, None}
        for example in examples:
            assert (ETA in example) == (example[SELECTOR] == "rebalance")
            assert (THRESHOLD in example) == (example[SELECTOR] == "mixture")

    def test_a_range_of_numbers_keeps_the_form_of_before(self) -> None:
        """The names of studies contain a digest of it."""
        kept = space({ETA: {"low": 0, "high": 1, "type": "float"}}).model_dump(mode="json")["parameters"]
        assert kept == {ETA: {"low": 0.0, "high": 1.0, "log": False, "unit": None}}

    def test_it_comes_back_from_the_ledger(self, tmp_path: Path) -> None:
        made = StudySpec(space(points=[{SELECTOR: "mixture", THRESHOLD: 0.5, STEPS: 3}]), "demo", {})
        register(Ledger(tmp_path / "ledger.jsonl"), "a", made, trials=3)
        back = StudySpec.of(Ledger(tmp_path / "ledger.jsonl").studies["a"].spec)
        assert back == made
        assert back.identity() == made.identity()
        assert parse_space(json.loads(json.dumps(made.space.model_dump(mode="json"))), "f") == made.space


class TestConditions:
    def test_a_key_depends_on_a_chain(self) -> None:
        made = space(
            {
                "defense.name": {"choices": ["erat", "ce"]},
                SELECTOR: {"choices": ["rebalance", "mixture"], "when": {"defense.name": "erat"}},
                ETA: {"low": 0, "high": 1, "when": {SELECTOR: "rebalance"}},
            }
        )
        assert made.active(ETA, {"defense.name": "erat", SELECTOR: "rebalance"})
        assert not made.active(ETA, {"defense.name": "erat", SELECTOR: "mixture"})
        assert not made.active(ETA, {"defense.name": "ce"})
        spec = StudySpec(made, "demo", {"defense.lambda_u": 5})  # ce lacks the keys that are searched only for erat
        assert spec.config({"defense.name": "ce"}).defense.name == "ce"

    def test_a_key_that_a_defense_lacks_needs_a_condition(self) -> None:
        searched = {"defense.name": {"choices": ["erat", "ce"]}, ETA: {"low": 0, "high": 1}}
        with pytest.raises(UserError, match=f"searches {ETA}, which ce lacks"):
            StudySpec(space(searched), "demo", {})

    @pytest.mark.parametrize(("preset", "keys"), [("paper", [STEPS, "train.lr"]), ("demo", ["train.lr"])])
    def test_a_fixed_key_decides_for_the_whole_study(self, preset: str, keys: list[str]) -> None:
        content = {
            "parameters": {
                STEPS: {"type": "int", "low": 1, "high": 9, "when": {"data.name": ["cifar10", "cifar100"]}},
                "train.lr": {"low": 0.1, "high": 0.2},
            },
            "points": [{STEPS: 7, "train.lr": 0.1}, {"train.lr": 0.1}, {"train.lr": 0.2}],
        }
        if preset == "paper":
            with pytest.raises(UserError, match=f"a point must give {STEPS}, train.lr; got train.lr"):
                StudySpec(space(**content), preset, {})
            content["points"] = content["points"][:1]
        made = StudySpec(space(**content), preset, {})
        assert list(made.space.parameters) == keys
        assert not any(parameter.when for parameter in made.space.parameters.values())
        if preset == "demo":
            assert made.space.points == [{"train.lr": 0.1}, {"train.lr": 0.2}]

    def test_a_space_of_which_nothing_is_left(self) -> None:
        with pytest.raises(UserError, match=r"searches nothing where data.name=mnist: no condition \(when\) holds"):
            StudySpec(space({ETA: {"low": 0, "high": 1, "when": {"data.name": "cifar10"}}}), "demo", {})

    def test_a_choice_of_the_ledger_that_there_is_no_more_is_passed_over(self, tmp_path: Path) -> None:
        ledger, made = Ledger(tmp_path / "ledger.jsonl"), StudySpec(space(), "demo", {})
        register(ledger, "a", made, trials=3)
        for number, chosen in enumerate(("mixture", "jsd")):
            params = {SELECTOR: chosen, STEPS: 3}
            ledger.append("proposed", sweep="a", number=number, params=params, source="optuna", cell="x")
        with pytest.warns(UserWarning, match="trial 1 of a in the ledger is skipped: defense.selector must be one"):
            assert list(made.proposals(ledger.studies["a"])) == [0]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({STEPS: {"type": "whole", "low": 1, "high": 3}}, f"parameters.{STEPS}.type must be float or int, got 'whole'"),
        ({STEPS: {"type": ["int"], "low": 1, "high": 3}}, f"parameters.{STEPS}.type must be float or int"),
        ({STEPS: {"type": "int", "low": 1.5, "high": 3}}, f"parameters.{STEPS}.low: input should be a valid integer"),
        ({STEPS: {"type": "int", "low": 3, "high": 1}}, "low must be below high, got low 3 and high 1"),
        ({STEPS: {"type": "int", "low": -1, "high": 1}}, "low must be 0 or more, got -1"),
        ({STEPS: {"type": "int", "low": 0, "high": 9, "log": True}}, "low must be above 0 where log is true"),
        ({STEPS: {"type": "int", "low": 1, "high": 9, "log": True, "step": 2}}, "step must be 1 where log is true"),
        ({STEPS: {"type": "int", "low": 1, "high": 10, "step": 2}}, "plus a multiple of step (2), for example 9"),
        ({STEPS: {"type": "int", "low": 1, "high": 10, "step": 0}}, f"parameters.{STEPS}.step: input should be"),
        ({STEPS: {"type": "int", "low": 1, "high": 10, "unit": "l2"}}, f"parameters.{STEPS}.unit: extra"),
        ({SELECTOR: {"choices": ["mixture"]}}, f"parameters.{SELECTOR}.choices: list should have at least 2 items"),
        ({SELECTOR: {"choices": "mixture"}}, f"parameters.{SELECTOR}.choices: input should be a valid list"),
        ({SELECTOR: {"choices": ["mixture", "jsd", "jsd"]}}, "choices must differ, got 'jsd' twice"),
        (
            {SELECTOR: {"choices": ["mixture", "mixtur"]}},
            f"choices: {SELECTOR}: input should be 'rebalance', 'mixture'",
        ),
        ({SELECTOR: {"choices": ["mixture", None]}}, f"choices: {SELECTOR} must be text, a number, true or false"),
        ({SELECTOR: {"choices": ["mixture", "jsd"], "low": 1}}, f"parameters.{SELECTOR}.low: extra inputs"),
        ({"defense.name": {"choices": ["erat", "errat"]}}, "choices: unknown defense 'errat': did you mean erat"),
        ({ETA: {"low": 0, "high": 2}}, "defense.eta"),
        ({ETA: {"low": 0, "high": 1, "when": {}}}, f"parameters.{ETA}.when must map dotted keys to values, got {{}}"),
        ({ETA: {"low": 0, "high": 1, "when": "always"}}, f"parameters.{ETA}.when must map dotted keys to values"),
        ({ETA: {"low": 0, "high": 1, "when": {SELECTOR: []}}}, f"when: {SELECTOR} must have at least one value"),
        (
            {ETA: {"low": 0, "high": 1, "when": {"defense.selectr": "jsd"}}},
            "when: unknown key 'defense.selectr': did you mean",
        ),
        ({ETA: {"low": 0, "high": 1, "when": {SELECTOR: "jds"}}}, f"when: {SELECTOR}: input should be"),
        ({ETA: {"low": 0, "high": 1, "when": {ETA: 0.5}}}, f"{ETA} must stand before {ETA}"),
        ({ETA: MIXED[ETA], SELECTOR: CHOICE}, f"parameters.{ETA}.when: {SELECTOR} must stand before {ETA}"),
        ({SELECTOR: CHOICE, ETA: {"low": 0, "high": 1, "when": {SELECTOR: "jsd"}}}, "one of rebalance, mixture, got"),
        ({STEPS: MIXED[STEPS], ETA: {"low": 0, "high": 1, "when": {STEPS: 4}}}, "in [1, 9] in steps of 2, got 4"),
        ({"train.lr": {"low": 0.1, "high": 1}, ETA: {"low": 0, "high": 1, "when": {"train.lr": 0.5}}}, "have choices"),
    ],
)
def test_a_malformed_parameter_is_refused_in_one_line(parameters: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump({"name": "m", "about": "x", "parameters": parameters}, sort_keys=False))
    with pytest.raises(UserError) as caught:
        StudySpec(load_space(str(path)), "demo", {})
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({SELECTOR: "mixture", STEPS: 3}, f"a point must give {SELECTOR}, {THRESHOLD}, {STEPS}; got"),
        ({SELECTOR: "mixture", THRESHOLD: 0.5, ETA: 0.1, STEPS: 3}, f"a point must give {SELECTOR}, {THRESHOLD}"),
        ({SELECTOR: "jsd", STEPS: 3}, f"points.0.{SELECTOR}: {SELECTOR} must be one of rebalance, mixture, got 'jsd'"),
        ({SELECTOR: "mixture", THRESHOLD: 0.5, STEPS: 3.5}, f"points.0.{STEPS}: it must be a whole number, got 3.5"),
        ({SELECTOR: "mixture", THRESHOLD: 0.5, STEPS: True}, "it must be a whole number, got True"),
        ({SELECTOR: "mixture", THRESHOLD: "much", STEPS: 3}, f"points.0.{THRESHOLD}: input should be a valid number"),
    ],
)
def test_a_point_that_is_none_of_the_space(point: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        space(points=[point])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
