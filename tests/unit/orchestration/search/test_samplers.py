"""Tests the samplers: what is proposed, what Optuna's study holds, and that what is told again replaces the first."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from orchestration.search.observations import Observation
from orchestration.search.samplers import CMAES, GP, QMC, TPE, OptunaSampler, Random
from orchestration.study.parameters import ten_digits

INF, ETA = "defense.epsilon_inf", "defense.eta"
RANGES: dict[str, BaseDistribution] = {
    INF: FloatDistribution(0.0125, 0.3, log=True),
    ETA: FloatDistribution(0.0, 1.0),
}
POINTS = [{INF: 0.1, ETA: 0.2}, {INF: 0.2, ETA: 0.9}, {INF: 0.05, ETA: 0.5}]
STEPPED: dict[str, BaseDistribution] = {
    "a": FloatDistribution(0.0, 0.9, step=0.3),
    "b": IntDistribution(2, 6, step=2),
    "c": CategoricalDistribution(["x", "y"]),
}
WINDOW = 2


def outcome(params: Mapping[str, float], number: int) -> Observation:
    """Return how a trial ends, as a function of its values: most are complete, some pruned, some failed."""
    reached = 1 - (params[ETA] - 0.4) ** 2 - abs(math.log(params[INF] / 0.1)) / 5
    if number % 7 == 6:
        return Observation("failed", 1)
    if number > 2 and reached < 0.9:
        return Observation("pruned", 2, 0.8 * reached)
    return Observation("complete", 3, reached, 1.5)


def search(made: Any, total: int, known: Sequence[Mapping[str, float]] = (), window: int = WINDOW) -> list[Any]:
    """Return the values of all trials of a search: the points, then the proposals, of which the first are `known`."""
    tried: list[Any] = []
    for number, point in enumerate(POINTS):
        made.given(number, point)
        tried.append(point)
    told = 0
    while len(tried) < total:
        number = len(tried)
        while told < number - window:
            made.tell(told, outcome(tried[told], told))
            told += 1
        tried.append(made.propose(number, known[number] if number < len(known) else None))
    return tried


def tpe(seed: int = 0) -> TPE:
    return TPE(RANGES, seed=seed, startup=3)


class TestProposals:
    def test_the_same_seed_and_results_give_the_same_proposals(self) -> None:
        assert search(tpe(), 13) == search(tpe(), 13)

    def test_another_seed_gives_others(self) -> None:
        one, other = search(tpe(0), 9), search(tpe(1), 9)
        assert all(a != b for a, b in zip(one[3:], other[3:], strict=True))

    def test_other_results_give_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = search(tpe(), 9)
        monkeypatch.setitem(globals(), "outcome", lambda params, number: Observation("complete", 1, params[ETA]))
        assert search(tpe(), 9)[3:] != one[3:]

    @pytest.mark.parametrize("known", range(4, 17))
    def test_a_search_cut_anywhere_goes_on_with_the_same_proposals(self, known: int) -> None:
        """The values agree to the last digit: another eleventh digit would make this run and those after it others."""
        whole = search(tpe(), 17)
        assert search(tpe(), 17, whole[:known]) == whole

    def test_proposals_of_one_window_differ(self) -> None:
        tried = search(tpe(), 24, window=20)
        assert len({tuple(params.values()) for params in tried}) == 24

    @pytest.mark.parametrize("kind", [TPE, CMAES, QMC, Random])
    def test_proposals_lie_in_their_ranges_with_ten_digits(self, kind: type[OptunaSampler]) -> None:
        for params in search(kind(RANGES, seed=0, startup=3), 40)[3:]:
            assert 0.0125 <= params[INF] <= 0.3
            assert 0 <= params[ETA] <= 1
            assert all(value == ten_digits(value) for value in params.values())

    @pytest.mark.parametrize("kind", [TPE, GP])
    def test_as_many_as_the_startup_are_random(self, kind: type[OptunaSampler]) -> None:
        """Trial n sees n - 2 results, two of the first seven of which failed or were pruned."""
        drawn = Random(RANGES, seed=0, startup=0)
        made = kind(RANGES, seed=0, startup=4)
        tried = [made.propose(number, None) for number in range(4)]
        assert tried == [drawn.propose(number, None) for number in range(4)]
        for number in range(4):
            made.tell(number, Observation("complete", 3, 0.1 * number))
        assert made.propose(4, None) != drawn.propose(4, None)

    def test_after_failures_alone_proposals_go_on(self) -> None:
        made = tpe()
        for number, point in enumerate(POINTS):
            made.given(number, point)
            made.tell(number, Observation("failed"))
        assert made.propose(3, None).keys() == RANGES.keys()

    def test_a_point_outside_the_range_counts_as_the_nearest_value(self) -> None:
        made = tpe()
        made.given(0, {INF: 0.9, ETA: 0.5})
        made.tell(0, Observation("pruned", 1, 0.2))
        made.tell(0, Observation("complete", 3, 0.9))
        assert made.propose(1, None).keys() == RANGES.keys()
        assert made._study.trials[0].params == {INF: 0.3, ETA: 0.5}

    @pytest.mark.parametrize("kind", [TPE, Random])
    def test_nothing_is_warned_of(self, kind: type[OptunaSampler]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            search(kind(RANGES, seed=0, startup=3), 8)


class TestWhatTheStudyHolds:
    @pytest.mark.parametrize("known", [0, 12])
    def test_the_values_of_the_ledger(self, known: int) -> None:
        whole = search(tpe(), 12)
        made = tpe()
        search(made, 12, whole[:known])
        assert [trial.params for trial in made._study.trials] == whole

    @pytest.mark.parametrize("kind", [TPE, CMAES, QMC, Random])
    def test_steps_and_choices_too(self, kind: type[OptunaSampler]) -> None:
        made = kind(STEPPED, seed=0, startup=3)
        tried = [made.propose(number, None) for number in range(8)]
        for params, trial in zip(tried, made._study.trials, strict=True):
            assert params["a"] in (0.0, 0.3, 0.6, 0.9)
            assert trial.params["a"] == pytest.approx(params["a"], abs=1e-9)
            assert (params["b"], params["c"]) == (trial.params["b"], trial.params["c"])
            assert params["b"] in (2, 4, 6)

    def told(self, observation: Observation, kind: type[OptunaSampler] = TPE) -> Any:
        made = kind(RANGES, seed=0, startup=3)
        made.given(0, POINTS[0])
        made.tell(0, observation)
        return made._study.trials[0]

    def test_complete(self) -> None:
        trial = self.told(Observation("complete", 2, 0.75))
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.75)

    def test_pruned_with_the_epochs_that_it_came_to(self) -> None:
        trial = self.told(Observation("pruned", 3, 0.4))
        assert trial.state is TrialState.PRUNED
        assert trial.intermediate_values == {3: 0.4}

    @pytest.mark.parametrize("kind", [GP, CMAES])
    def test_pruned_is_complete_to_those_that_would_pass_it_over(self, kind: type[OptunaSampler]) -> None:
        trial = self.told(Observation("pruned", 3, 0.4), kind)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)

    def test_failed(self) -> None:
        assert self.told(Observation("failed", 3)).state is TrialState.FAIL

    def test_two_objectives(self) -> None:
        made = TPE(RANGES, seed=0, startup=3, objective=["val_accuracy", "cost"])
        made.given(0, POINTS[0])
        made.tell(0, Observation("complete", 3, 0.75, 1.5))
        assert made._study.trials[0].values == [0.75, 1.5]
        assert [each.name for each in made._study.directions] == ["MAXIMIZE", "MINIMIZE"]


class TestToldAgain:
    """Tests halving's case: a trial is first told as it stood at a rung, and later as it ended."""

    def test_it_is_as_if_the_first_had_not_been(self) -> None:
        twice, once = tpe(), tpe()
        for made in (twice, once):
            for number, point in enumerate(POINTS):
                made.given(number, point)
            first = [made.propose(number, None) for number in (3, 4)]
            if made is twice:
                for number in range(3):
                    made.tell(number, Observation("pruned", 1, 0.5))
                twice.propose(5, first[0])
            else:
                once.propose(5, first[0])
            for number in range(3):
                made.tell(number, outcome(POINTS[number], number))
        assert twice.propose(6, None) == once.propose(6, None)
        assert [trial.state for trial in twice._study.trials] == [trial.state for trial in once._study.trials]

    @pytest.mark.parametrize("kind", [TPE, GP, CMAES])
    def test_running_trials_stay_running_and_can_be_told(self, kind: type[OptunaSampler]) -> None:
        made = kind(RANGES, seed=0, startup=3)
        tried = search(made, 6)
        made.tell(0, Observation("pruned", 1, 0.5))
        made.tell(0, Observation("complete", 3, 0.8))
        tried.append(made.propose(6, None))
        assert [trial.params for trial in made._study.trials] == tried
        states = [trial.state for trial in made._study.trials]
        assert states == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING] * 4
        made.tell(5, Observation("pruned", 2, 0.4))
        made.tell(5, Observation("complete", 3, 0.6))
        made.tell(6, Observation("failed"))
        made.propose(7, None)
        assert made._study.trials[5].value == 0.6
        assert made._study.trials[6].state is TrialState.FAIL

    def test_the_study_is_made_anew_only_when_a_result_was_replaced(self) -> None:
        made = tpe()
        before = made._study
        search(made, 12)
        assert made._study is before
        made.tell(0, Observation("complete", 3, 0.8))
        assert made._study is before
        made.propose(12, None)
        assert made._study is not before


