"""Compares two data-parallel workers with one: the same ERAT step on the same global batch, by wall clock."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from erat.config import build
from erat.data.types import CorruptedSet, ImageSet
from erat.defenses.base import Clock, Phase, Update
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from tests.benchmarks.augment import cifar_shaped
from tests.benchmarks.harness import Comparison, Pairs, Work, keep_freed_memory, timed

BATCH = 128  # labelled, and as many unlabelled
WORKERS = 2
AFTER_WARMUP = Clock(20)


class Round(NamedTuple):
    """Seconds of a step of one worker, of two, and of two that do not communicate; `busy` means processor time."""

    one: float
    two: float
    apart: float
    one_busy: float
    two_busy: float  # of the busier worker


def comparisons() -> Iterator[Comparison]:
    """Yield comparisons that show how much faster two workers are.

    Separate lines show what a busy machine leaves of that, and what communication takes. The figures are wall-clock
    times, and so are valid only on a machine with two free cores.
    """
    measured = cache(rounds)
    one, two = "step of one worker", "step of two workers"
    setting = f"{BATCH} + {BATCH} images of 32 px, small network, one thread each, gloo; by wall clock"

    def columns(ours: str, reference: str) -> Callable[[int], Pairs]:
        return lambda repeats: [(getattr(row, ours), getattr(row, reference)) for row in measured(repeats)]

    yield Comparison(one, two, 1.8, note=setting, at_least=True, pairs=columns("one", "two"))
    yield Comparison(
        one, two, None, note="by processor time of the busier worker", pairs=columns("one_busy", "two_busy")
    )
    yield Comparison(
        one, "half a step on each, no talk", None, note="what the machine allows", pairs=columns("one", "apart")
    )


def rounds(repeats: int) -> list[Round]:
    """Measure all three alternately, in one pair of processes."""
    with TemporaryDirectory() as folder:
        start_processes(work, (Path(folder), repeats), nprocs=WORKERS, start_method="spawn")
        return [Round(*row) for row in torch.load(Path(folder) / "seconds.pt").tolist()]


def work(rank: int, folder: Path, repeats: int) -> None:
    """Measure the steps in one of the two processes; the time of the slower process counts."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", timedelta(seconds=300), world_size=WORKERS, rank=rank
    )
    one, two, half = _step(Ranks(), BATCH), _step(Ranks.current(), BATCH), _step(Ranks(), BATCH // WORKERS)
    rows = []
    for _ in range(repeats + 1):
        dist.barrier()
        alone = _both_clocks(one if rank == 0 else lambda: None)
        dist.barrier()
        together = _both_clocks(two)  # its all-reduce ends for both at once
        dist.barrier()
        apart = timed(lambda: (half(), dist.barrier()))
        rows.append((alone[0], together[0], apart, alone[1], together[1]))
    seconds = torch.tensor(rows[1:], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    if rank == 0:
        torch.save(seconds, folder / "seconds.pt")
    dist.barrier()
    dist.destroy_process_group()


def _both_clocks(work: Work) -> tuple[float, float]:
    """Return the seconds that a call takes by the wall clock and of the processor."""
    started = time.process_time()
    wall = timed(work)
    return wall, time.process_time() - started


def _step(ranks: Ranks, batch_size: int) -> Work:
    overrides = {
        "model.name": "small",
        "corruption.data": "none",
        "corruption.labels": "none",
        "train.batch_size": batch_size,
        "train.workers": ranks.workers,
    }
    data = ImageSet(cifar_shaped(4 * BATCH), torch.arange(4 * BATCH) % 10, tuple("0123456789"))
    few = data.take(torch.arange(10))
    made = Trainer(build("paper", overrides), CorruptedSet(data, data.labels, few, few), ranks)
    made.defense.train()
    batch, _ = next(made._batches.of(Phase(*torch.arange(4 * BATCH).chunk(2)), AFTER_WARMUP))
    return lambda: made._update(batch, AFTER_WARMUP, Update())
