"""Tests the confirmations of a search: means and spreads over seeds, who wins by them, and how many are expected."""

from __future__ import annotations

from math import nan, sqrt
from typing import Any

import pytest

from orchestration.study.confirmations import FIGURES, Spread, confirmed, expected, winner
from orchestration.study.trial import Trial, confirmation
from tests.trials import make_trial


def candidate(number: int, val: float | None, test: float | None = None, status: str = "done", **more: Any) -> Trial:
    config = {"train.seed": 0} | more.pop("config", {})
    return make_trial(
        number, f"c{number}", status=status, best_val_accuracy=val, final_test_accuracy=test, config=config, **more
    )


def repetition(of: int, repeat: int, val: float | None, test: float | None = None, status: str = "done") -> Trial:
    trial = candidate(confirmation(of, repeat), val, test, status, source="confirm", config={"train.seed": repeat})
    return Trial(**{name: getattr(trial, name) for name in trial.__dataclass_fields__} | {"seeds": 3})


def seeds_of(number: int, *vals: float, test: float = 0.5) -> list[Trial]:
    """Return a candidate and its repetitions, with one validation accuracy each."""
    first, *others = vals
    return [candidate(number, first, test), *(repetition(number, n, val, test) for n, val in enumerate(others, 1))]


class TestSpread:
    def test_mean_and_standard_deviation_with_n_minus_one(self) -> None:
        found = Spread.of([0.90, 0.92, 0.97])
        assert found.mean == pytest.approx(0.93)
        assert found.spread == pytest.approx(sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
        assert found.n == 3

    def test_what_was_not_measured_does_not_count(self) -> None:
        assert Spread.of([0.9, None, nan]) == Spread(0.9, None, 1)
        assert Spread.of([]) == Spread(None, None, 0)


class TestWinner:
    def test_the_best_mean_wins_and_not_the_luckiest_seed(self) -> None:
        rows = [*seeds_of(7, 0.99, 0.80, 0.80), *seeds_of(2, 0.95, 0.94, 0.93), candidate(4, 0.999)]
        chosen = winner(rows)
        assert chosen is not None
        assert chosen.trial.number == 2
        assert [each.trial.number for each in confirmed(rows)] == [2, 7]
        assert (chosen.val.mean, chosen.val.n, chosen.seeds) == (pytest.approx(0.94), 3, [0, 1, 2])

    def test_test_accuracy_chooses_nothing(self) -> None:
        rows = [*seeds_of(0, 0.9, 0.9, 0.9, test=0.99), *seeds_of(1, 0.91, 0.91, 0.91, test=0.01)]
        assert winner(rows).trial.number == 1  # type: ignore[union-attr]

    def test_a_tie_goes_to_the_lower_number(self) -> None:
        rows = [*seeds_of(5, 0.9, 0.8, 0.7), *seeds_of(3, 0.7, 0.8, 0.9)]
        assert winner(rows).trial.number == 3  # type: ignore[union-attr]

    def test_without_confirmations_there_is_none(self) -> None:
        assert winner([candidate(0, 0.9)]) is None
        assert confirmed([candidate(0, 0.9)]) == []

    @pytest.mark.parametrize("status", ["running", "queued", "paused"])
    def test_a_candidate_wins_only_when_all_its_seeds_have_ended(self, status: str) -> None:
        rows = [candidate(0, 0.9), repetition(0, 1, 0.9), repetition(0, 2, 0.9, status=status)]
        assert winner(rows) is None
        assert winner(rows[:2]) is None, "the third seed has not even been proposed"
        assert winner([*rows[:2], repetition(0, 2, 0.8)]) is not None

    def test_a_failed_repetition_is_left_out_and_named(self) -> None:
        rows = [*seeds_of(0, 0.9, 0.8), repetition(0, 2, None, status="failed")]
        (found,) = confirmed(rows)
        assert found.complete
        assert (found.val.mean, found.val.n) == (pytest.approx(0.85), 2)
        assert [run.number for run in found.failed] == [confirmation(0, 2)]
        assert found.content()["left_out"] == [{"seed": 2, "error": None}]
        assert found.content()["seeds"] == [0, 1]

    def test_one_seed_alone_is_no_confirmation(self) -> None:
        rows = [
            candidate(0, 0.99),
            *(repetition(0, n, None, status="failed") for n in (1, 2)),
            *seeds_of(1, 0.8, 0.8, 0.8),
        ]
        assert winner(rows).trial.number == 1  # type: ignore[union-attr]
        assert winner(rows[:3]) is None

    def test_the_figures_have_their_names(self) -> None:
        (found,) = confirmed(seeds_of(0, 0.9, 0.8, 0.7, test=0.6))
        assert tuple(found.figures()) == FIGURES
        assert found.figures()["test_accuracy_mean"] == pytest.approx(0.6)
        assert found.figures()["test_accuracy_std"] == pytest.approx(0.0)
        assert found.figures()["seeds_done"] == 3


class TestExpected:
    def test_before_the_search_is_over_there_are_as_many_as_asked_for(self) -> None:
        rows = [candidate(0, 0.9), candidate(1, 0.9, status="running"), candidate(2, 0.5, source="baseline")]
        assert expected(rows, 2, top=3, seeds=3) == 2 * 2, "no more candidates than trials"
        assert expected(rows, 24, top=3, seeds=3) == 3 * 2

    def test_afterwards_only_trials_that_are_done_are_confirmed(self) -> None:
        rows = [
            candidate(0, 0.9),
            candidate(1, 0.8, status="stopped"),
            candidate(2, nan),
            candidate(3, None, status="failed"),
        ]
        assert expected(rows, 4, top=3, seeds=3) == 2

    def test_of_equal_settings_only_the_first_is_confirmed(self) -> None:
        twin = make_trial(1, "c0", status="done", best_val_accuracy=0.9, config={"train.seed": 0})
        assert expected([candidate(0, 0.9), twin], 2, top=2, seeds=2) == 1

    def test_those_of_an_earlier_end_of_the_search_are_kept(self) -> None:
        rows = [candidate(0, 0.9), candidate(1, 0.95), repetition(0, 1, 0.9), repetition(0, 2, 0.9)]
        assert expected(rows, 2, top=1, seeds=3) == 2 + 2
