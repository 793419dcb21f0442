"""What a run will need: time, from what like runs took, else from a short calibration on this machine; and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from math import prod
from statistics import median
from typing import Any

from erat.config import RunConfig, build
from erat.data.loading import load
from erat.data.types import CorruptedSet
from erat.engine.memory import MemoryEstimate, data_shape, predict
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.training import threads
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec

CALIBRATION_STEPS = 3
RECORD_BYTES = 150_000  # of a run, beside its weights: curves, selection, its part of ledger and tracking database
Signature = tuple[Any, ...]
# Of what a search turns, the keys that no tensor's size depends on.
_SIZELESS = ("eta", "lambda_u", "ramp_epochs", "epsilon_inf", "epsilon_2", "step_ratio", "score", "rate", "reduction")


class History:
    """What an epoch took in the finished runs of a ledger, by what its time depends on.

    Args:
        specs: specifications that are at hand already, by the sweeps' names.
    """

    def __init__(self, ledger: Ledger, specs: Mapping[str, StudySpec] | None = None) -> None:
        self._ledger, self._specs = ledger, specs or {}

    def seconds(self, config: RunConfig) -> float:
        """Training time of one run that has yet to begin: as like runs took, or else by a short calibration here."""
        measured = self._measured.get(_signature(config))
        per_epoch = median(measured) if measured else _calibrated(_neutral(config))
        return config.train.epochs * per_epoch

    @cached_property
    def _measured(self) -> dict[Signature, list[float]]:
        found: dict[Signature, list[float]] = {}
        for name, sweep in self._ledger.studies.items():
            try:
                spec = self._specs.get(name) or StudySpec.of(sweep.spec)
            except UserError:
                continue  # `status` says so
            for proposal in spec.proposals(sweep).values():
                outcome = self._ledger.outcome(proposal.cell, name)
                if outcome is not None and outcome.result.get("epochs"):
                    took = outcome.result["train_seconds"] / outcome.result["epochs"]
                    found.setdefault(_signature(spec.config(proposal.params)), []).append(took)
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
    """What an epoch's time depends on: budgets, seeds and the corruption cost nothing."""
    parts = (config.data, config.model, config.train.model_copy(update={"seed": 0}), config.val.objective)
    kept = ("name", "squeeze", "adversarial", "uniform", "steps", "selection", "norms", "strong", "worst_of")
    return (*parts, *(getattr(config.defense, key, None) for key in kept))


def _neutral(config: RunConfig) -> RunConfig:
    """The same work on clean data and with the seeds' defaults."""
    keys = {
        key: value for key, value in config.flat().items() if key.startswith(("data.", "model.", "train.", "defense."))
    }
    neutral = {"train.seed": 0, "corruption.data": "none", "corruption.labels": "none"}
    return build(config.preset, keys | neutral)


def _memory_signature(config: RunConfig) -> RunConfig:
    """What memory depends on."""
    flat = config.flat()
    train = ("epochs", "batch_size", "momentum", "workers", "precision", "channels_last", "checkpoint_activations")
    kept = {key for key in flat if key.startswith(("data.", "model."))}
    kept |= {"val.fraction", "val.objective", *(f"train.{key}" for key in train)}
    kept |= {f"defense.{key}" for key in config.defense.model_dump() if key not in _SIZELESS}
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