class TestCMAES:
    def test_its_generations_go_on_after_a_resume(self) -> None:
        """Each trial notes its generation; one that was known must note the same as when it was drawn."""
        first, again = (CMAES(RANGES, seed=0, startup=3) for _ in range(2))
        whole = search(first, 40)
        assert search(again, 40, whole[:33]) == whole

        def generations(made: CMAES) -> list[int]:
            return [trial.system_attrs.get("cma:generation", -1) for trial in made._study.trials]

        assert generations(first) == generations(again)
        assert max(generations(first)) >= 2


class TestTPE:
    @pytest.mark.parametrize("conditional", [False, True])
    def test_what_matters_is_not_left_to_the_version(self, conditional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        given: dict[str, Any] = {}
        monkeypatch.setattr("optuna.samplers.TPESampler", lambda **options: given.update(options))
        TPE(RANGES, seed=0, startup=3, active=lambda key, values: key != ETA or not conditional).draws(1)
        assert given == {
            "seed": 1,
            "n_startup_trials": 3,
            "multivariate": True,
            "constant_liar": True,
            "group": conditional,
        }


class TestQMC:
    def test_it_covers_the_range_evenly(self) -> None:
        made = QMC({ETA: RANGES[ETA]}, seed=0, startup=3)
        tried = [made.propose(number, None)[ETA] for number in range(16)]
        assert sorted(int(value * 16) for value in tried) == list(range(16))
