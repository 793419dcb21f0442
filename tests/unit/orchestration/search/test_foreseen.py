"""Tests the plan of a study against what the study then takes: on a clock of its own, and with trainers that sleep."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from erat.result import RunResult
from orchestration.search.driver import make_queue
from orchestration.search.launch import make_sampler
from orchestration.search.plan import Foreseen, foresee
from orchestration.search.queue import Queue
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as, with_settings
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial

EPOCHS, SLOTS, TRIALS = 9, 8, 64
SPACE = {"name": "mine", "about": "a test", "parameters": {"defense.eta": {"low": 0, "high": 1}}, "sampler": "random"}

with_and_without_rungs = pytest.mark.parametrize(
    ("pruner", "rungs"), [("none", None), ("halving", [3])], ids=["none", "halving"]
)


def started(queue: Queue) -> Trial | None:
    """Begin the next trial of a queue, if it has one."""
    if (trial := queue.next()) is not None:
        queue.record(trial.number, replace(trial.so_far, status="running"))
    return trial


def advanced(queue: Queue, trial: Trial, seconds: float) -> Trial | None:
    """Record a further epoch of a trial, and return the trial unless it has come to an end or to a rung."""
    random, status, epoch = Random(trial.number), "running", queue.trials[trial.number].epoch + 1
    curve = [random.random() * number / EPOCHS for number in range(1, EPOCHS + 1)]
    if epoch == EPOCHS:
        status = "done"
    elif epoch == queue.pauses_after(trial.number):
        status = "paused"
    elif queue.stops(trial.number, epoch, max(curve[:epoch])):
        status = "stopped"
    past = curve[:epoch]
    result = RunResult(trial.cell, status, epoch, past[-1], max(past), train_seconds=epoch * seconds)
    queue.record(trial.number, replace(result, val_history=past))
    return trial if status == "running" else None


def taken(queue: Queue, seconds: float) -> float:
    """Run a queue in all slots on a clock of its own, and return its time at the end."""
    now, waiting = 0.0, list(range(SLOTS))
    events: list[tuple[float, int, Trial]] = []  # when an epoch ends, its slot, its trial
    while True:
        while waiting and (trial := started(queue)) is not None:
            heapq.heappush(events, (now + seconds, waiting.pop(), trial))
        if not events:
            return now
        now, slot, trial = heapq.heappop(events)
        if advanced(queue, trial, seconds) is None:
            waiting.append(slot)
        else:
            heapq.heappush(events, (now + seconds, slot, trial))


class Sleepers:
    """Slots that are threads, in which an epoch is a nap.

    Attributes:
        wall, cpu: seconds that the queue took between the naps, and seconds of a core that it was given for that.
    """

    def __init__(self, queue: Queue, seconds: float) -> None:
        self.queue, self.seconds = queue, seconds
        self.changed = threading.Condition()
        self.wall = self.cpu = 0.0

    def run(self) -> float:
        """Run the queue to its end, and return the seconds that this took."""
        slots = [threading.Thread(target=self.work) for _ in range(SLOTS)]
        began = time.monotonic()
        for slot in slots:
            slot.start()
        for slot in slots:
            slot.join(200)
        return time.monotonic() - began

    def work(self) -> None:
        while (trial := self.next()) is not None:
            running: Trial | None = trial
            while running is not None:
                time.sleep(self.seconds)
                with self.changed:
                    running = self.measured(partial(advanced, self.queue, trial, self.seconds))
                    self.changed.notify_all()

    def next(self) -> Trial | None:
        with self.changed:
            while (trial := self.measured(partial(started, self.queue))) is None and not self.queue.exhausted:
                self.changed.wait(1)
            if trial is None:
                self.changed.notify_all()
            return trial

    def measured(self, call: Callable[[], Trial | None]) -> Trial | None:
        wall, cpu = time.monotonic(), time.thread_time()
        try:
            return call()
        finally:
            self.wall, self.cpu = self.wall + time.monotonic() - wall, self.cpu + time.thread_time() - cpu


def planned(pruner: str, rungs: list[int] | None, seconds: float, folder: Path) -> tuple[Foreseen, Queue]:
    """Return the plan of a study whose epochs take so many seconds, and its queue, which has not begun."""
    space = with_settings(parse_space(SPACE, "mine.yaml"), pruner=pruner, rungs=rungs)
    short = {"train.epochs": EPOCHS, "defense.warmup_epochs": 1, "defense.ramp_epochs": 1}
    spec = begin_as(StudySpec(space, "demo", short), SLOTS, TRIALS)
    ledger = Ledger(folder / "ledger.jsonl")
    least, most = foresee("mine", spec, TRIALS, ledger, SLOTS, lambda config: EPOCHS * seconds)
    assert least == most
    return least, make_queue(spec, TRIALS, "mine", ledger, make_sampler(spec), on_proposed=lambda trial: None)


def check(queue: Queue, plan: Foreseen, seconds: float) -> None:
    """Assert that all trials have come to their ends, after as much training as was foreseen."""
    assert len(queue.trials) == TRIALS
    assert all(trial.ended for trial in queue.trials.values())
    assert sum(trial.epoch for trial in queue.trials.values()) * seconds == pytest.approx(plan.training)


@with_and_without_rungs
def test_the_time_is_what_trials_of_that_length_take(pruner: str, rungs: list[int] | None, tmp_path: Path) -> None:
    plan, queue = planned(pruner, rungs, 3.0, tmp_path)
    took = taken(queue, 3.0)
    check(queue, plan, 3.0)
    assert 0.8 * took <= plan.seconds <= 1.2 * took


@pytest.mark.slow
@with_and_without_rungs
def test_the_time_is_within_a_fifth_of_what_it_takes(pruner: str, rungs: list[int] | None, tmp_path: Path) -> None:
    """On a machine so busy that the queue is not given the core that it asks for, this says nothing."""
    plan, queue = planned(pruner, rungs, 0.3, tmp_path)
    sleepers = Sleepers(queue, 0.3)
    took = sleepers.run()
    check(queue, plan, 0.3)
    if took > 1.2 * plan.seconds and sleepers.wall > 1.5 * sleepers.cpu:
        pytest.skip(f"other programs make this one {sleepers.wall / sleepers.cpu:.1f} times as slow")
    assert 0.8 * took <= plan.seconds <= 1.2 * took
