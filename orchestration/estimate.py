"""What a run will need: time, from what like runs took, else from a short calibration on this machine; and memory."""

from __future__ import annotations

import os
from functools import cache
from statistics import median

from erat.config import RunConfig, build, load_config
from erat.data.base import CorruptedSet
from erat.data.sets import load
from erat.engine.memory import MemoryEstimate, predict
from erat.engine.trainer import Trainer
from orchestration.home import Home
from orchestration.state import Ledger
from orchestration.trial import read_metrics, threads

CALIBRATION_STEPS = 3
# Of what a search turns, the keys that no tensor's size depends on.
_SIZELESS = ("eta", "lambda_u", "ramp_epochs", "epsilon_inf", "epsilon_2", "step_ratio", "score", "rate", "reduction")


def seconds(config: RunConfig, home: Home, ledger: Ledger) -> float:
    """Training time of one run that has yet to begin."""
    measured = _history(config, home, ledger)
    return config.train.epochs * (measured if measured is not None else _calibrated(_signature(config)))


def memory(config: RunConfig) -> MemoryEstimate:
    """Tensors of one worker.

    Raises:
        UserError: the data cannot be read, or no network is made for such images.
    """
    return _predicted(_memory_signature(config))


def local_slots(config: RunConfig) -> int:
    """Trials that fit on this machine side by side."""
    return max(1, (os.cpu_count() or 1) // (config.resources.cpu * config.train.workers))


def _signature(config: RunConfig) -> RunConfig:
    """What an epoch's time depends on: budgets, seeds and the corruption cost nothing."""
    keys = {
        key: value for key, value in config.flat().items() if key.split(".")[0] in ("data", "model", "train", "val")
    }
    kept = ("name", "adversarial", "uniform", "steps", "selection", "norms")
    keys |= {f"defense.{key}": value for key, value in config.defense.model_dump().items() if key in kept}
    neutral = {"train.seed": 0, "val.seed": 0, "corruption.data": "none", "corruption.labels": "none"}
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


def _history(config: RunConfig, home: Home, ledger: Ledger) -> float | None:
    """Median seconds per epoch of finished runs of this sort, none if there are none."""
    wanted = _signature(config).digest()
    found = []
    for sweep in ledger.sweeps.values():
        for proposal in sweep.proposals.values():
            folder = home.cell(proposal.cell)
            rows = read_metrics(folder)
            if rows and _signature(load_config(folder / "config.json")).digest() == wanted:
                found.append(sum(row["epoch_seconds"] for row in rows) / len(rows))
    return median(found) if found else None


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
