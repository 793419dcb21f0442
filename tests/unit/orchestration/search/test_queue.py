"""Tests what a study tries next and what it stops: results alone decide, in whatever order they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import nan
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erat.result import RunResult, summarise
from orchestration.search.observations import Observation
from orchestration.search.queue import AHEAD, Queue
from orchestration.study.trial import CONFIRMING, Trial
from tests.imagined import ETA, EveryWord, Imagined, KilledError, Row, table

MEDIAN: dict[str, Any] = {"pruner": "median", "points": (0.1, 0.2), "runs": 1, "total": 6, "window": 2, "epochs": 4}
ENDED = ("done", "stopped", "failed")


def result(trial: Trial, status: str, *history: float) -> RunResult:
    return summarise(
        trial.cell, status, [{"val_accuracy": v, "test_accuracy": v, "epoch_seconds": 0.5} for v in history]
    )


def take(queue: Queue) -> list[Trial]:
    """Return all trials that may run now."""
    return list(iter(queue.next, None))


def numbers(trials: list[Trial]) -> list[int]:
    return [trial.number for trial in trials]


def end(queue: Queue, number: int, *history: float, status: str = "done") -> None:
    queue.record(number, result(queue.trials[number], status, *history))


def told(queue: Queue) -> list[tuple[int, str, int, float | None]]:
    sampler = queue.sampler
    assert isinstance(sampler, EveryWord)
    return sampler.told


class TestOrder:
    def test_points_first_then_proposals_and_listed_runs_where_a_slot_would_wait(self) -> None:
        queue = Imagined(**MEDIAN | {"total": 4, "runs": 2}).queue()
        assert (queue.begin, queue.first, queue.size, queue.planned) == (2, 4, 6, 6)
        assert numbers(list(iter(lambda: queue.next(idle=False), None))) == [2, 3, 4]
        assert numbers(take(queue)) == [0, 1], "a slot is idle while number 5 waits for number 2"
        end(queue, 2, 0.5)
        assert numbers(take(queue)) == [5], "and not for a listed run"
        assert [queue.trials[number].source for number in range(6)] == ["baseline"] * 2 + ["paper"] * 2 + ["optuna"] * 2

    def test_when_the_search_is_made_a_listed_run_delays_nothing(self) -> None:
        queue = Imagined(**MEDIAN | {"total": 2, "runs": 2}).queue()
        assert numbers(list(iter(lambda: queue.next(idle=False), None))) == [2, 3, 0, 1]

    def test_fewer_trials_than_points_run_the_first_points_alone(self) -> None:
        queue = Imagined(total=2, points=(0.1, 0.2, 0.3)).queue()
        assert [trial.params for trial in take(queue)] == [{ETA: 0.1}, {ETA: 0.2}]

    def test_each_trial_is_told_of_when_it_is_made(self) -> None:
        made: list[int] = []
        queue = Imagined(**MEDIAN).queue(on_proposed=lambda trial: made.append(trial.number))
        assert numbers(take(queue)) == made == [1, 2, 3, 0]

    def test_of_a_list_the_longest_begin_first_under_their_own_numbers(self) -> None:
        runs = [{"train.epochs": epochs} for epochs in (3, 9, 1, 9, 5)]
        queue = Imagined(total=0).queue(runs=runs, work_of=lambda run: run["train.epochs"])
        assert numbers(take(queue)) == [1, 3, 4, 0, 2], "equals in their order"
        assert [queue.trials[number].params for number in range(5)] == runs
        assert queue.exhausted


class TestWindow:
    def test_a_proposal_waits_for_all_before_its_window_and_looks_at_no_other(self) -> None:
        queue = Imagined(**MEDIAN | {"runs": 0}).queue()
        assert numbers(take(queue)) == [0, 1, 2], "number 3 depends on 0"
        end(queue, 1, 0.1, 0.2, 0.3, 0.4)
        assert take(queue) == []
        assert told(queue) == []
        end(queue, 0, 0.4, 0.3, 0.2, 0.1)
        assert numbers(take(queue)) == [3, 4], "4 depends on 1, too"
        assert told(queue) == [(0, "complete", 4, 0.4), (1, "complete", 4, 0.4)]
        assert not queue.exhausted

    def test_what_is_known_early_is_told_in_its_turn(self) -> None:
        queue = Imagined(**MEDIAN | {"runs": 0, "window": 4}).queue()
        assert numbers(take(queue)) == [0, 1, 2, 3, 4]
        for number in (4, 3, 2, 1):
            end(queue, number, 0.1 * number)
            assert take(queue) == []
        end(queue, 0, 0.5)
        assert numbers(take(queue)) == [5]
        assert told(queue) == [(0, "complete", 1, 0.5)], "5 sees what is before 5 - 4 alone"

    def test_failed_trials_do_not_hold_up_the_rest(self) -> None:
        queue = Imagined(**MEDIAN | {"runs": 0}).queue()
        take(queue)
        end(queue, 0, status="failed")
        end(queue, 1, float("nan"))
        assert numbers(take(queue)) == [3, 4]
        assert [state for _, state, *_ in told(queue)] == ["failed", "failed"]

    def test_proposals_beside_the_caller_are_the_same(self) -> None:
        alone = Imagined(total=9, pruner="none")
        table(alone.run(1))
        with ThreadPoolExecutor(1) as pool:
            beside = Imagined(total=9, pruner="none")
            queue = beside.queue(pool=pool)
            while not queue.exhausted:
                if (trial := queue.next()) is not None:
                    end(queue, trial.number, *beside.curve(trial))
        assert beside.last.log == alone.last.log

    def test_proposals_are_made_before_there_is_a_slot_for_them_and_are_the_same(self) -> None:
        """As many as the window lets be made. Neither they nor what each of them sees follow from that."""
        alone, beside = Imagined(total=12, window=6, pruner="none"), Imagined(total=12, window=6, pruner="none")
        table(alone.run(1))
        with ThreadPoolExecutor(1) as pool:
            queue = beside.queue(pool=pool)

            def made() -> Trial:
                while (trial := queue.next()) is None:
                    pass
                pool.submit(int).result()  # whatever was begun before has been made
                return trial

            def proposed() -> list[int]:
                return [entry[1] for entry in beside.last.log if entry[0] == "propose"]

            assert (made().number, proposed()) == (0, [*range(7)]), "7 sees trial 0"
            assert (made().number, proposed()) == (1, [*range(7)])
            end(queue, 1, *beside.curve(queue.trials[1]))
            assert (made().number, proposed()) == (2, [*range(7)])
            end(queue, 0, *beside.curve(queue.trials[0]))
            assert (made().number, proposed()) == (3, [*range(9)])
            for number in (3, 2, *range(4, 12)):
                if number > 3:
                    assert made().number == number
                end(queue, number, *beside.curve(queue.trials[number]))
            assert queue.exhausted or queue.next() is None
        assert beside.last.log == alone.last.log

    def test_a_pool_makes_no_more_proposals_ahead_than_may_be_needed_soon(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            study = Imagined(total=1000, window=1000, pruner="none")
            queue = study.queue(pool=pool)
            while queue.next() is None:
                pass
            pool.submit(int).result()
            assert len(study.last.log) == AHEAD + 1


class TestStops:
    def made(self, *histories: list[float], statuses: tuple[str, ...] = (), grace: float = 0.5) -> tuple[Queue, int]:
        """Return a queue with points that ended with these histories, and the number of a proposal that sees them."""
        points = [round(0.01 * place, 2) for place in range(1, len(histories) + 1)]
        study = Imagined(**MEDIAN | {"points": points, "total": len(points) + 2, "window": 1, "grace": grace})
        queue = study.queue()
        take(queue)
        for number, history in enumerate(histories, 1):
            end(queue, number, *history, status=dict(enumerate(statuses, 1)).get(number, "done"))
        number = len(points) + 2
        assert numbers(take(queue))[-1] == number
        return queue, number

    def test_below_the_median_of_the_same_epoch(self) -> None:
        queue, number = self.made([0.1, 0.4, 0.9, 0.9], [0.1, 0.6, 0.9, 0.9])
        assert [queue.stops(number, 2, best) for best in (0.49, 0.5)] == [True, False]
        assert not queue.stops(number, 3, 0.9)

    def test_the_best_so_far_counts(self) -> None:
        queue, number = self.made([0.8, 0.1, 0.1, 0.1])
        assert [queue.stops(number, 2, best) for best in (0.79, 0.8)] == [True, False]

    def test_never_before_the_grace_and_never_in_the_last_epoch(self) -> None:
        queue, number = self.made([0.9] * 4, grace=0.75)
        assert [queue.stops(number, epoch, 0.0) for epoch in (1, 2, 3, 4, 5)] == [False, False, True, False, False]

    def test_listed_runs_points_and_confirmations_are_never_stopped(self) -> None:
        queue, number = self.made([0.9] * 4, [0.9] * 4)
        assert queue.stops(number, 2, 0.0)
        queue.trials[CONFIRMING + 1] = replace(queue.trials[1], number=CONFIRMING + 1, source="confirm")
        assert not any(queue.stops(other, epoch, 0.0) for other in (0, 1, CONFIRMING + 1) for epoch in range(1, 5))

    def test_only_trials_that_are_done_are_a_measure(self) -> None:
        queue, number = self.made([0.5] * 4, [0.9, 0.9], [], statuses=("done", "stopped", "failed"))
        assert [queue.stops(number, 2, best) for best in (0.49, 0.5)] == [True, False]

    def test_only_trials_before_the_window_are_a_measure(self) -> None:
        queue, number = self.made([0.5] * 4, [0.5] * 4)
        end(queue, number - 1, 0.9, 0.9, 0.9, 0.9)
        assert not queue.stops(number, 2, 0.6)

    def test_without_a_measure_nothing_is_stopped(self) -> None:
        queue = Imagined(**MEDIAN | {"points": (), "runs": 0}).queue()
        assert numbers(take(queue)) == [0, 1, 2]
        assert not queue.stops(2, 2, 0.0)


class TestRungs:
    def pausing(self, **options: Any) -> Queue:
        """Return a queue with a block of four that waits at the first rung, epoch 2."""
        queue = Imagined(**{"total": 4, "window": 9} | options).queue()
        for trial in take(queue):
            assert queue.pauses_after(trial.number) == 2
            end(queue, trial.number, 0.1, 0.1 + 0.1 * trial.number, status="paused")
        return queue

    def test_the_best_of_a_block_go_on_from_their_rung_and_the_others_are_stopped(self) -> None:
        decided: list[Any] = []
        queue = Imagined(total=4, window=9).queue(
            on_promoted=lambda trial, epoch: decided.append((trial.number, epoch)),
            on_stopped=lambda trial: decided.append((trial.number, trial.status)),
        )
        for trial in take(queue):
            assert decided == [], "nothing is decided before all are there"
            end(queue, trial.number, 0.1, 0.1 + 0.1 * trial.number, status="paused")
        again = queue.next()
        assert again is not None
        assert (again.number, again.status, again.epoch) == (3, "queued", 2)
        assert decided == [(0, "stopped"), (1, "stopped"), (2, "stopped"), (3, 2)]
        assert queue.pauses_after(3) == 4
        assert queue.next() is None
        end(queue, 3, 0.1, 0.4, 0.5, 0.6, status="paused")
        assert numbers(take(queue)) == [3]
        assert decided[4:] == [(3, 4)]
        assert queue.pauses_after(3) is None
        assert not queue.exhausted
        end(queue, 3, *[0.1, 0.4, 0.5, 0.6, 0.6, 0.6])
        assert queue.next() is None
        assert queue.exhausted

    def test_points_and_listed_runs_never_pause(self) -> None:
        queue = Imagined(points=(0.1,), runs=1).queue()
        for trial in take(queue):
            assert (queue.pauses_after(trial.number) is None) == (trial.source != "optuna")

    def test_a_trial_that_has_done_the_epoch_and_not_paused_yet_holds_the_decision_up(self) -> None:
        """The last epoch before a pause is heard of first; what waits then must not be forgotten."""
        queue = Imagined(total=4, window=9).queue()
        for trial in take(queue):
            end(queue, trial.number, 0.1, 0.1 + 0.1 * trial.number, status="paused" if trial.number else "running")
        assert queue.next() is None
        assert queue.trials[3].status == "paused"
        end(queue, 0, 0.1, 0.1, status="paused")
        assert numbers(take(queue)) == [3]
        assert queue.trials[0].status == "stopped"

    def test_a_trial_that_failed_before_the_rung_takes_no_part(self) -> None:
        queue = Imagined(total=4, window=9).queue()
        for trial in take(queue):
            status = "failed" if trial.number in (2, 3) else "paused"
            end(queue, trial.number, *[0.1, 0.2 + 0.1 * trial.number][: 1 + (status == "paused")], status=status)
        assert numbers(take(queue)) == [1]
        assert [queue.trials[number].status for number in range(4)] == ["stopped", "queued", "failed", "failed"]

    def test_an_accuracy_that_is_not_finite_is_never_the_best_of_a_block(self) -> None:
        study = Imagined(total=4, window=9)
        curves = {0: (nan, nan), 1: (nan, 0.1), 2: (0.5, nan), 3: (0.2, 0.3)}
        queue = study.queue()
        for trial in take(queue):
            end(queue, trial.number, *curves[trial.number], status="paused")
        assert numbers(take(queue)) == [2]
        assert [queue.trials[number].status for number in range(4)] == ["stopped", "stopped", "queued", "stopped"]

    def test_a_block_of_which_all_failed_ends(self) -> None:
        queue = Imagined(total=4, window=9).queue()
        for trial in take(queue):
            end(queue, trial.number, status="failed")
        assert queue.next() is None
        assert queue.exhausted

    def test_where_a_trial_pauses_its_block_decides_and_not_the_median(self) -> None:
        class Both(type(Imagined().queue().pruner)):  # type: ignore[misc]
            def stops(self, *anything: Any) -> bool:
                return True

        queue = self.pausing()
        queue.pruner = Both(queue.pruner.space, 6)
        assert [queue.stops(0, epoch, 0.5) for epoch in (1, 2, 3)] == [True, False, True]

    def test_the_sampler_sees_a_trial_at_its_first_rung_and_later_at_its_end(self) -> None:
        study = Imagined(total=20, window=2, rungs=(2,), block=3)
        course = study.run(3)
        seen = study.last.log
        for trial in course.trials:
            told = [
                (place, entry[2]) for place, entry in enumerate(seen) if entry[0] == "tell" and entry[1] == trial.number
            ]
            proposed = {entry[1]: place for place, entry in enumerate(seen) if entry[0] == "propose"}
            number, best = trial.number, round(max(study.curve(trial)[:2]), 6)
            if number + 3 < 20:
                assert told[0][1] == Observation("pruned", 2, best)
                assert proposed[number + 2] < told[0][0] < proposed[number + 3]
            last_of_block = number // 3 * 3 + 2
            if trial.status == "done" and last_of_block + 5 < 20:
                assert [observation.state for _, observation in told] == ["pruned", "complete"]
                assert proposed[last_of_block + 4] < told[1][0] < proposed[last_of_block + 5]
            elif trial.status == "stopped":
                assert len(told) <= 1, "there is nothing more to say"
        assert {trial.status for trial in course.trials} == {"done", "stopped"}


class TestRepeatedConfigurations:
    def test_a_trial_that_repeats_another_ends_as_that_one_does_and_is_compared_with_none(self) -> None:
        study = Imagined(total=30, window=6, block=5, sampler=lambda: EveryWord(4))
        course = study.run(4)
        cells: dict[str, set[tuple[str, int]]] = {}
        for trial in course.trials:
            cells.setdefault(trial.cell, set()).add((trial.status, trial.epoch))
        assert len(cells) <= 4
        assert all(len(ends) == 1 for ends in cells.values()), "or two runs would share a directory"

    def test_its_run_begins_once(self) -> None:
        queue = Imagined(pruner="none", total=5, points=(0.5, 0.5), window=9).queue()
        begun = take(queue)
        assert 1 not in numbers(begun)
        assert queue.trials[1].status == "queued"
        end(queue, 0, 0.5)
        assert (queue.trials[1].status, queue.trials[1].best_val_accuracy) == ("done", 0.5)

    @pytest.mark.parametrize("pruner", ["halving", "median"])
    def test_one_with_the_configuration_of_a_listed_run_ends_as_that_one_does(self, pruner: str) -> None:
        tables = []
        for slots in (1, 2, 4, 6, 12):
            study = Imagined(pruner, total=24, window=5, sampler=lambda: EveryWord(6), listed=(1 / 6, 0.5))
            course = study.run(slots)
            listed = {trial.cell for trial in course.trials if trial.source == "baseline"}
            twins = [trial for trial in course.trials if trial.cell in listed]
            assert len(twins) > 2, "the search proposes them too"
            assert {trial.status for trial in twins} == {"done"}
            tables.append(table(course))
        assert all(each == tables[0] for each in tables)


class TestResume:
    @pytest.mark.parametrize("pruner", ["halving", "median"])
    def test_cut_at_every_moment_the_table_is_the_same(self, pruner: str) -> None:
        def made() -> Imagined:
            return Imagined(pruner, 10, window=3, block=5, points=(0.9,), runs=1, confirm=(1, 2), fails={4: 1, 7: 3})

        whole = made()
        reference = table(whole.run(2))
        log, promoted = whole.last.log, whole.record.promoted
        assert {row[3] for row in reference} == set(ENDED)
        for moment in range(whole.offered):
            cut = made()
            assert table(cut.killed([moment], [3, 1], [1, 2])) == reference
            assert cut.last.log == log
            assert cut.record.promoted == promoted

    def test_when_all_has_ended_nothing_runs(self) -> None:
        study = Imagined(points=(0.9,), runs=2, confirm=(1, 2))
        study.run(3)
        queue = study.queue()
        assert queue.next() is None
        assert queue.exhausted

    def test_a_failed_trial_that_is_retried_keeps_its_values(self) -> None:
        study = Imagined("none", 8, fails={4: 3})
        before = table(study.run(3))
        study.ledger.append("retry", cell=study.record.proposals[4].cell)
        study.fails = {}
        after = table(study.run(3))
        assert [row[:3] for row in after] == [row[:3] for row in before]
        assert [row[3] for row in before if row[3] != "done"] == ["failed"]
        assert {row[3] for row in after} == {"done"}

    @pytest.mark.parametrize("failing", range(4))
    def test_decisions_stand_when_a_trial_that_had_failed_before_the_rung_is_retried(self, failing: int) -> None:
        study = Imagined(total=4, window=9, fails={failing: 1})
        before = {row[0]: row for row in table(study.run(2))}
        promoted = dict(study.record.promoted)
        study.ledger.append("retry", cell=study.record.proposals[failing].cell)
        study.fails = {}
        after = {row[0]: row for row in table(study.run(2))}
        assert after[failing][3] in ("done", "stopped")
        assert {n: row for n, row in after.items() if n != failing} == {
            n: row for n, row in before.items() if n != failing
        }
        assert promoted.items() <= study.record.promoted.items()

    def test_a_promoted_trial_that_failed_later_goes_on_from_its_rung(self) -> None:
        whole = Imagined(total=4, window=9)
        reference = table(whole.run(2))
        best = next(row[0] for row in reference if row[3] == "done")
        study = Imagined(total=4, window=9, fails={best: 3})
        assert table(study.run(2))[best][3:5] == ("failed", 3)
        study.ledger.append("retry", cell=study.record.proposals[best].cell)
        study.fails = {}
        queue = study.queue()
        assert [(trial.number, trial.epoch) for trial in take(queue)] == [(best, 2)]
        assert queue.pauses_after(best) == 4
        assert table(study.run(2)) == reference

    def test_a_promoted_trial_whose_checkpoint_is_lost_begins_again(self) -> None:
        queue = TestRungs().pausing()
        assert numbers(take(queue)) == [3]
        end(queue, 3, status="running")
        assert queue.pauses_after(3) == 4
        end(queue, 3, 0.1, 0.4, 0.5, 0.6, status="paused")
        assert numbers(take(queue)) == [3]

    def test_a_trial_whose_values_can_no_longer_be_made_is_proposed_anew_and_pauses_again(self) -> None:
        study = Imagined(total=4, window=9)
        study.run(2)
        (best, _), *_ = study.record.promoted.items()
        known = {number: trial for number, trial in study.record.proposals.items() if number != best}
        queue = study.queue(known=known, sampler=EveryWord(7))
        assert [(trial.number, queue.pauses_after(best)) for trial in take(queue)] == [(best, 2)]


class TestOtherStudies:
    """Tests that runs of this study which another study has finished change no decision."""

    @pytest.mark.parametrize("finished", range(9))
    def test_a_run_that_another_study_has_finished(self, finished: int) -> None:
        def made() -> Imagined:
            return Imagined(total=9, window=2, block=3)

        study = made()
        reference = study.run(3)
        log, promoted = study.last.log, study.record.promoted
        trial = reference.trials[finished]
        for moment in (0, study.offered // 3, study.offered // 2):
            other = made()
            with pytest.raises(KilledError):
                other.run(2, kill_at=moment)
            other.ledger.finish(result(trial, "done", *study.curve(trial)), sweep="another")
            rows = table(other.run(2))
            assert rows[finished][3:5] == ("done", 6), "it counts as done here, too"
            assert [row for row in rows if row[0] != finished] == [r for r in table(reference) if r[0] != finished]
            assert other.record.promoted == promoted
            assert other.last.log == log


class TestExtension:
    @pytest.mark.parametrize("steps", [[1], [3], [4, 5], [9], [2, 7, 11]])
    def test_more_trials_keep_those_before_with_their_ends(self, steps: list[int]) -> None:
        study = Imagined(total=steps[0], points=(0.3, 0.7), window=3, block=4)
        before = table(study.run(2))
        for total in [*steps[1:], 14]:
            after = table(study.extended(total).run(5))
            assert after[: len(before)] == before
            before = after
        assert len(before) == 14

    def test_confirmations_of_trials_that_were_the_best_stay(self) -> None:
        study = Imagined("none", 4, points=(0.9, 0.95), window=2, confirm=(1, 2))
        first = table(study.run(2))
        second = table(study.extended(24).run(2))
        confirmed = [row[0] % CONFIRMING for row in second if row[1] == "confirm"]
        assert {row[0] for row in first} < {row[0] for row in second}
        assert len(confirmed) == 2, "or the best did not change, and this says nothing"


class TestConfirmation:
    def test_the_best_are_repeated_with_further_seeds_when_the_search_is_over(self) -> None:
        study = Imagined("none", 6, window=3, runs=1, confirm=(2, 3))
        queue = study.queue()
        assert queue.planned == 7 + 4
        rows = table(study.run(2))
        search = [row for row in rows if row[1] == "optuna"]
        best = sorted(search, key=lambda row: -(row[5] or 0))[:2]
        confirmed = {row[0]: row[2] for row in rows if row[1] == "confirm"}
        assert confirmed == {
            CONFIRMING * repeat + row[0]: row[2] | {"train.seed": repeat} for row in best for repeat in (1, 2)
        }

    def test_nothing_is_confirmed_while_a_trial_may_still_be_the_best(self) -> None:
        queue = Imagined("none", 2, window=9, confirm=(1, 2)).queue()
        take(queue)
        end(queue, 0, 0.9)
        assert queue.next() is None
        assert not queue.exhausted
        end(queue, 1, 0.5)
        assert numbers(take(queue)) == [CONFIRMING]
        assert (queue.exhausted, queue.planned) == (True, 3)

    def test_without_a_trial_that_is_done_there_is_nothing_to_confirm(self) -> None:
        queue = Imagined("none", 2, window=9, confirm=(1, 2)).queue()
        for trial in take(queue):
            end(queue, trial.number, status="failed")
        assert queue.next() is None
        assert (queue.exhausted, queue.planned) == (True, 2)

    def test_of_trials_with_the_same_values_one_is_confirmed(self) -> None:
        study = Imagined("none", 6, window=3, confirm=(3, 2), sampler=lambda: EveryWord(1))
        assert [row[0] for row in table(study.run(2)) if row[1] == "confirm"] == [CONFIRMING]


class TestImages:
    """Tests trials whose images are still being crafted."""

    def test_listed_runs_whose_images_are_not_there_are_passed_over(self) -> None:
        queue = Imagined(total=0, runs=2).queue(ready=lambda number: number == 1)
        assert numbers(take(queue)) == [1]
        assert not queue.exhausted, "one is still to come"
        queue.ready = lambda number: True
        assert numbers(take(queue)) == [0]
        assert queue.exhausted

    def test_a_search_waits_for_its_images_while_listed_runs_run(self) -> None:
        queue = Imagined(**MEDIAN).queue(ready=lambda number: number < 1)
        assert [trial.source for trial in take(queue)] == ["baseline"]
        assert queue.sampler.log == []  # type: ignore[attr-defined]
        queue.ready = lambda number: True
        assert [trial.source for trial in take(queue)] == ["paper", "paper", "optuna"]


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    total = draw(st.integers(0, 24))
    values = draw(st.sampled_from([10**6, 10**6, 9]))
    return {
        "pruner": draw(st.sampled_from(["halving", "halving", "median", "none"])),
        "total": total,
        "rungs": sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3))),
        "window": draw(st.integers(1, 30)),
        "block": draw(st.integers(2, 9)),
        "points": draw(st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), max_size=3)),
        "runs": draw(st.integers(0, 2)),
        "confirm": draw(st.sampled_from([(0, 1), (2, 3)])),
        "fails": draw(st.dictionaries(st.integers(0, total + 4), st.integers(0, 5), max_size=4)),
        "sampler": lambda: EveryWord(values),
    }


def kept(rows: list[Row]) -> Iterator[Row]:
    return (row for row in rows if row[1] != "confirm")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    options=studies(),
    kills=st.lists(st.integers(0, 200), max_size=5),
    slots=st.lists(st.integers(1, 64), min_size=1, max_size=3),
    lengths=st.lists(st.integers(0, 99), min_size=1, max_size=3),
    begun=st.integers(0, 24),
)
def test_whatever_runs_at_a_time_and_is_killed_the_table_is_the_same(
    options: dict[str, Any], kills: list[int], slots: list[int], lengths: list[int], begun: int
) -> None:
    whole, killed = Imagined(**options), Imagined(**options)
    reference = table(whole.run(1))
    assert all(row[3] in ENDED for row in reference)
    assert table(killed.killed(kills, slots, lengths)) == reference
    assert killed.last.log == whole.last.log
    assert killed.record.promoted == whole.record.promoted
    extended = Imagined(**options | {"total": min(begun, options["total"])})
    before = list(kept(table(extended.run(slots[0], lengths[0]))))
    after = list(kept(table(extended.extended(options["total"]).killed(kills, slots, lengths))))
    assert after[: len(before)] == before
