"""Tests how often a trial is started again."""

from __future__ import annotations

from orchestration.run.retries import DEATHS, SHORTAGES, Retries, Retry

RAY_ENDED_IT = "Task was killed due to the node running low on memory: 22GB of 23GB, over the threshold"


def test_deaths_with_an_epoch_between_them_are_no_end() -> None:
    retries = Retries()
    for epoch in range(20):
        assert retries.died(0, epoch) == Retry("death", f"the worker died after epoch {epoch}")


def test_a_trial_that_gets_nowhere_is_given_up() -> None:
    retries = Retries()
    verdicts = [retries.died(0, 2) for _ in range(DEATHS)]
    assert [isinstance(verdict, Retry) and verdict.again for verdict in verdicts] == [False, True, False]
    assert verdicts[-1] == "the worker died after epoch 2, 3 times (killed, or out of memory?)"


def test_trials_are_counted_apart() -> None:
    retries = Retries()
    assert all(isinstance(retries.died(number, 0), Retry) for number in range(10))


def test_an_epoch_starts_the_count_anew() -> None:
    retries = Retries()
    for _ in range(DEATHS - 1):
        retries.died(0, 1)
    assert retries.died(0, 2) == Retry("death", "the worker died after epoch 2")


def test_a_want_of_memory_is_tried_until_fewer_ran_beside_it() -> None:
    retries = Retries()
    error = "out of memory: MemoryError"
    assert retries.out_of_memory(0, error, fewer=True) == Retry("memory", error), "once more in any case"
    second = retries.out_of_memory(0, error, fewer=True)
    assert isinstance(second, str)
    assert second.startswith("out of memory")
    assert second.endswith("lower train.batch_size, or raise train.accumulate")
    times = [retries.out_of_memory(1, error, fewer=False) for _ in range(SHORTAGES)]
    assert [isinstance(verdict, Retry) for verdict in times] == [True, True, False]


def test_ray_says_that_a_node_was_low_on_memory() -> None:
    retries = Retries()
    retries.heard(0, RAY_ENDED_IT)
    assert retries.lacked_memory(1, 3) is None
    assert retries.lacked_memory(0, 3) == "out of memory on its node after epoch 3"
    assert retries.lacked_memory(0, 3) is None, "once"


def test_the_fault_of_a_gpu_is_a_death() -> None:
    why = "device fault: AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    assert Retries().died(0, 1, why) == Retry("death", f"the worker died after epoch 1 ({why})")


def test_what_was_heard_counts_once() -> None:
    retries = Retries()
    retries.heard(0, "RayTaskError: x")
    assert retries.died(0, 2) == Retry("death", "the worker died after epoch 2 (RayTaskError: x)")
    assert retries.died(0, 3) == Retry("death", "the worker died after epoch 3")


def test_an_error_of_the_worker_s_own_is_named() -> None:
    retries = Retries()
    retries.heard(0, "ray.exceptions.RayTaskError(OSError): ray::train()\n  File x\nOSError: no such device\n")
    assert retries.died(0, 1) == Retry("death", "the worker died after epoch 1 (OSError: no such device)")
    retries.heard(0, "The actor died unexpectedly.\nThe actor is dead because its worker process has died.")
    assert retries.died(0, 2) == Retry("death", "the worker died after epoch 2")
