"""The rungs of a search: which follow from a schedule of training, and which say little about the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from erat.config import RunConfig

KEPT = 1 / 3  # share of a block that the pruner "halving" promotes at each rung


def settled_epoch(config: RunConfig) -> int:
    """Return the epoch at which warm-up and ramp are over; before it, accuracy says little about the end."""
    flat = config.flat()
    return math.ceil(float(flat.get("defense.warmup_epochs", 0)) + float(flat.get("defense.ramp_epochs", 0)))


def rungs_of(config: RunConfig) -> list[int]:
    """Return the rungs that follow from the schedule: a third of the epochs, a ninth, ..., as far as they tell much.

    The first one is not before warm-up and ramp are over. If a third of the epochs is before that, the only rung is the
    epoch at which they are over. If that is the last epoch or later, the only rung is a third of the epochs, but not
    before the warm-up is over. There is none if no epoch is left.
    """
    epochs, settled = config.train.epochs, max(1, settled_epoch(config))
    rungs: list[int] = []
    while (rung := round(epochs / 3 ** (len(rungs) + 1))) >= settled and rung < epochs:
        rungs.insert(0, rung)
    warmed_up = math.ceil(float(config.flat().get("defense.warmup_epochs", 0))) + 1
    last = settled if settled < epochs else max(round(epochs / 3), warmed_up)
    return rungs or [last] * (last < epochs)


def doubt(pruner: str, rungs: Sequence[int], settled: int, epochs: int) -> str | None:
    """Return what is doubtful about the rungs of a schedule, or None.

    Args:
        pruner: name of the pruner that compares trials at the rungs.
        rungs: epochs, ascending.
        settled: what `settled_epoch` returns.
        epochs: the number of epochs.
    """
    if not rungs:
        return f"the pruner {pruner} stops nothing: there is no rung before the last epoch, {epochs}"
    if rungs[0] >= settled:
        return None
    instead = f"a rung from {settled} to {epochs - 1} would" if settled < epochs else "no rung can"
    last = f"warm-up and ramp last until epoch {settled}" + f", beyond the last, {epochs}" * (settled > epochs)
    return f"the rung {rungs[0]} says little of the end, because {last}: {instead} say more"
