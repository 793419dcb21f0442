"""Tests how many trials a study says it could run at a time, by which a cluster grows and shrinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from erat.result import RunResult
from orchestration.search.observations import Observation
from orchestration.search.pruners import Pruner
from orchestration.search.queue import Queue
from orchestration.study.spaces import SearchSpace
from orchestration.study.trial import Trial


class AnySampler:
    """A sampler whose values do not matter."""

    def given(self, number: int, params: Any) -> None: ...

    def propose(self, number: int, known: Any) -> dict[str, Any]:
        return {"train.lr": 0.1 + number}

    def tell(self, number: int, observation: Observation) -> None: ...


def make_queue(*, runs: int = 0, total: int = 0, window: int = 4, **more: Any) -> Queue:
    pruner = Pruner(SearchSpace(name="any", about="any", proposals=0, baselines=[{"train.lr": 0.1}]), 3)
    config = {"train.seed": 0}
    return Queue(
        runs=[{"train.seed": number} for number in range(runs)],
        points=[],
        total=total,
        window=window,
        sampler=AnySampler(),
        pruner=pruner,
        block=4,
        known={},
        trial_of=lambda number, source, params: Trial(number, f"cell {number}", params, source, config),
        on_proposed=lambda trial: None,
        epochs=3,
        **more,
    )


def end(queue: Queue, trial: Trial, status: str = "done") -> None:
    reached = 0.5 + trial.number / 100
    queue.record(trial.number, RunResult(trial.cell, status, 3, best_val_accuracy=reached, val_history=[reached] * 3))


@pytest.mark.parametrize(
    ("shape", "width"),
    [({"runs": 5}, 5), ({"total": 3}, 3), ({"total": 20}, 5), ({"runs": 2, "total": 20, "window": 8}, 11)],
    ids=["a list", "a short search", "a window", "both"],
)
def test_at_the_beginning_it_is_the_window_and_the_listed_runs(shape: dict[str, int], width: int) -> None:
    assert make_queue(**shape).width == width


def test_an_extension_is_as_wide_as_its_own_window() -> None:
    """The trials that were made before keep theirs, and what their last one has seen stays seen."""
    queue = make_queue(total=30, window=2, totals=[5], windows={30: 12})
    begun: list[Trial] = []
    for _ in range(3):
        trial = queue.next()
        assert trial is not None
        begun.append(trial)
    assert (queue.next(), queue.width) == (None, 3)
    for number in (0, 1):  # trial 4 waits for these two, and so do all that follow, as far as the further window goes
        end(queue, begun[number])
    further = list(iter(queue.next, None))
    assert [trial.number for trial in further] == list(range(3, 15))
    assert queue.width == 13


def test_it_ends_with_the_study() -> None:
    queue, widths = make_queue(runs=1, total=5, window=2), []
    running: list[Trial] = []
    while not queue.exhausted:
        while (trial := queue.next()) is not None:
            queue.record(trial.number, replace(trial.so_far, status="running"))
            running.append(trial)
        assert len(running) <= queue.width
        widths.append(queue.width)
        if running:
            end(queue, running.pop(0))
    assert widths == sorted(widths, reverse=True)
    assert [widths[0], queue.width] == [4, 0]


def test_a_trial_that_rests_at_a_rung_wants_no_slot() -> None:
    queue = make_queue(total=2)
    first = queue.next()
    assert first is not None
    end(queue, first, "paused")
    assert queue.width == 1


def test_repetitions_of_the_best_count_when_they_are_due() -> None:
    queue = make_queue(total=2, confirm_top=2, confirm_seeds=3)
    for _ in range(2):
        trial = queue.next()
        assert trial is not None
        end(queue, trial)
    repeated = [queue.next()]
    assert repeated[0] is not None and repeated[0].source == "confirm"
    assert queue.width == 4, "one that runs, and three that may"
    end(queue, repeated[0])
    assert queue.width == 3
