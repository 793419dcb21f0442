"""Compute the learning rate as a pure function of time.

Torch's schedulers do not fit: the number of steps of an epoch depends on the labelled set, which is not known in
advance.
"""

from __future__ import annotations

import math

from erat.sections import TrainConfig

_RISE = 0.3  # share of a one-cycle run in which the learning rate rises
_START = 1 / 25  # learning rate at the start of such a run, divided by the peak
_END = 1e-4  # learning rate at the end of such a run, divided by the peak


def learning_rate(config: TrainConfig, time: float) -> float:
    """Return the learning rate after `time` epochs, which may be a fraction."""
    peak = peak_rate(config)
    if config.schedule == "step":
        return peak * config.gamma ** sum(time >= milestone for milestone in config.milestones)
    done = min(time / config.epochs, 1.0)
    if config.schedule == "cosine":
        return peak * _cosine(1.0, 0.0, done)
    if done < _RISE:
        return peak * _cosine(_START, 1.0, done / _RISE)
    return peak * _cosine(1.0, _END, (done - _RISE) / (1 - _RISE))


def peak_rate(config: TrainConfig) -> float:
    """Return the peak learning rate, which the schedule scales.

    `batch_size` is the whole batch of an update, so the numbers of workers and of accumulated parts do not matter.
    Sources: for the linear rule Goyal et al., "Accurate, Large Minibatch SGD" (2017); for the square-root rule
    Krizhevsky, "One weird trick" (2014).
    """
    if config.lr_rule == "fixed":
        return config.lr
    ratio = config.batch_size / config.lr_batch
    return config.lr * (ratio if config.lr_rule == "linear" else math.sqrt(ratio))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
