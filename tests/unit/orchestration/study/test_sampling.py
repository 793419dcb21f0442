"""Tests which spaces a sampler or pruner is refused for, how many trials a grid has, and Optuna's version on record."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from erat.errors import UserError
from orchestration.search.launch import make_sampler
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.registries import SAMPLERS
from orchestration.study.spaces import SearchSpace, parse_space
from orchestration.study.spec import StudySpec

NAME, ETA, WEIGHT, SELECTOR = "defense.name", "defense.eta", "defense.lambda_u", "defense.selector"
RANGE: dict[str, Any] = {"low": 0, "high": 1}
CHOICES: dict[str, Any] = {"choices": ["rebalance", "mixture"]}
CONDITIONAL = {SELECTOR: CHOICES, ETA: RANGE | {"when": {SELECTOR: "rebalance"}}, WEIGHT: RANGE}
BOTH = {"objective": ["val_accuracy", "cost"]}


def space(parameters: dict[str, Any], **settings: Any) -> SearchSpace:
    return parse_space({"name": "mine", "about": "", "parameters": parameters, **settings}, "mine.yaml")


def spec(parameters: dict[str, Any], **settings: Any) -> StudySpec:
    return StudySpec(space(parameters, **settings), "demo", {})


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("parameters", "settings", "words"),
        [
            (
                {ETA: RANGE},
                {"sampler": "cmaes"},
                "sampler cmaes needs at least 2 ranges of numbers, got defense.eta; this space can be searched by "
                "gp, qmc, random, tpe",
            ),
            (
                {SELECTOR: CHOICES},
                {"sampler": "cmaes"},
                "sampler cmaes needs at least 2 ranges of numbers, got none; this space can be searched by "
                "gp, grid, qmc, random, tpe",
            ),
            (
                CONDITIONAL,
                {"sampler": "gp"},
                "sampler gp cannot search a key that only some trials have, got defense.eta (when); "
                "this space can be searched by random, tpe",
            ),
            (
                {ETA: RANGE, WEIGHT: RANGE},
                {"sampler": "cmaes", "pruner": "none", **BOTH},
                "sampler cmaes can optimise 1 objective, got val_accuracy and cost; this space can be searched by "
                "gp, qmc, random, tpe",
            ),
            (
                {SELECTOR: CHOICES, ETA: RANGE},
                {"sampler": "grid"},
                "sampler grid needs choices, whole numbers or a range with step, got the range defense.eta without "
                "step; this space can be searched by gp, qmc, random, tpe",
            ),
            (
                {ETA: RANGE},
                BOTH,
                "pruner must be none where the objective is val_accuracy and cost, got median: "
                "a pruner compares accuracies alone",
            ),
            (
                {ETA: RANGE | {"step": 0.001}, WEIGHT: {"low": 0, "high": 50, "step": 0.1}},
                {"sampler": "grid"},
                "a grid must have at most 100000 trials; the space mine has more",
            ),
            (
                {ETA: RANGE, "train.epochs": {"low": 2, "high": 8}},
                {"pruner": "halving", "rungs": [4]},
                "pruner halving needs trials of as many epochs; this space searches train.epochs",
            ),
            (
                {ETA: RANGE, "train.seed": {"low": 0, "high": 8}},
                {"confirm": {"top": 2, "seeds": 2}},
                "confirm repeats trials with other values of train.seed, which this space searches: use none",
            ),
        ],
        ids=[
            "one-range",
            "no-range",
            "conditional",
            "objectives",
            "grid-range",
            "pruner",
            "large-grid",
            "epochs",
            "seed",
        ],
    )
    def test_in_one_line(self, parameters: dict[str, Any], settings: dict[str, Any], words: str) -> None:
        with pytest.raises(UserError) as caught:
            spec(parameters, **settings)
        assert str(caught.value) == words

    @pytest.mark.parametrize("sampler", ["cmaes", "qmc", "gp"])
    def test_a_condition_that_is_decided_for_the_whole_study_is_none(self, sampler: str) -> None:
        parameters = {ETA: RANGE | {"when": {SELECTOR: "rebalance"}}, WEIGHT: RANGE}
        assert list(spec(parameters, sampler=sampler).space.parameters) == [ETA, WEIGHT]

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"sampler": "cmeas"}, "unknown sampler 'cmeas'.*cmaes"),
            ({"pruner": "halfing"}, "unknown pruner 'halfing'.*halving"),
        ],
    )
    def test_a_name_that_nearly_is_one(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(UserError, match=words):
            space({ETA: RANGE}, **settings)

    @pytest.mark.parametrize(
        ("step", "words"),
        [
            (0.3, r"high must be low plus a multiple of step \(0.3\), for example 0.9, got 1"),
            (2, r"high must be low plus a multiple of step \(2\), for example 2, got 1"),
            (0, "step"),
            (1e-6, "step must make at most 100000 steps of the range, got 1e-06"),
        ],
    )
    def test_a_step_that_does_not_divide_the_range(self, step: float, words: str) -> None:
        with pytest.raises(UserError, match=words):
            space({ETA: RANGE | {"step": step}})

    def test_a_step_on_a_logarithmic_scale(self) -> None:
        with pytest.raises(UserError, match=r"step must not be given where log is true, got 0\.5; choices can be any"):
            space({WEIGHT: {"low": 1, "high": 50, "log": True, "step": 0.5}})

    def test_it_needs_no_optuna(self) -> None:
        code = (
            "import sys; from orchestration.study.spec import StudySpec\n"
            "from orchestration.study.spaces import parse_space\n"
            "content = {'name': 'mine', 'about': '', 'parameters': {'defense.eta': {'low': 0, 'high': 1}}}\n"
            "try: StudySpec(parse_space(content | {'sampler': 'cmaes'}, 'mine.yaml'), 'demo', {})\n"
            "except Exception as error: print(type(error).__name__, 'optuna' in sys.modules)\n"
        )
        root = Path(__file__).parents[4]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout == "UserError False\n"


GRID: dict[str, Any] = {
    SELECTOR: CHOICES,
    ETA: RANGE | {"step": 0.25, "when": {SELECTOR: "rebalance"}},
    "defense.steps": {"type": "int", "low": 1, "high": 9, "step": 4},
}


class TestGridSize:
    def test_all_of_it_is_what_runs_unless_fewer_are_asked_for(self) -> None:
        made = spec(GRID, sampler="grid")
        assert made.most_trials == made.trials(None) == 5 * 3 + 3
        assert made.trials(4) == 4
        with pytest.raises(UserError, match="trials must be at most 18, all of the grid mine, got 19"):
            made.trials(19)

    def test_points_of_the_grid_count_once(self) -> None:
        inside = {SELECTOR: "rebalance", ETA: 0.5, "defense.steps": 5}
        made = spec(GRID, sampler="grid", points=[inside, inside | {ETA: 0.1}])
        assert made.most_trials == 19

    @pytest.mark.parametrize("data_name", ["mnist", "cifar10"])
    def test_it_is_what_the_sampler_proposes(self, data_name: str) -> None:
        inf = {"low": "1/255", "high": "8/255", "step": "1/255", "unit": "linf"}
        points = [{"defense.epsilon_inf": "3/255", ETA: 0.5}, {"defense.epsilon_inf": "12/255", ETA: 0.5}]
        parameters = {"defense.epsilon_inf": inf, ETA: RANGE | {"step": 0.1}}
        content = space(parameters, sampler="grid", points=points)
        made = StudySpec(content, "demo", {"data.name": data_name})
        sampler = make_sampler(made)
        for number, point in enumerate(made.points):
            sampler.given(number, point)
        tried = made.points + [sampler.propose(number, None) for number in range(2, made.trials(None))]
        assert made.most_trials == len({tuple(params.values()) for params in tried}) == 8 * 11 + 1
        for params in tried[2:]:
            assert made.config(params).digest()

    def test_any_other_search_has_as_many_as_asked_for(self) -> None:
        made = spec({ETA: RANGE}, proposals=7)
        assert (made.most_trials, made.trials(None), made.trials(900)) == (None, 7, 900)

    def test_a_space_without_steps_is_recorded_as_before(self) -> None:
        assert space({ETA: RANGE}).model_dump()["parameters"][ETA] == {"low": 0, "high": 1, "log": False, "unit": None}


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_what_can_be_known_ahead_is_what_the_sampler_says(name: str) -> None:
    assert SAMPLERS.abilities(name) == SAMPLERS[name].abilities


class TestOptunaVersion:
    def test_another_one_is_told_of_once_and_the_study_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger, made = Ledger(tmp_path / "ledger.jsonl"), spec({ETA: RANGE})
        with monkeypatch.context() as old:
            old.setattr("orchestration.study.spec.version", lambda package: "4.9.0")
            register(ledger, "mine", made, 3)
        assert ledger.studies["mine"].spec["optuna"] == "4.9.0"
        with pytest.warns(UserWarning, match=r"sweep mine was begun with Optuna 4\.9\.0, and Optuna 5") as said:
            register(ledger, "mine", made, 3)
        assert len(said) == 1
        assert "\n" not in str(said[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            register(ledger, "mine", made, 3)

    def test_it_is_no_part_of_the_identity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = spec({ETA: RANGE})
        before = made.identity()
        monkeypatch.setattr("orchestration.study.spec.version", lambda package: "4.9.0")
        assert spec({ETA: RANGE}).identity() == before
        assert StudySpec.of(made.content()).identity() == before

    def test_a_list_of_runs_has_none(self) -> None:
        assert "optuna" not in StudySpec.listing("list", "", [{"train.seed": 1}], "demo", {}).content()


def test_rungs_that_the_pruner_does_not_use_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"pruner median makes no use of rungs, got \[4\]"):
        spec({ETA: RANGE}, rungs=[4])
