"""Tests the grid: every combination once, in an order of its own, without what is known already."""

from __future__ import annotations

import pytest

from erat.errors import UserError
from orchestration.search.grid import Grid
from tests.unit.orchestration.search.test_samplers import STEPPED


def test_every_combination_once_and_in_the_same_order() -> None:
    one, other = Grid(STEPPED, seed=0), Grid(STEPPED, seed=0)
    tried = [one.propose(number, None) for number in range(24)]
    assert [other.propose(number, None) for number in range(24)] == tried
    assert len({tuple(params.values()) for params in tried}) == 24
    assert {params["a"] for params in tried[:6]} > {tried[0]["a"]}, "the first ones are from all over the grid"
    with pytest.raises(UserError, match="the grid has 24 trials beside the points, got 25"):
        one.propose(24, None)


def test_another_seed_gives_another_order() -> None:
    one, other = Grid(STEPPED, seed=0), Grid(STEPPED, seed=1)
    assert [one.propose(n, None) for n in range(24)] != [other.propose(n, None) for n in range(24)]


def test_a_point_is_not_tried_again() -> None:
    made, point = Grid(STEPPED, seed=0), {"a": 0.3, "b": 4, "c": "y"}
    made.given(0, point)
    tried = [made.propose(number, None) for number in range(1, 24)]
    assert point not in tried
    assert len({tuple(params.values()) for params in tried}) == 23


def test_a_known_trial_takes_its_place() -> None:
    whole = [Grid(STEPPED, seed=0).propose(0, None)]
    made = Grid(STEPPED, seed=0)
    assert made.propose(0, whole[0]) == whole[0]
    assert made.propose(1, None) != whole[0]


def test_a_key_that_does_not_count_is_left_out() -> None:
    made = Grid(STEPPED, seed=0, active=lambda key, values: key != "a" or values.get("c") == "y" or "c" not in values)
    assert all("a" in made.propose(number, None) for number in range(24))
    late = {"c": STEPPED["c"], "a": STEPPED["a"]}
    made = Grid(late, seed=0, active=lambda key, values: key != "a" or values["c"] == "y")
    tried = [made.propose(number, None) for number in range(5)]
    assert sorted(map(str, tried)) == sorted(
        map(str, [{"c": "x"}, *({"c": "y", "a": value} for value in (0.0, 0.3, 0.6, 0.9))])
    )
