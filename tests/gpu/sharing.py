"""Runs several trials on one device, side by side and one after the other, each in a process of its own."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import torch
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import start_processes

from erat.devices import arithmetic
from erat.engine.trainer import Trainer
from tests.gpu.setting import Setting, steps, waited

TRIALS = 4
STEPS = 25  # updates of each trial in each round


def compare(setting: Setting) -> tuple[float, float]:
    """Return the seconds that all trials take (side by side, one after the other), after their first updates."""
    context = get_context("spawn")
    barrier, answers = context.Barrier(TRIALS), context.SimpleQueue()
    start_processes(_trial, (setting, barrier, answers), nprocs=TRIALS, start_method="spawn")
    together, in_turn = answers.get()
    return together, in_turn


def _trial(number: int, setting: Setting, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    batch, count = (4, 2) if setting.quick else (64, STEPS)
    options = {"train.channels_last": True, "train.precision": "bf16", "train.seed": number}
    config = setting.config(
        options | {"model.name": setting.network("resnet18"), "train.batch_size": batch, "defense.steps": 7}
    )
    with arithmetic(setting.device, config.train.precision):
        made = steps(Trainer(config, setting.data(2 * batch * (4 if setting.quick else 40))))
        for _ in islice(made, 3):
            pass

        def some() -> None:
            for _ in islice(made, count):
                pass
            waited(setting.device)

        waited(setting.device)
        barrier.wait()
        began = time.perf_counter()
        some()
        barrier.wait()
        together = time.perf_counter() - began
        began = time.perf_counter()
        for turn in range(TRIALS):
            if turn == number:
                some()
            barrier.wait()
        if number == 0:
            answers.put((together, time.perf_counter() - began))
