"""Tests that every registered pruner decides by results alone: on any cluster, after any kill, and when extended."""

from __future__ import annotations

import random

import numpy as np
import pytest

from orchestration.search.pruners import Halving, Median
from orchestration.study.registries import PRUNERS
from orchestration.study.spaces import SearchSpace
from tests.imagined import ETA, Imagined, table

SLOTS = (2, 8, 24, 64)
LENGTHS = (0, 1, 2)
TOTAL = 60


def study(name: str, total: int = TOTAL) -> Imagined:
    return Imagined(name, total, epochs=9, rungs=(3, 5), window=12, block=8, points=(0.1, 0.9), confirm=(2, 2))


@pytest.mark.parametrize("name", PRUNERS.names())
class TestEveryPruner:
    def test_the_table_is_the_same_on_any_number_of_slots_and_with_any_lengths(self, name: str) -> None:
        first = study(name)
        reference = table(first.run(1))
        assert len(reference) == TOTAL + 2, "two are confirmed with one further seed"
        assert any(row[3] == "stopped" for row in reference) == (name != "none")
        for slots in SLOTS:
            for lengths in LENGTHS:
                other = study(name)
                assert table(other.run(slots, lengths)) == reference
                assert other.last.log == first.last.log
                assert other.record.promoted == first.record.promoted

    def test_the_table_is_the_same_after_kills_and_on_other_clusters(self, name: str) -> None:
        whole = study(name)
        reference = table(whole.run(4))
        draw = random.Random(name)
        for _ in range(5):
            killed = study(name)
            kills = [draw.randrange(whole.offered // 2) for _ in range(8)]
            assert table(killed.killed(kills, SLOTS, LENGTHS)) == reference
            assert killed.record.promoted == whole.record.promoted

    @pytest.mark.parametrize("begun", [1, 2, 3, 9, 10, 33])
    def test_an_extension_keeps_the_trials_and_their_ends(self, name: str, begun: int) -> None:
        extended = study(name, begun)
        before = [row for row in table(extended.run(8)) if row[1] != "confirm"]
        after = table(extended.extended(TOTAL).run(24))
        assert len(before) == begun
        assert after[:begun] == before
        again = study(name, begun)
        again.run(3)
        assert table(again.extended(TOTAL).killed([50, 90], SLOTS, LENGTHS)) == after


class TestMedian:
    def made(self, **settings: object) -> Median:
        space = SearchSpace(name="x", about="x", parameters={ETA: {"low": 0, "high": 1}}, **settings)  # type: ignore[arg-type, dict-item]
        return Median(space, 10)

    def test_below_the_median_it_stops_and_at_the_median_it_goes_on(self) -> None:
        reference = np.array([0.2, 0.4, 0.8])
        assert self.made().stops(5, 0.399, reference)
        assert not self.made().stops(5, 0.4, reference)

    def test_never_before_the_grace_in_the_last_epoch_or_without_a_reference(self) -> None:
        reference = np.array([0.9])
        assert [self.made(grace=0.3).stops(epoch, 0.1, reference) for epoch in (1, 2, 3, 9, 10)] == [0, 0, 1, 1, 0]
        assert not self.made().stops(5, 0.1, np.array([]))


class TestHalving:
    def promoted(self, best: dict[int, float]) -> set[int]:
        space = SearchSpace(
            name="x",
            about="x",
            parameters={ETA: {"low": 0, "high": 1}},  # type: ignore[dict-item]
            pruner="halving",
            rungs=[3],
        )
        return Halving(space, 10).promoted(best)

    @pytest.mark.parametrize(("reached", "kept"), [(0, 0), (1, 1), (2, 1), (4, 1), (5, 2), (6, 2), (24, 8)])
    def test_a_third_of_those_that_reached_the_rung_goes_on_and_at_least_one(self, reached: int, kept: int) -> None:
        best = {number: number / 100 for number in range(reached)}
        assert self.promoted(best) == set(range(reached - kept, reached))

    def test_of_equals_the_earlier_goes_on(self) -> None:
        assert self.promoted({7: 0.5, 3: 0.5, 5: 0.5}) == {3}
