"""Tests Eqs. 1-5 against numbers worked out by hand; the arithmetic is given beside them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erat.selection import agreement, class_rates, class_scores, quotas, raw_count, scores, select, smallest_per_class

# Twelve samples of three classes. Class means: 1.2 / 4 = 0.3, 1.8 / 3 = 0.6, 7.5 / 5 = 1.5 (above 1).
# Mean of all: 10.5 / 12 = 0.875, so N_l = 6 (0.0 0.2 0.4 0.6 of class 0, 0.2 0.6 of class 1).
LABELS = torch.tensor([2, 0, 1, 2, 0, 0, 2, 1, 2, 0, 1, 2])
SCORES = torch.tensor([1.6, 0.4, 1.0, 1.2, 0.0, 0.6, 1.8, 0.2, 1.4, 0.2, 0.6, 1.5])
ALL = torch.ones(12, dtype=torch.bool)
MEANS = torch.tensor([0.3, 0.6, 1.5], dtype=torch.float64)


def chosen(**options: Any) -> list[int]:
    mask = select(SCORES, LABELS, ALL, 3, **options)
    assert mask.dtype == torch.bool
    return mask.nonzero().flatten().tolist()


def assert_numbers(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


# --- Eq. 1: the score ------------------------------------------------------------------------------------------------


def test_score_is_the_squared_distance_to_the_label() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [1.0, 0, 0], [1.0, 0, 0]])
    labels = torch.tensor([0, 2, 0, 1, 0, 2])
    expected = [
        0.38,  # 0.5^2 + 0.3^2 + 0.2^2
        0.98,  # 0.5^2 + 0.3^2 + 0.8^2
        0.06,  # 0.2^2 + 0.1^2 + 0.1^2
        1.46,  # 0.8^2 + 0.9^2 + 0.1^2
        0.0,
        2.0,  # the largest possible score: certain, and of another class
    ]
    assert_numbers(scores(probs, labels), expected)
    one_hot = torch.nn.functional.one_hot(labels, 3)
    torch.testing.assert_close(scores(probs, labels), (probs - one_hot).square().sum(1))


def test_score_asks_that_the_other_mass_be_spread_thin_and_cross_entropy_does_not() -> None:
    """Both predictions give the label 0.4: 0.36 + 2 * 0.09 = 0.54 against 0.36 + 0.36 = 0.72."""
    probs, labels = torch.tensor([[0.4, 0.3, 0.3], [0.4, 0.6, 0.0]]), torch.tensor([0, 0])
    assert_numbers(scores(probs, labels), [0.54, 0.72])
    assert_numbers(scores(probs, labels, "ce"), [-math.log(0.4)] * 2)


def test_cross_entropy_score_of_no_probability_at_all_is_finite() -> None:
    assert_numbers(scores(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), "ce"), [12 * math.log(10)])


# --- Eq. 2: how many -------------------------------------------------------------------------------------------------


def test_raw_count_is_of_the_scores_at_or_below_the_mean() -> None:
    assert raw_count(SCORES) == 6
    assert raw_count(torch.tensor([0.0, 1.0, 2.0])) == 2, "a score on the mean counts"
    assert raw_count(torch.tensor([0.0, 0.0, 0.0, 2.0])) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.7, 1.9, 2.0])
@pytest.mark.parametrize("count", [1, 3, 7, 10, 999, 1003])
def test_raw_count_of_equal_scores_is_all_of_them(value: float, count: int, dtype: torch.dtype) -> None:
    """If a sum was rounded down, the mean computed from it lies below each of the values."""
    assert raw_count(torch.full((count,), value, dtype=dtype)) == count


# --- Eq. 3: class scores ---------------------------------------------------------------------------------------------


def test_class_scores_over_all_data_the_first_time() -> None:
    assert_numbers(class_scores(SCORES, LABELS, ALL, 3), MEANS.tolist())


def test_class_scores_over_the_previous_labelled_set_alone() -> None:
    previous = torch.zeros(12, dtype=torch.bool)
    previous[[1, 4, 7, 3, 8]] = True  # 0.4, 0.0 of class 0; 0.2 of class 1; 1.2, 1.4 of class 2
    assert_numbers(class_scores(SCORES, LABELS, previous, 3), [0.2, 0.2, 1.3])


def test_a_class_without_labelled_samples_gets_the_mean_of_all_labelled_ones() -> None:
    previous = torch.zeros(12, dtype=torch.bool)
    previous[[1, 4, 7]] = True  # 0.4, 0.0 of class 0; 0.2 of class 1; their mean is 0.2
    assert_numbers(class_scores(SCORES, LABELS, previous, 3), [0.2, 0.2, 0.2])
    previous[2] = True  # and 1.0 of class 1: (0.4 + 0.0 + 0.2 + 1.0) / 4 = 0.4
    assert_numbers(class_scores(SCORES, LABELS, previous, 4), [0.2, 0.6, 0.4, 0.4])


# --- Eq. 4: class rates ----------------------------------------------------------------------------------------------


def test_rates_follow_the_class_scores() -> None:
    """1 - S/2 = 0.85, 0.70, 0.25; their sum is 1.8."""
    assert_numbers(class_rates(MEANS, 1.0), [0.85 / 1.8, 0.70 / 1.8, 0.25 / 1.8])


def test_rates_at_the_paper_s_eta() -> None:
    """0.85^0.1 = 0.983880, 0.70^0.1 = 0.964961, 0.25^0.1 = 0.870551; their sum is 2.819391."""
    assert_numbers(class_rates(MEANS, 0.1), [0.348969, 0.342259, 0.308773])


def test_eta_0_gives_equal_rates_even_to_the_worst_class() -> None:
    assert_numbers(class_rates(torch.tensor([0.0, 1.0, 2.0]), 0.0), [1 / 3] * 3)


def test_literal_rates_clamp_what_turns_negative() -> None:
    """1 - S = 0.7, 0.4, -0.5 -> 0; their sum is 1.1."""
    assert_numbers(class_rates(MEANS, 1.0, literal=True), [0.7 / 1.1, 0.4 / 1.1, 0.0])
    rates = class_rates(MEANS, 0.1, literal=True)
    assert bool(rates.isfinite().all())
    assert rates[2] == 0


def test_rates_where_no_class_is_trusted_are_equal() -> None:
    assert_numbers(class_rates(torch.tensor([1.5, 1.2]), 0.1, literal=True), [0.5, 0.5])
    assert_numbers(class_rates(torch.tensor([2.0, 2.0]), 0.1), [0.5, 0.5])


def test_rates_with_another_largest_score() -> None:
    """Cross-entropies 1, 2, 4 of at most 4: 0.75, 0.5, 0."""
    assert_numbers(class_rates(torch.tensor([1.0, 2.0, 4.0]), 1.0, largest=4.0), [0.6, 0.4, 0.0])


# --- Eq. 5: quotas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "rates", "expected"),
    [
        (6, [0.85 / 1.8, 0.70 / 1.8, 0.25 / 1.8], [3, 2, 1]),  # 2.83, 2.33, 0.83: two are missing, for .83 and .83
        (6, [0.7 / 1.1, 0.4 / 1.1, 0.0], [4, 2, 0]),  # 3.82, 2.18, 0
        (10, [0.46, 0.27, 0.27], [4, 3, 3]),  # 4.6, 2.7, 2.7: two are missing, for .7 and .7
        (5, [0.5, 0.5], [3, 2]),  # 2.5, 2.5: the lower class first
        (2, [0.25, 0.25, 0.25, 0.25], [1, 1, 0, 0]),
        (7, [0.25, 0.25, 0.5], [2, 2, 3]),  # 1.75, 1.75, 3.5
        (1, [0.1] * 10, [1] + [0] * 9),
    ],
)
def test_quotas_are_rounded_by_largest_remainder(raw: int, rates: list[float], expected: list[int]) -> None:
    got = quotas(raw, torch.tensor(rates, dtype=torch.float64), torch.full((len(rates),), 1000))
    assert got.dtype == torch.int64
    assert got.tolist() == expected
    assert sum(expected) == raw


def test_what_a_cap_frees_is_given_to_nobody() -> None:
    """10 * (0.6, 0.3, 0.1) = 6, 3, 1, yet class 0 has four samples: eight are labelled, not ten."""
    rates = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    assert quotas(10, rates, torch.tensor([4, 10, 10])).tolist() == [4, 3, 1]
    assert quotas(10, rates, torch.tensor([0, 3, 0])).tolist() == [0, 3, 0]


def test_smallest_scores_of_each_class_and_ties_to_the_first() -> None:
    values = torch.tensor([0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.1])
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    mask = smallest_per_class(values, labels, torch.tensor([3, 2]))
    assert mask.tolist() == [True, True, True, True, False, False, True]


def test_ties_go_to_the_first_in_large_sets_too() -> None:
    """Unstable sorts may keep the order of a few equal values by accident."""
    labels = torch.arange(20_000) % 2
    mask = smallest_per_class(torch.full((20_000,), 0.5), labels, torch.tensor([3000, 10]))
    assert mask[labels == 0].nonzero().flatten().tolist() == list(range(3000))
    assert mask[labels == 1].nonzero().flatten().tolist() == list(range(10))
    kept = select(torch.zeros(20_000), labels, torch.ones(20_000, dtype=torch.bool), 2, eta=0.1, rebalance=False)
    assert kept.all()


# --- Eqs. 2-5 together -----------------------------------------------------------------------------------------------


def test_selection_at_eta_1() -> None:
    """Quotas 3, 2, 1: scores 0.0 0.2 0.4 of class 0, 0.2 0.6 of class 1, 1.2 of class 2."""
    assert chosen(eta=1.0) == sorted([4, 9, 1, 7, 10, 3])


def test_selection_at_eta_0() -> None:
    """Quotas 2, 2, 2: 0.0 0.2; 0.2 0.6; 1.2 1.4."""
    assert chosen(eta=0.0) == sorted([4, 9, 7, 10, 3, 8])


def test_selection_at_eta_one_half() -> None:
    """Roots 0.921954, 0.836660, 0.5 of sum 2.258614: 6 R = 2.449, 2.223, 1.328 -> 3, 2, 1."""
    assert chosen(eta=0.5) == sorted([4, 9, 1, 7, 10, 3])


def test_selection_with_the_literal_rate() -> None:
    """Quotas 4, 2, 0: all of class 0, 0.2 0.6 of class 1, none of class 2."""
    assert chosen(eta=1.0, literal_rate=True) == sorted([4, 9, 1, 5, 7, 10])


def test_selection_without_rebalancing_keeps_every_score_at_or_below_the_mean() -> None:
    """The six at or below 0.875. Neither eta = 1 nor a quota per class gives these."""
    assert chosen(eta=1.0, rebalance=False) == sorted([4, 9, 1, 5, 7, 10])
    on_the_mean = select(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1, 1]), ALL[:3], 2, eta=0.1, rebalance=False)
    assert on_the_mean.tolist() == [True, True, False]


def test_selection_takes_the_rates_from_the_previous_set_and_the_samples_from_all() -> None:
    """Previous: 0.6 of class 0, 0.2 of class 1, 1.2 of class 2.

    1 - S/2 = 0.7, 0.9, 0.4; 6 R = 2.1, 2.7, 1.2 -> 2, 3, 1.
    """
    previous = torch.zeros(12, dtype=torch.bool)
    previous[[5, 7, 3]] = True
    mask = select(SCORES, LABELS, previous, 3, eta=1.0)
    assert mask.nonzero().flatten().tolist() == sorted([4, 9, 7, 10, 2, 3])


def test_a_small_class_leaves_its_quota_unused() -> None:
    """Scores 0 and 2, N_l = 6 of 8; eta 0 gives each of two classes 3, yet class 1 has a single sample."""
    values = torch.tensor([0.0] * 5 + [2.0, 2.0] + [0.0])
    labels = torch.tensor([0] * 7 + [1])
    mask = select(values, labels, torch.ones(8, dtype=torch.bool), 2, eta=0.0)
    assert mask.tolist() == [True, True, True, False, False, False, False, True]


# --- how good a labelled set is --------------------------------------------------------------------------------------


def test_precision_and_recall() -> None:
    """Four are chosen, two of them labelled right; three are labelled right in all."""
    mask = torch.tensor([True, True, True, True, False, False])
    given, true = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 0, 1, 1, 0])
    assert agreement(mask, given, true) == pytest.approx((0.5, 2 / 3))
    assert agreement(torch.zeros(6, dtype=torch.bool), given, true) == (0.0, 0.0)
