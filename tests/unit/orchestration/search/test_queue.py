"""Tests what a sweep tries next and what it stops: results alone decide, in whatever order they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import permutations, product
from typing import Any
from zlib import crc32

import pytest

from erat.result import RunResult
from orchestration.search.queue import Queue
from orchestration.study.spaces import SearchSpace
from orchestration.study.trial import Trial

ETA = "defense.eta"


class FakeProposer:
    """A proposer whose numbers depend on everything that it was told before, and on the order of these calls."""

    def __init__(self) -> None:
        self.waiting: list[Mapping[str, float]] = []
        self.log: list[tuple[str, Any]] = []

    def enqueue(self, params: Mapping[str, float]) -> None:
        self.log.append(("enqueue", dict(params)))
        self.waiting.append(params)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        told = [entry for entry in self.log if entry[0] == "tell"]
        fresh = {ETA: crc32(f"{told}{trial_id}".encode()) % 1000 / 1000}
        params = dict(self.waiting.pop(0)) if self.waiting else fresh
        self.log.append(("suggest", (trial_id, params)))
        return params

    def tell(self, trial_id: str, result: RunResult) -> None:
        self.log.append(("tell", (trial_id, result.status, result.best_val_accuracy)))

    @property
    def told(self) -> list[tuple[str, str, float]]:
        return [entry for kind, entry in self.log if kind == "tell"]


def space(points: Iterable[float] = (0.1, 0.2), baselines: int = 1, generation: int = 2) -> SearchSpace:
    return SearchSpace(
        name="test",
        about="test",
        parameters={ETA: {"low": 0, "high": 1}},  # type: ignore[dict-item]
        points=[{ETA: point} for point in points],
        generation=generation,
        baselines=[{"defense.name": "ce"}, {"defense.adversarial": False}][:baselines],
    )


def queue(
    total: int = 6,
    known: Mapping[int, Trial] | None = None,
    outcomes: Mapping[str, RunResult] | None = None,
    epochs: int = 4,
    patience: int = 2,
    on_proposed: Callable[[Trial], None] = lambda trial: None,
    **options: Any,
) -> tuple[Queue, FakeProposer]:
    searched, sampler = space(**options), FakeProposer()
    ended = outcomes or {}

    def trial_of(number: int, source: str, params: Mapping[str, Any]) -> Trial:
        cell = cell_of(params)
        return Trial(number, cell, dict(params), source, result=ended.get(cell))

    made = Queue(
        runs=searched.baselines,
        points=[{key: float(value) for key, value in point.items()} for point in searched.points],
        total=total,
        generation=searched.generation,
        sampler=sampler,
        known=known or {},
        trial_of=trial_of,
        on_proposed=on_proposed,
        patience_epochs=patience,
        epochs=epochs,
    )
    return made, sampler


def cell_of(params: Mapping[str, Any]) -> str:
    return repr(sorted(params.items()))


def done(*history: float, status: str = "done") -> RunResult:
    return RunResult("c", status, best_val_accuracy=max(history, default=None), val_history=list(history))


def curve(trial: Trial) -> list[float]:
    """Return the accuracies of a trial, as a function of its settings alone."""
    top = 1 - abs(trial.params.get(ETA, 0.5) - 0.3)
    return [round(top * share, 6) for share in (0.4, 0.6, 0.8, 1.0)]


def take(made: Queue) -> list[Trial]:
    """Return all trials that may run now."""
    trials = []
    while (trial := made.next()) is not None:
        trials.append(trial)
    return trials


def end(made: Queue, trial: Trial) -> None:
    history = curve(trial)
    stop = next((e for e in range(1, 5) if made.stops(trial.number, e, max(history[:e]))), None)
    made.record(trial.number, done(*history[:stop], status="stopped" if stop else "done"))


def run(made: Queue, order: Callable[[list[Trial]], list[Trial]] = list, until: int = 99) -> dict[int, str]:
    """Run a sweep to its end, where each batch ends in the given order; return, for each number, how it ended."""
    while batch := take(made):
        for trial in order(batch):
            if sum(trial.ended for trial in in_order(made)) == until:
                return {}
            end(made, trial)
    return {trial.number: trial.status for trial in in_order(made) if trial.ended}


def in_order(made: Queue) -> list[Trial]:
    return [made.trials[number] for number in sorted(made.trials)]


def settings(made: Queue) -> list[tuple[int, str, dict[str, Any]]]:
    return [(trial.number, trial.source, trial.params) for trial in in_order(made)]


def as_known(made: Queue) -> dict[int, Trial]:
    return {trial.number: replace(trial, result=None) for trial in in_order(made)}


class TestOrder:
    def test_baselines_then_the_paper_s_points_then_proposals(self) -> None:
        made, sampler = queue(total=4, baselines=2)
        run(made)
        trials = in_order(made)
        assert [trial.source for trial in trials] == ["baseline"] * 2 + ["paper"] * 2 + ["optuna"] * 2
        assert [trial.number for trial in trials] == list(range(6))
        assert [trial.params for trial in trials[:4]] == [
            {"defense.name": "ce"},
            {"defense.adversarial": False},
            {ETA: 0.1},
            {ETA: 0.2},
        ]
        assert (made.size, made.begin, made.first, made.exhausted) == (6, 2, 4, True)
        assert "0" not in [entry[0] for kind, entry in sampler.log if kind == "suggest"], "a baseline is not proposed"

    def test_fewer_trials_than_points_run_the_first_points_alone(self) -> None:
        made, _ = queue(total=2, points=(0.1, 0.2, 0.3))
        run(made)
        assert [trial.params for trial in in_order(made)[1:]] == [{ETA: 0.1}, {ETA: 0.2}]

    def test_a_space_without_points_or_baselines_begins_with_proposals(self) -> None:
        made, _ = queue(total=3, points=(), baselines=0, generation=2)
        assert [trial.number for trial in take(made)] == [0, 1]

    def test_each_trial_is_told_of_when_it_is_made_finished_or_not(self) -> None:
        told: list[Trial] = []
        made, _ = queue(outcomes={repr([(ETA, 0.1)]): done(0.5)}, on_proposed=told.append)
        first = take(made)
        assert [trial.number for trial in told] == [1, 2, 0]
        assert [trial.number for trial in first] == [2, 0]

    @pytest.mark.parametrize(("number", "start"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 7)])
    def test_where_a_generation_starts(self, number: int, start: int) -> None:
        assert queue(total=9)[0].start_of(number) == start


class TestBarrier:
    def test_nothing_is_proposed_while_an_earlier_generation_runs(self) -> None:
        made, sampler = queue(total=6)
        baseline, one, other = sorted(take(made), key=lambda trial: trial.number)
        for trial in (baseline, one):
            made.record(trial.number, done(*curve(trial)))
            assert made.next() is None
            assert sampler.told == []
        made.record(other.number, done(*curve(other)))
        assert [trial.number for trial in take(made)] == [3, 4]

    def test_a_generation_knows_all_before_it_and_none_of_its_own(self) -> None:
        made, sampler = queue(total=6)
        for trial in take(made):
            made.record(trial.number, done(*curve(trial)))
        one = made.next()
        assert one is not None
        made.record(one.number, done(*curve(one)))
        assert made.next() is not None
        assert [number for number, *_ in sampler.told] == ["1", "2"], "the baseline is no part of the search"

    def test_a_baseline_runs_where_a_slot_would_wait_and_at_the_end(self) -> None:
        made, _ = queue(total=4, baselines=2)
        one, other = made.next(idle=False), made.next(idle=False)
        assert one is not None and other is not None
        assert [one.number, other.number] == [2, 3]
        assert made.next(idle=False) is None
        made.record(one.number, done(*curve(one)))
        baseline = made.next(idle=True)
        assert baseline is not None and baseline.number == 0
        made.record(other.number, done(*curve(other)))
        assert [trial.number for trial in take(made)] == [4, 5, 1], "no proposal waits for a baseline"

    def test_waiting_is_not_the_end(self) -> None:
        made, _ = queue(total=3)
        take(made)
        assert made.next() is None
        assert not made.exhausted


class TestOrderOfCompletion:
    def test_neither_proposals_nor_stops_depend_on_who_ends_first(self) -> None:
        reference, _ = queue(total=8, generation=3)
        ends = run(reference)
        assert set(ends.values()) == {"done", "stopped"}, "or this says nothing about stopping"
        for order in permutations(range(3)):
            made, sampler = queue(total=8, generation=3)
            assert run(made, lambda batch, order=order: [batch[i] for i in order if i < len(batch)]) == ends
            assert settings(made) == settings(reference)
            assert [int(number) for number, *_ in sampler.told] == sorted(int(number) for number, *_ in sampler.told)

    def test_nor_on_when_a_slot_was_idle(self) -> None:
        reference, told = queue(total=6, baselines=2)
        ends = run(reference)
        for moments in product((False, True), repeat=8):
            made, sampler = queue(total=6, baselines=2)
            running: list[Trial] = []
            for idle in moments:
                while (trial := made.next(idle=idle)) is not None:
                    running.append(trial)
                if running:
                    end(made, running.pop(0))
            while running:
                end(made, running.pop(0))
                running += take(made)
            assert {number: trial.status for number, trial in made.trials.items() if trial.ended} == ends
            assert settings(made) == settings(reference)
            assert sampler.told == told.told


class TestMedianRule:
    def made(self, *histories: list[float], patience: int = 2, statuses: Iterable[str] = ()) -> Queue:
        """Make a sweep with a baseline and points that ended with these histories, and two running proposals."""
        points = [round(0.01 * index, 2) for index in range(1, len(histories))]
        made, _ = queue(total=len(points) + 2, points=points, patience=patience)
        statuses = [*statuses, *["done"] * len(histories)]
        take(made)
        for number, (history, status) in enumerate(zip(histories, statuses, strict=False)):
            made.record(number, done(*history, status=status))
        assert len(take(made)) == 2
        return made

    def test_a_proposal_below_the_median_of_the_same_epoch_is_stopped(self) -> None:
        made = self.made([1.0] * 4, [0.1, 0.4, 0.9, 0.9], [0.1, 0.6, 0.9, 0.9])
        assert made.stops(3, 2, 0.49)
        assert not made.stops(3, 2, 0.5), "at the median it goes on"
        assert not made.stops(3, 3, 0.9)

    def test_the_best_so_far_counts_on_both_sides(self) -> None:
        made = self.made([1.0] * 4, [0.8, 0.1, 0.1, 0.1])
        assert made.stops(2, 2, 0.79)
        assert not made.stops(2, 2, 0.8)

    def test_never_before_the_grace_and_never_in_the_last_epoch(self) -> None:
        made = self.made([0.9] * 4, [0.9] * 4, patience=3)
        assert [made.stops(2, epoch, 0.0) for epoch in (1, 2, 3, 4)] == [False, False, True, False]

    def test_baselines_and_the_paper_s_points_are_never_stopped(self) -> None:
        made = self.made([0.9] * 4, [0.9] * 4)
        assert not any(made.stops(number, epoch, 0.0) for number in (0, 1) for epoch in range(1, 5))

    def test_baselines_are_no_measure(self) -> None:
        assert not self.made([1.0] * 4, [0.2] * 4).stops(2, 2, 0.3)

    def test_only_trials_that_are_done_are_a_measure(self) -> None:
        statuses = ("done", "stopped", "failed")
        made = self.made([0.5] * 4, [0.9, 0.9], [], statuses=statuses)
        assert not made.stops(3, 2, 0.1)

    def test_only_earlier_generations_are_a_measure(self) -> None:
        made = self.made([0.5] * 4, [0.5] * 4)
        made.record(2, done(0.9, 0.9, 0.9, 0.9))
        assert not made.stops(3, 2, 0.6)

    def test_without_earlier_trials_nothing_is_stopped(self) -> None:
        made, _ = queue(total=2, points=(), baselines=0)
        take(made)
        assert not made.stops(1, 2, 0.0)


class TestGoingOn:
    def reference(self, total: int = 6) -> Queue:
        made, _ = queue(total=total)
        run(made)
        return made

    @pytest.mark.parametrize("ended", range(8))
    def test_a_sweep_cut_anywhere_makes_the_same_trials(self, ended: int) -> None:
        """The ledger then has the proposals, and the results of the first `ended` trials."""
        whole = self.reference()
        begun, _ = queue(total=6)
        run(begun, until=ended)
        outcomes = {trial.cell: trial.so_far for trial in in_order(begun) if trial.ended}
        made, _ = queue(total=6, known=as_known(begun), outcomes=outcomes)
        run(made)
        assert settings(made) == settings(whole)
        assert [t.result for t in in_order(made)] == [t.result for t in in_order(whole)]

    def test_finished_trials_are_passed_over(self) -> None:
        whole = self.reference()
        outcomes = {trial.cell: trial.so_far for trial in in_order(whole) if trial.ended}
        made, sampler = queue(total=6, known=as_known(whole), outcomes=outcomes)
        assert made.next() is None
        assert made.exhausted
        assert len(sampler.told) == 4, "all but the last generation, of which nobody needs to know any more"

    def test_a_retried_trial_keeps_its_values(self) -> None:
        """Other values were proposed with the knowledge that it failed, so its own must not be proposed anew."""
        whole = self.reference()
        outcomes = {trial.cell: trial.so_far for trial in in_order(whole) if trial.ended and trial.number != 4}
        made, _ = queue(total=6, known=as_known(whole), outcomes=outcomes)
        assert [(trial.number, trial.params) for trial in take(made)] == [(4, whole.trials[4].params)]
        made.record(4, done(0.9, 0.9, 0.9, 0.9))
        assert made.next() is None
        assert settings(made) == settings(whole)

    def test_more_trials_continue_where_it_ended(self) -> None:
        short = self.reference(total=4)
        outcomes = {trial.cell: trial.so_far for trial in in_order(short) if trial.ended}
        made, _ = queue(total=6, known=as_known(short), outcomes=outcomes)
        assert [trial.number for trial in take(made)] == [5, 6]
        assert settings(made) == settings(self.reference(total=6))

    def test_a_failed_trial_does_not_hold_up_the_rest(self) -> None:
        made, sampler = queue(total=4)
        for trial in take(made):
            made.record(trial.number, RunResult("c", "failed", error="boom"))
        assert [trial.number for trial in take(made)] == [3, 4]
        assert [status for _, status, _ in sampler.told] == ["failed", "failed"]


# --- a list of runs ---------------------------------------------------------------------------------------------------


def test_of_a_list_of_runs_the_longest_begin_first_under_their_own_numbers() -> None:
    cells: list[dict[str, Any]] = [{"train.epochs": epochs} for epochs in (3, 9, 1, 9, 5)]
    made = Queue(
        runs=cells,
        points=[],
        total=0,
        generation=2,
        sampler=FakeProposer(),
        known={},
        trial_of=lambda number, source, params: Trial(number, cell_of(params), params, source),
        on_proposed=lambda trial: None,
        patience_epochs=1,
        epochs=9,
        work_of=lambda overrides: overrides["train.epochs"],
    )
    begun = [made.next() for _ in cells]
    assert [trial.number for trial in begun if trial] == [1, 3, 4, 0, 2], "equals in their order"
    assert all(trial.params == cells[trial.number] for trial in begun if trial)
    assert made.next() is None
    assert made.exhausted


# --- what waits for its images ----------------------------------------------------------------------------------------


def test_baselines_whose_images_are_not_there_are_passed_over() -> None:
    made, _ = queue(total=0, baselines=2, points=())
    made.ready = lambda number: number == 1
    assert [trial.number for trial in take(made)] == [1]
    assert made.next() is None
    assert not made.exhausted, "one is still to come"
    made.ready = lambda number: True
    assert [trial.number for trial in take(made)] == [0]
    assert made.exhausted


def test_a_search_waits_for_its_images_while_baselines_run() -> None:
    made, sampler = queue()
    made.ready = lambda number: number < made.begin
    assert [trial.source for trial in take(made)] == ["baseline"]
    assert not [entry for entry in sampler.log if entry[0] == "suggest"], "nothing is proposed ahead of its time"
    made.ready = lambda number: True
    assert [trial.source for trial in take(made)] == ["paper", "paper"]
