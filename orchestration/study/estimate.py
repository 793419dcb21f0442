"""What a run will need: time, from what like runs took, else from a short calibration on this machine; and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from math import prod
from statistics import median
from typing import Any

import torch

from erat.config import RunConfig, build
from erat.data.loading import load
from erat.data.types import CorruptedSet
from erat.engine.memory import MemoryEstimate, data_shape, predict
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.training import CPU, device_kind, threads
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec

CALIBRATION_STEPS = 3
RECORD_BYTES = 150_000  # of a run, beside its weights: curves, selection, its part of ledger and tracking database
Signature = tuple[Any, ...]


class History:
    """What an epoch took in the finished runs of a ledger, by what its time depends on and by what it ran on.

    Results that do not say what they were trained on come of before that was written down. They are left out: a
    calibration takes seconds, and a guess may be wrong by a factor of fifty.

    Args:
        specs: specifications that are at hand already, by the sweeps' names.
        on_ray: whether the runs to be timed go through Ray, which hides every GPU that a run does not ask for.
    """

    def __init__(self, ledger: Ledger, specs: Mapping[str, StudySpec] | None = None, *, on_ray: bool = True) -> None:
        self._ledger, self._specs, self._on_ray = ledger, specs or {}, on_ray

    def seconds(self, config: RunConfig) -> float:
        """Training time of one run that has yet to begin: as like runs took, or else by a short calibration here."""
        device = self._device(config)
        by_device = self._measured.get(_signature(config), {})
        if device is None:  # other machines have the GPU that is asked for: take the kind that ran most of these
            found = max((took for kind, took in by_device.items() if kind != CPU), key=len, default=[])
        else:
            found = by_device.get(device, [])
        return config.train.epochs * (median(found) if found else _calibrated(_neutral(config, device)))

    def _device(self, config: RunConfig) -> str | None:
        """What the run will be on, as results name it; none: a GPU, and there is none here."""
        wanted = config.resources
        if wanted.device == CPU or (self._on_ray and wanted.gpu == 0):
            return CPU
        if not torch.cuda.is_available() and (wanted.device == "cuda" or wanted.gpu > 0):
            return None
        return device_kind(config)

    @cached_property
    def _measured(self) -> dict[Signature, dict[str, list[float]]]:
        found: dict[Signature, dict[str, list[float]]] = {}
        for name, sweep in self._ledger.studies.items():
            try:
                spec = self._specs.get(name) or StudySpec.of(sweep.spec)
            except UserError:
                continue  # `status` says so
            for trial in spec.proposals(sweep).values():
                result = self._ledger.outcome(trial.cell, name)
                if result is not None and result.epochs and result.device:
                    took = result.train_seconds / result.epochs
                    by_device = found.setdefault(_signature(spec.config(trial.params)), {})
                    by_device.setdefault(result.device, []).append(took)
        return found


def memory(config: RunConfig) -> MemoryEstimate:
    """Tensors of one worker.

    Raises:
        UserError: the data cannot be read, or no network is made for such images.
    """
    return _predicted(_memory_signature(config))


def work(config: RunConfig) -> float:
    """Floating-point operations of all epochs, as far as they can be known ahead: which runs are long.

    Raises:
        UserError: as `memory`.
    """
    return float(memory(config).flops) * config.train.epochs


def disk(configs: Sequence[RunConfig], sets: Sequence[RunConfig]) -> int:
    """Bytes that these runs will leave and these crafted sets will take.

    A run keeps its last checkpoint (weights, momentum, statistics) and its model, of which MLflow has another copy.

    Raises:
        UserError: as `memory`.
    """
    kept = [(estimate := memory(config)).buffers + estimate.optimizer + 3 * estimate.parameters for config in configs]
    shapes = [(data_shape(config), config.val.trusted) for config in sets]
    images = [(shape.train + (0 if trusted else shape.val)) * prod(shape.image) for shape, trusted in shapes]
    return sum(kept) + RECORD_BYTES * len(kept) + sum(images)


def local_slots(config: RunConfig) -> int:
    """Trials that fit on this machine side by side."""
    return max(1, (os.cpu_count() or 1) // (config.resources.cpu * config.train.workers))


def _signature(config: RunConfig) -> Signature:
    """What an epoch's time depends on: the corruption, seeds and options that are said to be free cost nothing."""
    parts = (config.data, config.model, config.train.model_copy(update={"seed": 0}), config.val.objective)
    return (*parts, repr([(key, getattr(config.defense, key)) for key in _costly(config)]))


def _costly(config: RunConfig) -> list[str]:
    """The defense's options that time and memory may depend on."""
    return sorted(type(config.defense).model_fields.keys() - config.defense.free())


def _neutral(config: RunConfig, device: str | None) -> RunConfig:
    """The same work on clean data and with the seeds' defaults."""
    keys = {
        key: value for key, value in config.flat().items() if key.startswith(("data.", "model.", "train.", "defense."))
    }
    neutral = {"train.seed": 0, "corruption.data": "none", "corruption.labels": "none"}
    return build(config.preset, keys | neutral | ({"resources.device": CPU} if device == CPU else {}))


def _memory_signature(config: RunConfig) -> RunConfig:
    """What memory depends on."""
    flat = config.flat()
    train = ("epochs", "batch_size", "momentum", "workers", "precision", "channels_last", "checkpoint_activations")
    kept = {key for key in flat if key.startswith(("data.", "model."))}
    kept |= {"val.fraction", "val.objective", *(f"train.{key}" for key in train)}
    kept |= {f"defense.{key}" for key in _costly(config)}
    neutral = {"corruption.data": "none", "corruption.labels": "none"}
    return build(config.preset, {key: flat[key] for key in flat if key in kept} | neutral)


@cache
def _calibrated(config: RunConfig) -> float:
    """Seconds of an epoch, from a few of its steps on the clean images."""
    train, test = load(config.data)
    batch = config.train.batch_size
    few = train.take(train.labels.argsort(stable=True)[:: max(1, len(train) // (batch * CALIBRATION_STEPS))])
    quick = build(config.preset, config.flat() | {"train.epochs": 1, "train.workers": 1})
    trainer = Trainer(quick, CorruptedSet(few, few.labels, test.take(few.labels[:1]), test.take(few.labels[:1])))
    with threads(config):
        next(trainer.run())  # the first epoch also warms caches up
    report = trainer.history[-1]
    return report.epoch_seconds * len(train) / len(few)


@cache
def _predicted(config: RunConfig) -> MemoryEstimate:
    return predict(config)
