"""Tests search spaces: the shipped ones agree with the paper, and a bad file is refused in one line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from erat.config import build
from erat.errors import UserError
from orchestration.study.spaces import FOLDER, Confirmation, SearchSpace, load_space, parse_space, ten_digits
from orchestration.study.spec import StudySpec

INF, TWO = "defense.epsilon_inf", "defense.epsilon_2"
SHIPPED = ("budgets", "eta", "lambda", "joint")
PAIRS = [(1, 0.1), (2, 0.2), (4, 0.3), (6, 0.4), (8, 0.5), (12, 0.6), (16, 0.7), (24, 0.8)]  # Fig. 5: k/255, l_2


def content(**changes: Any) -> dict[str, Any]:
    """Return the YAML of a good space with changes; None drops a key."""
    good = {
        "name": "mine",
        "about": "a test",
        "parameters": {"defense.eta": {"low": 0, "high": 1}},
        "points": [{"defense.eta": 0.1}],
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


def test_a_list_of_runs_searches_nothing() -> None:
    """Its columns are the keys that the runs set, in the order in which they first occur."""
    runs = [{"defense.name": "ce"}, {"defense.name": "erat", "train.seed": 1}]
    space = parse_space(content(parameters=None, points=None, baselines=runs, proposals=0), "here")
    assert space.columns == ["defense.name", "train.seed"]
    assert space.examples("mnist") == []
    assert parse_space(content(), "here").columns == ["defense.eta"]


def refusal(text: str, folder: Path) -> str:
    """Return the error message for a file that holds this text."""
    path = folder / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_space(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


class TestShipped:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_it_is_called_as_its_file_and_every_setting_makes_a_run(self, name: str) -> None:
        space = load_space(name)
        assert space.name == name
        assert space.about
        for preset in ("demo", "paper"):
            data = build(preset).data.name
            for overrides in [*space.baselines, *space.examples(data)]:
                build(preset, overrides)

    @pytest.mark.parametrize("name", SHIPPED)
    @pytest.mark.parametrize("data", ["cifar10", "mnist"])
    def test_its_points_lie_in_its_ranges(self, name: str, data: str) -> None:
        space = load_space(name)
        ranges = space.distributions(data)
        for point in space.scaled_points(data):
            assert point.keys() == ranges.keys()
            assert all(ranges[key].low <= value <= ranges[key].high for key, value in point.items()), point

    def test_budgets_are_the_paper_s_eight_pairs(self) -> None:
        points = load_space("budgets").scaled_points("cifar10")
        assert [(Fraction(p[INF]).limit_denominator(255), p[TWO]) for p in points] == [
            (Fraction(k, 255), l2) for k, l2 in PAIRS
        ]

    def test_budgets_follow_what_is_customary_for_mnist(self) -> None:
        """In place of the reference pair 8/255 and 0.5, MNIST has 0.1 and 1.0."""
        points = load_space("budgets").scaled_points("mnist")
        assert points[4] == {INF: 0.1, TWO: 1.0}
        for point, (k, l2) in zip(points, PAIRS, strict=True):
            assert point[INF] == pytest.approx(0.1 * k / 8, rel=1e-9)
            assert point[TWO] == pytest.approx(1.0 * l2 / 0.5, rel=1e-9)

    def test_ranges_follow_too(self) -> None:
        cifar, mnist = (load_space("budgets").distributions(name) for name in ("cifar10", "mnist"))
        assert (mnist[INF].low, mnist[INF].high) == pytest.approx((0.1 / 8, 0.3))
        assert (cifar[INF].low, cifar[INF].high) == pytest.approx((1 / 255, 24 / 255))
        assert (mnist[TWO].low, mnist[TWO].high) == pytest.approx((0.2, 1.6))
        assert mnist[INF].log
        assert not mnist[TWO].log

    @pytest.mark.parametrize(
        ("name", "key", "values"),
        [
            ("eta", "defense.eta", [0, 0.1, 0.3, 0.5, 0.7, 1]),
            ("lambda", "defense.lambda_u", [0, 5, 10, 15, 25, 30, 50]),
        ],
    )
    def test_what_is_no_budget_is_the_same_everywhere(self, name: str, key: str, values: list[float]) -> None:
        for data in ("cifar10", "mnist"):
            assert [point[key] for point in load_space(name).scaled_points(data)] == values

    def test_joint_starts_from_the_paper_s_default(self) -> None:
        assert load_space("joint").scaled_points("cifar10")[0] == {
            INF: 8 / 255,
            TWO: 0.5,
            "defense.eta": 0.1,
            "defense.lambda_u": 25,
        }


class TestReading:
    def test_fractions_are_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content(parameters={INF: {"low": "1/255", "high": "8/255"}}, points=None)))
        assert load_space(str(path)).parameters[INF].high == 8 / 255

    def test_what_the_ledger_keeps_reads_back_the_same(self) -> None:
        for name in SHIPPED:
            space = load_space(name)
            assert parse_space(space.model_dump(mode="json"), "the ledger") == space

    def test_numbers_keep_ten_digits_so_that_they_can_be_pasted(self) -> None:
        for point in load_space("budgets").scaled_points("mnist"):
            assert all(len(repr(value).replace(".", "").lstrip("0")) <= 10 for value in point.values()), point
        assert ten_digits(1 / 3) == 0.3333333333

    def test_examples_show_what_whole_numbers_would_hide(self) -> None:
        space = SearchSpace.model_validate(content(parameters={"defense.steps": {"low": 1, "high": 10}}, points=[]))
        assert any(not example["defense.steps"].is_integer() for example in space.examples("mnist"))


def settled(preset: str = "paper", overrides: dict[str, Any] | None = None, **changes: Any) -> SearchSpace:
    """Return the space of a study with this preset, whose schedule is 10 epochs of warm-up and 16 of ramp, of 100."""
    return StudySpec(SearchSpace.model_validate(content(**changes)), preset, overrides or {}).space


class TestSettling:
    @pytest.mark.parametrize(
        ("overrides", "rungs"),
        [
            ({}, [33]),
            ({"defense.ramp_epochs": 1}, [11, 33]),
            ({"defense.ramp_epochs": 0, "defense.warmup_epochs": 0, "train.epochs": 27}, [1, 3, 9]),
            ({"train.epochs": 60}, [26]),
            ({"train.epochs": 20}, [11]),
            ({"train.epochs": 20, "defense.warmup_epochs": 1}, [17]),
            ({"train.epochs": 20, "defense.warmup_epochs": 1, "defense.ramp_epochs": 19}, [7]),
            ({"train.epochs": 1, "defense.warmup_epochs": 0, "defense.ramp_epochs": 0}, []),
        ],
    )
    @pytest.mark.filterwarnings("ignore:the rung:UserWarning", "ignore:the pruner:UserWarning")
    def test_rungs_follow_from_the_schedule(self, overrides: dict[str, Any], rungs: list[int]) -> None:
        assert settled(overrides=overrides, pruner="halving").rungs == rungs

    def test_other_pruners_have_none(self) -> None:
        assert settled(pruner="median").rungs == "auto"

    @pytest.mark.filterwarnings("error")
    def test_a_rung_when_warm_up_and_ramp_are_over_is_nothing_to_say_anything_about(self) -> None:
        assert settled(pruner="halving", rungs=[26, 60]).rungs == [26, 60]

    def test_a_rung_before_that_is_warned_of_with_the_epoch_that_would_do(self) -> None:
        said = "the rung 25 says little of the end, because warm-up and ramp last until epoch 26: a rung from 26 to 99"
        with pytest.warns(UserWarning, match=said):
            assert settled(pruner="halving", rungs=[25, 60]).rungs == [25, 60]

    def test_a_ramp_beyond_the_end_is_warned_of(self) -> None:
        said = "the rung 11 says little .* until epoch 26, beyond the last, 20: no rung can say more"
        with pytest.warns(UserWarning, match=said):
            settled(pruner="halving", overrides={"train.epochs": 20})

    def test_a_schedule_without_room_for_a_rung_is_warned_of(self) -> None:
        with pytest.warns(UserWarning, match="halving stops nothing: there is no rung before the last epoch, 1"):
            settled(pruner="halving", overrides={"train.epochs": 1})

    @pytest.mark.parametrize("rungs", [[100], [30, 100], [101]])
    def test_a_rung_that_is_not_before_the_last_epoch_is_refused(self, rungs: list[int]) -> None:
        with pytest.raises(UserError, match=f"^rungs must be below the last epoch, 100, got {rungs[-1]}$"):
            settled(pruner="halving", rungs=rungs)

    def test_the_paper_s_preset_confirms_the_winners_unless_told_otherwise(self) -> None:
        assert settled("paper").confirm == Confirmation(top=3, seeds=3)
        assert settled("demo").confirm == "none"
        assert settled("paper", confirm="none").confirm == "none"
        assert settled("demo", confirm={"top": 2, "seeds": 5}).confirm == Confirmation(top=2, seeds=5)

    @pytest.mark.filterwarnings("ignore:the rung:UserWarning", "ignore:the pruner:UserWarning")
    @pytest.mark.parametrize("epochs", [1, 16, 100])
    def test_what_the_ledger_keeps_of_it_is_the_same_study(self, epochs: int) -> None:
        space = SearchSpace.model_validate(content(pruner="halving", window=7, confirm={"top": 2}))
        spec = StudySpec(space, "paper", {"train.epochs": epochs})
        again = StudySpec.of(json.loads(json.dumps(spec.content())))
        assert again.space == spec.space
        assert again.identity() == spec.identity()

    def test_each_setting_is_part_of_what_a_study_is(self) -> None:
        changes: list[dict[str, Any]] = [
            {},
            {"window": 3},
            {"sampler": "random"},
            {"pruner": "none"},
            {"block": 3},
            {"startup": 3},
            {"confirm": {}},
            {"grace": 0.1},
        ]
        made = [StudySpec(SearchSpace.model_validate(content(**change)), "demo", {}) for change in changes]
        assert len({spec.identity() for spec in made}) == len(changes)

    def test_a_list_of_runs_has_none_of_these_settings(self) -> None:
        runs = StudySpec.listing("few", "a list", [{"defense.name": "ce"}], "paper", {})
        assert runs.content()["space"].keys() == {"name", "about", "parameters", "points", "baselines"} | {
            "proposals",
            "generation",
            "grace",
        }


class TestRefusals:
    """Tests that each error is one line, with what is wrong, where, and what is allowed."""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"paramters": {}}, ["unknown key 'paramters'", "did you mean parameters", "proposals"]),
            ({"parameters": None}, ["parameters must name what is searched", "baselines"]),
            ({"parameters": {}, "baselines": [{"defense.name": "ce"}]}, ["parameters must name", "proposals: 0"]),
            ({"parameters": {}, "proposals": 0}, ["parameters must name", "baselines"]),
            ({"parameters": {"defense.etta": {"low": 0, "high": 1}}}, ["'defense.etta'", "did you mean defense.eta"]),
            ({"parameters": {"defence.eta": {"low": 0, "high": 1}}}, ["'defence.eta'", "did you mean defense.eta"]),
            ({"parameters": {"nothing": {"low": 0, "high": 1}}}, ["'nothing'", "allowed"]),
            ({"parameters": {"defense.eta": {"low": 0, "hi": 1}}}, ["defense.eta.hi"]),
            ({"parameters": {"defense.eta": {"low": 0}}}, ["defense.eta.high", "required"]),
            ({"parameters": {"defense.eta": 0.5}}, ["parameters.defense.eta", "0.5"]),
            ({"parameters": {"defense.eta": {"low": 1, "high": 0}}}, ["low must be below high", "1", "0"]),
            ({"parameters": {"defense.eta": {"low": 1, "high": 1}}}, ["low must be below high"]),
            ({"parameters": {INF: {"low": -0.1, "high": 1}}, "points": None}, [INF, "0 or more", "-0.1"]),
            ({"parameters": {INF: {"low": "-1/255", "high": 1}}, "points": None}, [INF, "0 or more"]),
            ({"parameters": {"defense.eta": {"low": 0, "high": 1, "log": True}}}, ["defense.eta", "above 0"]),
            ({"parameters": {"defense.eta": {"low": 0, "high": ".inf"}}}, ["defense.eta.high", "inf"]),
            ({"parameters": {"defense.eta": {"low": 0, "high": "much"}}}, ["defense.eta.high", "much"]),
            ({"parameters": {INF: {"low": 0, "high": 1, "unit": "l3"}}, "points": None}, ["unit", "l3", "linf"]),
            ({"points": [{}]}, ["a point must give defense.eta"]),
            ({"points": [{"defense.eta": 0.1, "defense.lambda_u": 5}]}, ["a point must give", "defense.lambda_u"]),
            ({"points": [{"defense.lambda_u": 5}]}, ["a point must give defense.eta", "defense.lambda_u"]),
            ({"points": [{"defense.eta": "high"}]}, ["points.0.defense.eta", "high"]),
            ({"points": {"defense.eta": 0.1}}, ["points", "list"]),
            ({"proposals": -1}, ["proposals", "-1"]),
            ({"generation": 2}, ["unknown key 'generation'", "window"]),
            ({"window": 0}, ["window must be auto or a whole number in [1, 100000], got 0"]),
            ({"window": 1.5}, ["window must be auto", "1.5"]),
            ({"window": "all"}, ["window must be auto", "'all'"]),
            ({"window": True}, ["window must be auto", "True"]),
            ({"startup": -1}, ["startup must be auto or a whole number in [0, 100000], got -1"]),
            ({"sampler": "tpf"}, ["unknown sampler 'tpf'", "did you mean tpe", "random"]),
            ({"pruner": "halvin"}, ["unknown pruner 'halvin'", "did you mean halving", "median, none"]),
            ({"rungs": [3, 3]}, ["rungs must be auto or ascending epochs", "[3, 3]"]),
            ({"rungs": [60, 30]}, ["rungs must be auto or ascending epochs", "[60, 30]"]),
            ({"rungs": [0, 30]}, ["rungs must be auto or ascending epochs in [1, 100000]", "[0, 30]"]),
            ({"rungs": [1.5]}, ["rungs must be", "[1.5]"]),
            ({"rungs": 30}, ["rungs must be", "30"]),
            ({"block": 1}, ["block", "2", "1"]),
            ({"confirm": {"top": 3, "seeds": 1}}, ["confirm.seeds", "2", "got 1"]),
            ({"confirm": {"top": 0}}, ["confirm.top", "1", "got 0"]),
            ({"confirm": {"tops": 3}}, ["confirm.tops"]),
            ({"confirm": 3}, ["confirm must be none, auto, or a mapping such as {top: 3, seeds: 3}, got 3"]),
            ({"confirm": False}, ["confirm must be none", "got False"]),
            ({"objective": ["cost"]}, ["objective must be [val_accuracy] or [val_accuracy, cost], got ['cost']"]),
            ({"objective": ["cost", "val_accuracy"]}, ["objective must be [val_accuracy] or [val_accuracy, cost]"]),
            ({"objective": ["test_accuracy"]}, ["objective.0", "'val_accuracy' or 'cost'", "'test_accuracy'"]),
            ({"objective": "val_accuracy"}, ["objective", "list"]),
            ({"grace": 1.5}, ["grace", "1.5"]),
            ({"name": None}, ["name", "required"]),
        ],
    )
    def test_a_bad_setting(self, changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
        said = refusal(yaml.safe_dump(content(**changes)), tmp_path)
        assert said.startswith("FILE: ")
        assert all(word in said for word in words), said

    @pytest.mark.parametrize("text", ["parameters: [", "a: b: c", "\t- x", "name: 'unfinished"])
    def test_broken_yaml(self, text: str, tmp_path: Path) -> None:
        assert refusal(text, tmp_path).startswith("FILE is not valid YAML: ")

    @pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a\n- b\n", "list"), ("just words", "str")])
    def test_yaml_that_is_no_mapping(self, text: str, kind: str, tmp_path: Path) -> None:
        assert refusal(text, tmp_path) == f"FILE must hold a mapping, got {kind}"

    def test_a_file_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_bytes(b"\xff\xfe\x00name")
        with pytest.raises(UserError, match="not valid YAML"):
            load_space(str(path))

    def test_an_unknown_space_names_the_near_ones_and_all(self) -> None:
        with pytest.raises(UserError) as caught:
            load_space("budget")
        said = str(caught.value)
        assert "did you mean budgets?" in said
        assert all(name in said for name in SHIPPED)
        assert "\n" not in said

    @pytest.mark.parametrize("name", ["nowhere/mine.yaml", "mine.yml"])
    def test_a_path_that_does_not_exist(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=f"file {name} does not exist"):
            load_space(name)

    def test_a_name_does_not_lead_out_of_the_folder(self) -> None:
        with pytest.raises(UserError):
            load_space("../pyproject")

    def test_the_folder_is_the_project_s(self) -> None:
        assert {f"{name}.yaml" for name in SHIPPED} <= {file.name for file in FOLDER.iterdir()}
