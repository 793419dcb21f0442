"""Compares three updates on the device with the CPU's, for every defense, and each switch of speed with eager steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from erat.config import RunConfig
from erat.data import random
from erat.data.types import CorruptedSet
from erat.defenses.base import Clock, EpochPlan
from erat.devices import arithmetic
from erat.engine.memory import DataShape, predict
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.registry import DEFENSES
from tests.gpu.setting import CLOCK, Row, Rows, Setting, tried

UPDATES = 3
# The bounds of (loss, movement): the largest relative difference of a loss, and the distance between the movements of
# all weights over three updates, as a share of the movement. An attack takes signs of gradients, so rounding grows.
# On one processor, kernels that add in another order (channels last) differ by at most 1e-5 and 0.02 over all defenses
# on the network `small`, and bf16 by 2e-4 and 0.1; a deeper network has more to round.
FLOAT32 = (0.01, 0.1)
DEEP = (0.02, 0.3)
BFLOAT16 = (0.1, 0.7)
SWITCHES: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "bf16": ({"train.precision": "bf16"}, BFLOAT16),
    "tf32": ({"train.precision": "tf32"}, BFLOAT16),
    "channels_last": ({"train.channels_last": True}, DEEP),
    "checkpoint_activations": ({"train.checkpoint_activations": True}, DEEP),
    "compile": ({"train.compile": True}, FLOAT32),
    "cuda_graphs": ({"train.compile": True, "train.cuda_graphs": True}, FLOAT32),
}
ONLY_CUDA = ("tf32", "cuda_graphs")
MEMORY_BOUND = 0.25  # of the measured peak: rounding of the allocator, workspaces of convolutions


def rows(setting: Setting) -> Rows:
    for name in DEFENSES.names():
        yield tried(setting, f"{name}: three updates as on the CPU", partial(_as_on_the_cpu, setting, name))
    yield tried(setting, "selection as on the CPU", partial(_selection, setting))
    for name in SWITCHES:
        title = f"{name}: three updates as eager ones"
        left_out = setting.only_cuda(title) if name in ONLY_CUDA else None
        yield left_out or tried(setting, title, partial(_as_eager, setting, name, title))
    for name in DEFENSES.names():
        yield tried(setting, f"{name}: resumed to the same bits", partial(_resumed, setting, name))
    for name, options in {
        "fp32": {},
        "bf16": {"train.precision": "bf16"},
        "checkpoint_activations": {"train.checkpoint_activations": True},
    }.items():
        title = f"memory predicted, {name}"
        yield setting.only_cuda(title) or tried(setting, title, partial(_memory, setting, title, options))


# --- three updates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """What three updates did: their losses, how far they moved each weight, the plan, and what torch warned of."""

    losses: Tensor
    moved: Tensor
    plan: EpochPlan
    warned: list[str]


def three(config: RunConfig, data: CorruptedSet, plan: EpochPlan | None = None) -> Steps:
    """Make three updates in a new trainer, on its own plan or on that of another device."""
    with ExitStack() as stack:
        stack.enter_context(arithmetic(config.resources.device, config.train.precision))
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        trainer = Trainer(config, data)
        before = _weights(trainer)
        own = trainer.plan(CLOCK)
        made = [terms.figures()["total"] for _, terms in islice(trainer.steps(plan or own, CLOCK), UPDATES)]
        return Steps(
            torch.stack(made).double().cpu(), _weights(trainer) - before, own, [str(one.message) for one in warned]
        )


def _weights(trainer: Trainer) -> Tensor:
    with torch.no_grad():
        return torch.cat([value.double().cpu().flatten() for value in trainer.defense.networks.parameters()])


def compared(name: str, ours: Steps, theirs: Steps, bounds: tuple[float, float]) -> Row:
    """Return the line that says how far three updates are from those of a reference."""
    loss = float(((ours.losses - theirs.losses).abs() / theirs.losses.abs().clamp_min(0.1)).max())
    movement = float((ours.moved - theirs.moved).norm() / theirs.moved.norm())
    kept = loss <= bounds[0] and movement <= bounds[1] and float(theirs.moved.norm()) > 0
    return Row(
        name,
        f"loss {loss:.1g} (at most {bounds[0]:g}), movement {movement:.1g} (at most {bounds[1]:g})",
        kept,
        {"loss difference": loss, "movement difference": movement},
    )


def host_draws() -> Any:
    """Let a GPU take the draws of the CPU, so that both make the same updates."""
    return mock.patch.object(random, "ON_DEVICE", ())


def _as_on_the_cpu(setting: Setting, name: str) -> Row:
    options = {"defense.name": name, "model.name": "small", "train.batch_size": 16 if setting.quick else 32}
    data = setting.data(96 if setting.quick else 192)
    with host_draws():
        theirs = three(setting.config(options, "cpu"), data)
        ours = three(setting.config(options), data, theirs.plan)
    return compared(f"{name}: three updates as on the CPU", ours, theirs, FLOAT32)


def _selection(setting: Setting) -> Row:
    data, chosen = setting.data(400 if setting.quick else 2000), []
    for device in ("cpu", setting.device):
        config = setting.config({"model.name": "small"}, device)
        with arithmetic(device, "fp32"):
            chosen.append(Trainer(config, data).plan(Clock(CLOCK.epoch)).selected)
    mask, reference = chosen
    assert mask is not None and reference is not None, "ERAT selects after its warm-up"
    same = float((mask == reference).double().mean())
    return Row("selection as on the CPU", f"{same:.2%} (at least 99 %)", same >= 0.99, {"same": same})


def _as_eager(setting: Setting, name: str, title: str) -> Row:
    options, bounds = SWITCHES[name]
    # Compiling takes minutes for a large network, which the part `throughput` does. Only ResNets have blocks.
    model = {"compile": "small", "cuda_graphs": "small", "checkpoint_activations": "resnet18"}.get(
        name, setting.network("resnet18")
    )
    basis = {"model.name": model, "train.batch_size": 4 if setting.quick else 32, "defense.random_start": True}
    data = setting.data(16 if setting.quick else 192)
    theirs = three(setting.config(basis), data)
    ours = three(setting.config(basis | options), data, theirs.plan)
    row = compared(title, ours, theirs, bounds)
    gave_up = [said for said in ours.warned if "uncompiled" in said]
    return Row(title, gave_up[0], False, row.numbers) if gave_up else row


# --- resume ----------------------------------------------------------------------------------------------------------


def _resumed(setting: Setting, name: str) -> Row:
    """Train two epochs at once, in two trainers, and in one that is told to leave inside each epoch."""
    options = {"defense.name": name, "model.name": "small", "train.batch_size": 8, "train.epochs": 2}
    config, data = setting.config(options), setting.data(40 if setting.quick else 80)
    with arithmetic(setting.device, "fp32"), TemporaryDirectory() as folder:
        whole = Trainer(config, data)
        list(whole.run())
        next(Trainer(config, data, folder=Path(folder) / "cut").run())
        cut = Trainer(config, data, folder=Path(folder) / "cut")
        list(cut.run())
        left = _often_left(lambda told: Trainer(config, data, None, Path(folder) / "left", told))
    differing = [
        key
        for other in (cut, left)
        for key, value in whole.defense.state_dict().items()
        if not torch.equal(value, other.defense.state_dict()[key])
    ]
    title = f"{name}: resumed to the same bits"
    if differing:
        return Row(title, f"{len(differing)} tensors differ, {differing[0]} first", False)
    return Row(title, "after an epoch and inside one", True)


def _often_left(make: Callable[[Callable[[], bool]], Trainer]) -> Trainer:
    """Train in trainers that are told to leave after three batches each, until one comes to the end."""
    while True:
        asked = iter([False] * 3 + [True] * 100)
        trainer = make(partial(next, asked))
        try:
            list(trainer.run())
            return trainer
        except Interrupted:
            continue


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(setting: Setting, title: str, options: dict[str, Any]) -> Row:
    config = setting.config({"model.name": "resnet18", "train.epochs": 1} | options)
    data = setting.data(400)  # so that a full batch keeps its labels
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with arithmetic(setting.device, config.train.precision):
        list(Trainer(config, data).run())
    measured = torch.cuda.max_memory_allocated() - before
    shape = DataShape(len(data.train), len(data.val), len(data.test), 3, setting.size, data.train.num_classes)
    predicted = predict(config, shape).total
    ratio = predicted / measured
    return Row(
        title,
        f"{predicted / 2**20:.0f} MB for {measured / 2**20:.0f} MB, {ratio:.2f} (within {MEMORY_BOUND:g} of 1)",
        abs(ratio - 1) <= MEMORY_BOUND,
        {"predicted MB": predicted / 2**20, "measured MB": measured / 2**20},
    )
