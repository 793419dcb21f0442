"""Tests how often a trial is started again."""

from __future__ import annotations

import pytest

from orchestration.run.retries import DEATHS, Retries, Retry

RAY_ENDED_IT = "Task was killed due to the node running low on memory: 22GB of 23GB, over the threshold"


def test_deaths_with_an_epoch_between_them_are_no_end() -> None:
    retries = Retries()
    for epoch in range(20):
        assert retries.died(0, epoch) == Retry(False, f"the worker died after epoch {epoch}")


def test_a_trial_that_gets_nowhere_is_given_up_and_runs_among_fewer_before() -> None:
    retries = Retries()
    verdicts = [retries.died(0, 2) for _ in range(DEATHS)]
    assert [isinstance(verdict, Retry) and verdict.fewer for verdict in verdicts] == [False, True, False]
    assert verdicts[-1] == "the worker died after epoch 2, 3 times (killed, or out of memory?)"


def test_trials_are_counted_apart() -> None:
    retries = Retries()
    assert all(isinstance(retries.died(number, 0), Retry) for number in range(10))


def test_an_epoch_starts_the_count_anew() -> None:
    retries = Retries()
    for _ in range(DEATHS - 1):
        retries.died(0, 1)
    assert retries.died(0, 2) == Retry(False, "the worker died after epoch 2")


@pytest.mark.parametrize("kind", ["in the worker", "by Ray"])
def test_a_want_of_memory_is_tried_once_more_among_fewer(kind: str) -> None:
    retries = Retries()

    def once() -> Retry | str:
        if kind == "in the worker":
            return retries.out_of_memory(0, "out of memory: MemoryError")
        retries.heard(0, RAY_ENDED_IT)
        return retries.died(0, 3)

    first, second = once(), once()
    assert isinstance(first, Retry) and first.fewer
    assert isinstance(second, str)
    assert second.startswith("out of memory")
    assert second.endswith("lower train.batch_size, or raise train.accumulate")


def test_what_was_heard_counts_once() -> None:
    retries = Retries()
    retries.heard(0, RAY_ENDED_IT)
    retries.died(0, 3)
    assert retries.died(0, 3) == Retry(False, "the worker died after epoch 3")


def test_an_error_of_the_worker_s_own_is_named() -> None:
    retries = Retries()
    retries.heard(0, "ray.exceptions.RayTaskError(OSError): ray::train()\n  File x\nOSError: no such device\n")
    assert retries.died(0, 1) == Retry(False, "the worker died after epoch 1 (OSError: no such device)")
    retries.heard(0, "The actor died unexpectedly.\nThe actor is dead because its worker process has died.")
    assert retries.died(0, 2) == Retry(False, "the worker died after epoch 2")
