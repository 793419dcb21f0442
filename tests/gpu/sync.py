"""Tests that no update of any defense makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from erat.defenses.base import Batch, Phase, Update
from erat.devices import arithmetic
from erat.engine.trainer import Trainer
from erat.registry import DEFENSES
from tests.gpu.setting import CLOCK, Row, Rows, Setting, tried

WARM, WATCHED = 3, 3  # updates: the first ones fill torch's caches of pinned memory, which waits


def rows(setting: Setting) -> Rows:
    for name in DEFENSES.names():
        title = f"{name}: an update waits for nothing"
        yield tried(setting, title, partial(_on_a_gpu if setting.cuda else _without_values, setting, name, title))


def _trainer(setting: Setting, name: str) -> Trainer:
    options = {"defense.name": name, "model.name": setting.network("resnet18"), "train.batch_size": 16}
    return Trainer(setting.config(options), setting.data(16 * 12))


def _phase(trainer: Trainer) -> Phase:
    """Return the first phase of the defense's plan; if the defense selects, the first half keep their labels."""
    phase = trainer.plan(CLOCK).phases[0]
    if phase.unlabelled is None:
        return phase
    first, second = torch.arange(len(trainer.data.train)).chunk(2)
    return replace(phase, labelled=first, unlabelled=second)


def _on_a_gpu(setting: Setting, name: str, title: str) -> Row:
    with arithmetic(setting.device, "fp32"):
        trainer = _trainer(setting, name)
        phase = _phase(trainer)
        made = trainer.steps(replace(trainer.plan(CLOCK), phases=(phase,)), CLOCK)
        for _ in islice(made, WARM):
            pass
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            watched = sum(1 for _ in islice(made, WATCHED))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Row(title, f"{watched} updates under set_sync_debug_mode", watched == WATCHED)


def _without_values(setting: Setting, name: str, title: str) -> Row:
    """Compute the losses and gradients of an update on torch's meta device, where whatever asks for a value fails."""
    trainer = _trainer(setting, name)
    phase = _phase(trainer)
    batch, at = next(trainer._batches.of(phase, CLOCK))
    trainer.defense.to("meta")
    made = list(_gradients(trainer, _on_meta(batch), at, phase.updates))
    everywhere = {grad.device.type for grad in made}
    return Row(title, f"{len(made)} gradients on the meta device", everywhere == {"meta"})


def _on_meta(batch: Batch) -> Batch:
    names = ("images", "labels", "indices", "unlabelled", "unlabelled_indices")
    return replace(batch, **{name: getattr(batch, name).to("meta") for name in names})


def _gradients(trainer: Trainer, batch: Batch, at: Any, updates: tuple[Update, ...]) -> Iterator[Tensor]:
    for update in updates:
        terms = trainer.defense.loss(replace(batch, update=update.name), at)
        grads = torch.autograd.grad(terms.total, trainer._parameters(update), allow_unused=True)
        yield from (grad for grad in grads if grad is not None)
