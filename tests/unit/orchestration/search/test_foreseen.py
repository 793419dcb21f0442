"""Tests the plan of a study against what the study then takes, with trainers that only sleep."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from erat.result import RunResult
from orchestration.search.driver import make_queue
from orchestration.search.launch import make_sampler
from orchestration.search.plan import foresee
from orchestration.search.queue import Queue
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as, with_settings
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial

EPOCHS, SECONDS, SLOTS, TRIALS = 9, 0.04, 8, 64  # seconds are of an epoch
SPACE = {"name": "mine", "about": "a test", "parameters": {"defense.eta": {"low": 0, "high": 1}}, "sampler": "random"}


def work(queue: Queue, changed: threading.Condition) -> None:
    """Run trials of a queue in one slot until there are no more; an epoch is a nap."""
    while True:
        with changed:
            while (trial := queue.next()) is None and not queue.exhausted:
                changed.wait(1)
            if trial is None:
                changed.notify_all()
                return
            queue.record(trial.number, replace(trial.so_far, status="running"))
        train(queue, trial, changed)


def train(queue: Queue, trial: Trial, changed: threading.Condition) -> None:
    random, status, epoch = Random(trial.number), "running", trial.epoch
    curve = [random.random() * number / EPOCHS for number in range(1, EPOCHS + 1)]
    while status == "running":
        time.sleep(SECONDS)
        epoch += 1
        with changed:
            if epoch == EPOCHS:
                status = "done"
            elif epoch == queue.pauses_after(trial.number):
                status = "paused"
            elif queue.stops(trial.number, epoch, max(curve[:epoch])):
                status = "stopped"
            past = curve[:epoch]
            result = RunResult(trial.cell, status, epoch, past[-1], max(past), train_seconds=epoch * SECONDS)
            queue.record(trial.number, replace(result, val_history=past))
            changed.notify_all()


@pytest.mark.parametrize(("pruner", "rungs"), [("none", None), ("halving", [3])], ids=["none", "halving"])
def test_the_time_is_within_a_fifth_of_what_it_takes(pruner: str, rungs: list[int] | None, tmp_path: Path) -> None:
    space = with_settings(parse_space(SPACE, "mine.yaml"), pruner=pruner, rungs=rungs)
    short = {"train.epochs": EPOCHS, "defense.warmup_epochs": 1, "defense.ramp_epochs": 1}
    spec = begin_as(StudySpec(space, "demo", short), SLOTS, TRIALS)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    least, most = foresee("mine", spec, TRIALS, ledger, SLOTS, lambda config: EPOCHS * SECONDS)
    assert least == most

    queue = make_queue(spec, TRIALS, "mine", ledger, make_sampler(spec), on_proposed=lambda trial: None)
    changed = threading.Condition()
    slots = [threading.Thread(target=work, args=(queue, changed)) for _ in range(SLOTS)]
    began = time.monotonic()
    for slot in slots:
        slot.start()
    for slot in slots:
        slot.join(60)
    took = time.monotonic() - began
    assert len(queue.trials) == TRIALS
    assert all(trial.ended for trial in queue.trials.values())
    assert sum(trial.epoch for trial in queue.trials.values()) * SECONDS == pytest.approx(least.training)
    assert 0.8 * took <= least.seconds <= 1.2 * took
