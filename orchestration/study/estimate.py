"""Estimate what a run will need: time, memory and disk space.

The time comes from similar runs that have finished, or else from a short calibration on this machine.
"""

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
from orchestration.run.resources import needs, trials
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec

CALIBRATION_STEPS = 3
# Disk space of a run besides its weights: curves, selection, and its part of the ledger and the tracking database.
RECORD_BYTES = 150_000
Signature = tuple[Any, ...]
_MEMORY: dict[Signature, RunConfig] = {}  # what a run's memory depends on, by what its time depends on


class History:
    """Seconds per epoch in the finished runs of a ledger, grouped by what the time depends on and by device.

    Old results that do not name their device are left out: a calibration takes only seconds, whereas a guess of the
    device may be wrong by a factor of fifty.

    Args:
        ledger: the ledger of the workspace.
        specs: name of a study -> its specification, for studies whose specification was read before.
        on_ray: whether the runs to be estimated go through Ray, which hides every GPU that a run does not ask for.

    Attributes:
        timed_here: whether some estimate so far comes from a calibration on this machine.
    """

    def __init__(self, ledger: Ledger, specs: Mapping[str, StudySpec] | None = None, *, on_ray: bool = True) -> None:
        self._ledger, self._specs, self._on_ray = ledger, specs or {}, on_ray
        self.timed_here = False

    def seconds(self, config: RunConfig) -> float:
        """Return the expected training time, in seconds, of a run that has not begun.

        It is the number of epochs times the median epoch of similar runs, or, if there are none, times the epoch that
        a short calibration on this machine predicts.
        """
        device = self._device(config)
        by_device = self._measured.get(_signature(config), {})
        if device is None:  # this machine lacks the GPU that is asked for: take the kind of GPU with most results
            found = max((took for kind, took in by_device.items() if kind != CPU), key=len, default=[])
        else:
            found = by_device.get(device, [])
        if found:
            return config.train.epochs * median(found)
        self.timed_here = True
        return config.train.epochs * _calibrated(_neutral(config, device))

    def _device(self, config: RunConfig) -> str | None:
        """Return the device that the run will use, named as in results; None if it needs a GPU that is not here."""
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
                continue  # the command `status` reports this error
            for trial in spec.proposals(sweep).values():
                result = self._ledger.outcome(trial.cell, name)
                if result is not None and result.epochs and result.device:
                    took = result.train_seconds / result.epochs
                    by_device = found.setdefault(_signature(spec.config(trial.params)), {})
                    by_device.setdefault(result.device, []).append(took)
        return found


def memory(config: RunConfig) -> MemoryEstimate:
    """Return the predicted memory of one worker's tensors, in bytes.

    Raises:
        UserError: The data cannot be read, or the network cannot be built for images of this shape.
    """
    key = (*_signature(config), config.preset, config.val.fraction)
    if key not in _MEMORY:  # making the signature of a run takes milliseconds, which is long for thousands of runs
        _MEMORY[key] = _memory_signature(config)
    return _predicted(_MEMORY[key])


def work(config: RunConfig) -> float:
    """Return the predicted floating-point operations of all epochs, which tells long runs from short ones.

    Raises:
        UserError: As for `memory`.
    """
    return float(memory(config).flops) * config.train.epochs


def disk(configs: Sequence[RunConfig], sets: Sequence[RunConfig]) -> int:
    """Return the disk space, in bytes, that will be taken by the results of runs and by crafted data sets.

    A run keeps its last checkpoint (weights, momentum, statistics) and its model, of which MLflow keeps another copy.

    Args:
        configs: one configuration for each run.
        sets: one configuration for each data set to be crafted.

    Raises:
        UserError: As for `memory`.
    """
    kept = [(estimate := memory(config)).buffers + estimate.optimizer + 3 * estimate.parameters for config in configs]
    shapes = [(data_shape(config), config.val.trusted) for config in sets]
    images = [(shape.train + (0 if trusted else shape.val)) * prod(shape.image) for shape, trusted in shapes]
    return sum(kept) + RECORD_BYTES * len(kept) + sum(images)


def local_slots(config: RunConfig) -> int:
    """Return the number of trials of this configuration that this machine's cores and GPUs hold at a time, at least 1.

    It is counted as for a node of a cluster. If the machine has no GPU and the trials ask for one, cores alone count.
    """
    there = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    wanted = needs(config)
    if not there["GPU"]:
        wanted["GPU"] = 0.0
    return max(1, trials(wanted, config.train.workers, None, [there]))


def _signature(config: RunConfig) -> Signature:
    """Return what the time of an epoch depends on, as a key for grouping runs.

    Left out are the corruption, the seeds, the interval of checkpoints, which are written beside the training, and the
    options that the defense declares free, because they cost no time.
    """
    train = config.train.model_copy(update={"seed": 0, "checkpoint_every": "1"})
    parts = (config.data, config.model, train, config.val.objective)
    return (*parts, repr([(key, getattr(config.defense, key)) for key in _costly(config)]))


def _costly(config: RunConfig) -> list[str]:
    """Return the names of the defense's options that time and memory may depend on, sorted."""
    return sorted(type(config.defense).model_fields.keys() - config.defense.free())


def _neutral(config: RunConfig, device: str | None) -> RunConfig:
    """Return a configuration of the same cost on clean data, with the default seeds, so that it needs no crafted set.

    Args:
        config: the configuration of the run.
        device: `CPU` to calibrate on the CPU; any other value leaves the choice of the device to the configuration.
    """
    keys = {
        key: value for key, value in config.flat().items() if key.startswith(("data.", "model.", "train.", "defense."))
    }
    neutral = {"train.seed": 0, "corruption.data": "none", "corruption.labels": "none"}
    return build(config.preset, keys | neutral | ({"resources.device": CPU} if device == CPU else {}))


def _memory_signature(config: RunConfig) -> RunConfig:
    """Return a configuration with only those values that memory depends on, so that runs alike share a prediction."""
    flat = config.flat()
    train = ("epochs", "batch_size", "momentum", "workers", "precision", "channels_last", "checkpoint_activations")
    kept = {key for key in flat if key.startswith(("data.", "model."))}
    kept |= {"val.fraction", "val.objective", *(f"train.{key}" for key in train)}
    kept |= {f"defense.{key}" for key in _costly(config)}
    neutral = {"corruption.data": "none", "corruption.labels": "none"}
    return build(config.preset, {key: flat[key] for key in flat if key in kept} | neutral)


@cache
def _calibrated(config: RunConfig) -> float:
    """Return the seconds of one epoch on this machine, extrapolated from a few steps on the clean images."""
    train, test = load(config.data)
    batch = config.train.batch_size
    few = train.take(train.labels.argsort(stable=True)[:: max(1, len(train) // (batch * CALIBRATION_STEPS))])
    quick = build(config.preset, config.flat() | {"train.epochs": 1, "train.workers": 1})
    trainer = Trainer(quick, CorruptedSet(few, few.labels, test.take(few.labels[:1]), test.take(few.labels[:1])))
    with threads(config):
        next(trainer.run())  # the measured epoch includes the warming up of caches
    report = trainer.history[-1]
    return report.epoch_seconds * len(train) / len(few)


@cache
def _predicted(config: RunConfig) -> MemoryEstimate:
    return predict(config)
