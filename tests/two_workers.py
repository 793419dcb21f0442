"""Runs two data-parallel processes for tests, and provides networks on which two processes compute what one does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.models.resnet import resnet18
from erat.models.small import small
from erat.registry import BACKBONES
from tests.forks import prepared
from tests.precise import in_double
from tests.threads import THREADS

Record = dict[str, Any]


def smooth(num_classes: int, channels: int, image_size: int, width: int = 8) -> nn.Module:
    """Build two convolutions with tanh, the second with `width` channels.

    It has no batch statistics, which each of two workers would compute from half a batch, and no kinks. A ReLU whose
    input is 1e-8 to either side of zero may be on on one processor and off on another. That turns the gradient that PGD
    follows and with it, some steps later, the third digit of the loss. Smooth networks agree to 1e-6.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, width, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(width * (image_size // 2) ** 2, num_classes),
    )


OWN_MODELS = {
    "smooth": smooth,
    "small in double": in_double(small),
    "resnet18 in double": in_double(resnet18),
}


@contextmanager
def own_models_are_known() -> Iterator[None]:
    """Register `model.name=smooth` and the other networks of `OWN_MODELS` during the block."""
    for name, build in OWN_MODELS.items():
        BACKBONES.add(name, build)
    try:
        yield
    finally:
        for name in OWN_MODELS:
            del BACKBONES._targets[name], BACKBONES._loaded[name]


@contextmanager
def joined(rank: int, folder: Path, meeting: str | None = None, interface: str = "lo") -> Iterator[CorruptedSet]:
    """Join the process group in one of the two processes, and yield the data.

    Args:
        rank: number of this process, 0 or 1.
        folder: the folder of `on_two_workers`.
        meeting: URL at which the processes find each other; none: a file in the folder.
        interface: the network interface through which they communicate.
    """
    torch.set_num_threads(THREADS)
    if interface in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    meeting = meeting or f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=2, rank=rank)
    with own_models_are_known():
        yield torch.load(folder / "data.pt", weights_only=False)
    dist.barrier()
    dist.destroy_process_group()


def on_two_workers(
    work: Callable[..., None], folder: Path, data: CorruptedSet, configs: Mapping[str, RunConfig], *more: Any
) -> list[Record]:
    """Run `work(rank, folder, *more)` in two processes and return what each wrote to RANK.pt in `folder`.

    `work` finds the configurations in `folder` as NAME.json, and the data as data.pt.
    """
    torch.save(data, folder / "data.pt")
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(config.model_dump_json())
    start_processes(work, (folder, *more), nprocs=2, start_method=prepared().get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def configurations(
    make: Callable[..., RunConfig], runs: Mapping[str, Mapping[str, Any]], workers: int, **shared: Any
) -> dict[str, RunConfig]:
    """Return the configurations of all runs on so many workers, with the options that they share."""
    with own_models_are_known():
        return {name: make({"train.workers": workers, **shared, **options}) for name, options in runs.items()}


def alone(
    train: Callable[[RunConfig, CorruptedSet], Record], configs: Mapping[str, RunConfig], data: CorruptedSet
) -> Callable[[str], Record]:
    """Return a function that trains a run in this process when it is first asked for it, and remembers the record."""

    @cache
    def of(name: str) -> Record:
        with own_models_are_known():
            return train(configs[name], data)

    return of
