"""Tests the settings of a search: how they are read, and that the window of a study is settled once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erat.errors import UserError
from orchestration.study.entries import as_begun, check_name_is_free, register, reopened
from orchestration.study.ledger import Ledger
from orchestration.study.registries import PRUNERS, SAMPLERS
from orchestration.study.settings import begin_as, setting_values, setting_words, settled, warn_if_narrow, with_settings
from orchestration.study.spaces import Confirmation, SearchSpace, load_space, parse_space
from orchestration.study.spec import StudySpec

ETA = "defense.eta"


def space(**more: Any) -> SearchSpace:
    content = {"name": "mine", "about": "a test", "parameters": {ETA: {"low": 0, "high": 1}}}
    return parse_space(content | more, "mine.yaml")


class TestReading:
    @pytest.mark.parametrize(
        ("given", "key", "value"),
        [
            ({"sampler": "random"}, "sampler", "random"),
            ({"pruner": "none"}, "pruner", "none"),
            ({"window": "48"}, "window", 48),
            ({"window": 48}, "window", 48),
            ({"window": "auto"}, "window", "auto"),
            ({"pruner": "halving", "rungs": "5,10"}, "rungs", [5, 10]),
            ({"pruner": "halving", "rungs": (5, 10)}, "rungs", [5, 10]),
            ({"pruner": "halving", "rungs": "auto"}, "rungs", "auto"),
            ({"confirm": "2x5"}, "confirm", Confirmation(top=2, seeds=5)),
            ({"confirm": "2"}, "confirm", Confirmation(top=2, seeds=3)),
            ({"confirm": {"top": 1}}, "confirm", Confirmation(top=1, seeds=3)),
            ({"confirm": "none"}, "confirm", "none"),
        ],
    )
    def test_words_and_values(self, given: dict[str, Any], key: str, value: Any) -> None:
        assert getattr(with_settings(space(), **given), key) == value

    def test_nothing_given_changes_nothing(self) -> None:
        assert with_settings(space()) == space()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"sampler": "tpr"}, "unknown sampler 'tpr': did you mean tpe?"),
            ({"pruner": "halfing"}, "unknown pruner 'halfing': did you mean halving?"),
            ({"window": 0}, r"window must be a whole number in \[1, 100000\] or auto, got 0"),
            ({"window": "wide"}, "window must be a whole number .* got 'wide'"),
            ({"window": True}, "window must be a whole number"),
            ({"pruner": "halving", "rungs": "9,4"}, r"rungs must be .*ascending epochs.* got \[9, 4\]"),
            ({"pruner": "halving", "rungs": "4,,9"}, "rungs must be epochs .* got '4,,9'"),
            ({"pruner": "halving", "rungs": []}, "rungs must be epochs"),
            ({"rungs": "4"}, "rungs are of the pruner halving, the pruner is median; got '4'"),
            ({"pruner": "none", "rungs": "4"}, "rungs are of the pruner halving, the pruner is none"),
            ({"confirm": "3x1"}, "confirm.seeds: input should be greater than or equal to 2, got 1"),
            ({"confirm": "0x3"}, "confirm.top: .* got 0"),
            ({"confirm": "3x"}, "confirm must be TOPxSEEDS, such as 3x5, none or auto, got '3x'"),
            ({"confirm": {"best": 3}}, "confirm.best"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(UserError, match=said) as caught:
            with_settings(space(), **given)
        assert "\n" not in str(caught.value)

    def test_a_list_of_runs_has_none(self) -> None:
        runs = parse_space({"name": "l", "about": "", "proposals": 0, "baselines": [{"train.seed": 1}]}, "l.yaml")
        with pytest.raises(UserError, match="window can be given for a search only, and l is a list of runs; got 4"):
            with_settings(runs, window=4)

    def test_another_pruner_needs_no_rungs(self) -> None:
        halving = space(pruner="halving", rungs=[3])
        assert with_settings(halving, pruner="median").rungs == "auto"
        assert with_settings(halving, window=3).rungs == [3]

    @pytest.mark.parametrize(
        ("own", "given", "words"),
        [
            ({"grace": 0.3}, {"pruner": "halving"}, r"the pruner halving makes no use of grace, got 0\.3"),
            ({"block": 8}, {}, "the pruner median makes no use of block, got 8"),
            ({"startup": 4}, {"sampler": "qmc"}, "the sampler qmc makes no use of startup, got 4"),
        ],
    )
    def test_those_of_no_use_are_warned_of(self, own: dict[str, Any], given: dict[str, str], words: str) -> None:
        with pytest.warns(UserWarning, match=words) as caught:
            with_settings(space(**own), **given)
        assert len(caught) == 1

    @pytest.mark.parametrize("name", ["budgets", "eta", "joint", "lambda"])
    def test_the_project_s_spaces_have_none_of_no_use(self, name: str, recwarn: pytest.WarningsRecorder) -> None:
        for pruner in PRUNERS.own:
            with_settings(load_space(name), pruner=pruner, sampler="random")
        assert not recwarn.list

    def test_they_are_shown(self) -> None:
        shown = with_settings(space(), pruner="halving", rungs="3,9", window=8, confirm="2x5")
        words = "sampler tpe · pruner halving · window 8 · rungs 3, 9 · confirm top 2 with 5 seeds each"
        assert setting_words(shown) == words
        assert setting_values(shown)["confirm"] == {"top": 2, "seeds": 5}

    def test_every_name_is_a_choice(self) -> None:
        assert {"tpe", "random"} <= SAMPLERS.own
        assert {"median", "halving", "none"} == PRUNERS.own


class TestWindow:
    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Ledger:
        return Ledger(tmp_path / "ledger.jsonl")

    def spec(self, window: Any = "auto") -> StudySpec:
        return StudySpec(with_settings(space(), window=window), "demo", {"train.epochs": 4})

    @pytest.mark.parametrize(("slots", "trials", "window"), [(2, 200, 4), (64, 200, 128), (64, 20, 20), (1, 1, 1)])
    def test_it_is_twice_the_slots_or_all_proposals(self, slots: int, trials: int, window: int) -> None:
        assert begin_as(self.spec(), slots, trials).space.window == window
        assert begin_as(self.spec(7), slots, trials).space.window == 7

    def test_few_proposals_after_many_points_see_most_of_them(self) -> None:
        spec = StudySpec(load_space("budgets"), "demo", {})
        assert begin_as(spec, 64, 10).space.window == 2
        assert begin_as(spec, 64, 200).space.window == 128

    @pytest.mark.parametrize(("name", "startup"), [("budgets", 8), ("eta", 6), ("joint", 10)])
    def test_a_model_is_made_of_enough_results(self, name: str, startup: int) -> None:
        assert begin_as(StudySpec(load_space(name), "demo", {}), 2, 20).space.startup == startup

    def test_the_recorded_one_stays_on_any_cluster(self, ledger: Ledger) -> None:
        register(ledger, "a", begin_as(self.spec(), 4, 20), 20)
        assert ledger.studies["a"].spec["space"]["window"] == 8
        for again in (self.spec(), self.spec(8)):
            check_name_is_free(ledger, "a", again)
            assert begin_as(as_begun(ledger, "a", again), 64, 20).space.window == 8
        assert reopened(ledger, "a", lambda config: config).space.window == 8
        register(ledger, "a", begin_as(as_begun(ledger, "a", self.spec()), 64, 30), 30)
        assert ledger.studies["a"].trials == 30

    def test_another_one_is_refused_with_both_numbers(self, ledger: Ledger) -> None:
        register(ledger, "a", begin_as(self.spec(), 4, 20), 20)
        with pytest.raises(UserError, match="sweep 'a' was begun with window 8, which stays; got 12: leave the window"):
            check_name_is_free(ledger, "a", self.spec(12))

    def test_another_setting_is_another_specification(self, ledger: Ledger) -> None:
        register(ledger, "a", begin_as(self.spec(), 4, 20), 20)
        other = StudySpec(with_settings(space(), pruner="none"), "demo", {"train.epochs": 4})
        with pytest.raises(UserError, match="its search space differs"):
            check_name_is_free(ledger, "a", other)

    def test_a_narrow_one_is_warned_of(self, recwarn: pytest.WarningsRecorder) -> None:
        warn_if_narrow(self.spec(8), 4, {20: 8})
        warn_if_narrow(self.spec(4), 64, {5: 4})
        warn_if_narrow(self.spec(8), 64, {20: 8, 25: 5})
        assert not recwarn.list
        for windows in ({200: 8}, {20: 16, 200: 8}):
            with pytest.warns(UserWarning, match="the window 8, at most 9 proposals run at a time, and 64 would fit"):
                warn_if_narrow(self.spec(8), 64, windows)


class TestWindowsOfExtensions:
    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Ledger:
        return Ledger(tmp_path / "ledger.jsonl")

    def ask(self, ledger: Ledger, slots: int, trials: int, window: Any = "auto", name: str = "budgets") -> Any:
        """Ask for a study as a command does, and return its own window and those of its trials."""
        spec = StudySpec(with_settings(load_space("budgets"), window=window), "demo", {})
        check_name_is_free(ledger, name, spec, trials)
        made, windows = settled(ledger, name, as_begun(ledger, name, spec, trials), slots, trials)
        register(ledger, name, made, trials, windows)
        return made.space.window, windows

    def test_each_is_settled_once_and_what_was_before_stays(self, ledger: Ledger) -> None:
        assert self.ask(ledger, 3, 10) == (2, {10: 2}), "two proposals follow the eight points"
        assert self.ask(ledger, 3, 200) == (2, {10: 2, 200: 6})
        assert self.ask(ledger, 64, 200) == (2, {10: 2, 200: 6}), "another cluster goes on"
        assert self.ask(ledger, 64, 203) == (2, {10: 2, 200: 6, 203: 3})
        record = Ledger(ledger.path).studies["budgets"]
        assert (record.totals, record.windows, record.spec["space"]["window"]) == ([10, 200, 203], {200: 6, 203: 3}, 2)

    def test_one_that_is_given_is_that_of_all_trials(self, ledger: Ledger) -> None:
        assert self.ask(ledger, 3, 20, 5) == (5, {20: 5})
        assert self.ask(ledger, 64, 200, 5) == (5, {20: 5, 200: 5})
        with pytest.raises(UserError, match="begun with window 5, which stays; got 128"):
            self.ask(ledger, 64, 300, 128)
        assert self.ask(ledger, 64, 300) == (5, {20: 5, 200: 5, 300: 100})

    def test_fewer_points_than_the_space_has(self, ledger: Ledger) -> None:
        assert self.ask(ledger, 3, 5) == (1, {5: 1})
        assert self.ask(ledger, 3, 12) == (1, {5: 1, 12: 4})

    def test_a_list_of_runs_has_none(self, ledger: Ledger) -> None:
        spec = StudySpec.listing("list", "", [{"train.seed": 1}], "demo", {})
        made, windows = settled(ledger, "list", spec, 4, 0)
        register(ledger, "list", made, 0, windows)
        assert (made, windows) == (spec, {})

    def test_they_are_in_the_line_of_settings(self) -> None:
        words = setting_words(space(window=2), {10: 2, 200: 6, 203: 6, 300: 64})
        assert "window 2, 6 after 10 trials, 64 after 203 trials · " in words
