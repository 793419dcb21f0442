"""Run a queue on a clock of its own: the queue decides as it does on a cluster, and only the trainings are imagined.

The plan of a study (`--dry-run`), the benchmark of the search and the tests of its decisions use it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from erat.result import RunResult
from orchestration.search.queue import Queue
from orchestration.study.trial import Trial


@dataclass(frozen=True)
class Course:
    """How a simulated study went. Times are in the unit of the epochs' lengths.

    Attributes:
        time: from the beginning to the end of the last trial.
        work: sum of the lengths of all epochs that were trained.
        slots: number of trials that ran at a time.
        trials: the trials as they ended, in the order of their numbers.
        end_of: number of a trial -> when it ended.
    """

    time: float
    work: float
    slots: int
    trials: Sequence[Trial]
    end_of: dict[int, float]

    @property
    def use(self) -> float:
        """Return the share of the slots' time in which a trial ran, in [0, 1]."""
        return self.work / (self.slots * self.time) if self.time else 0.0


def simulate(
    queue: Queue,
    slots: int,
    seconds: Callable[[Trial], float],
    accuracies: Callable[[Trial], Sequence[float]],
    *,
    overhead: Callable[[Trial], float] = lambda trial: 0.0,
    following: Callable[[Trial, int], int] = lambda trial, epoch: epoch + 1,
) -> Course:
    """Run all trials of a queue, which must not use a pool, and return how the study went.

    Args:
        queue: a queue that has not begun.
        slots: number of trials that run at a time.
        seconds: length of an epoch of a trial.
        accuracies: validation accuracy after each epoch of a trial, in [0, 1]. If there are fewer than the trial has
            epochs, it fails in the epoch that follows.
        overhead: time that a trial needs each time it starts or goes on, before its first epoch.
        following: trial and number of its epochs so far -> the next epoch after which anything may be decided. Those
            between are passed over, which saves time.
    """
    now, work, free = 0.0, 0.0, slots
    events: list[tuple[float, int, int]] = []  # when an epoch ends, number of the trial, epoch
    end_of: dict[int, float] = {}

    def start_what_may() -> None:
        nonlocal free
        while free and (trial := queue.next()) is not None:
            free -= 1
            queue.record(trial.number, replace(trial.so_far, status="running"))
            go_on(trial, now + overhead(trial))

    def go_on(trial: Trial, begin: float) -> None:
        epoch = following(trial, trial.epoch)
        heapq.heappush(events, (begin + (epoch - trial.epoch) * seconds(trial), trial.number, epoch))

    start_what_may()
    while events:
        now, number, epoch = heapq.heappop(events)
        trial = queue.trials[number]
        work += (epoch - trial.epoch) * seconds(trial)
        curve = accuracies(trial)
        status = _status(queue, number, epoch, curve)
        result = _result(trial, status, curve[:epoch], seconds(trial))
        queue.record(number, result)
        if status == "running":
            go_on(queue.trials[number], now)
            continue
        if status != "paused":
            end_of[number] = now
        free += 1
        start_what_may()
    assert queue.exhausted, "every trial has come to its end"
    trials = [queue.trials[number] for number in sorted(queue.trials)]
    return Course(now, work, slots, trials, end_of)


def _status(queue: Queue, number: int, epoch: int, curve: Sequence[float]) -> str:
    if epoch > len(curve):
        return "failed"
    if epoch == queue.trials[number].epochs:
        return "done"
    if epoch == queue.pauses_after(number):
        return "paused"
    return "stopped" if queue.stops(number, epoch, max(curve[:epoch])) else "running"


def _result(trial: Trial, status: str, curve: Sequence[float], seconds: float) -> RunResult:
    if not curve:
        return RunResult(trial.cell, status)
    last, best, took = curve[-1], max(curve), seconds * len(curve)
    return RunResult(trial.cell, status, len(curve), last, best, last, best, took, val_history=list(curve))
