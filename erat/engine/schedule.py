"""Learning rate as a pure function of time.

Not torch's schedulers: the number of steps of an epoch follows the labelled set, which no one knows ahead.
"""

from __future__ import annotations

import math

from erat.config import TrainConfig

_RISE = 0.3  # share of a one-cycle run spent rising
_START = 1 / 25  # learning rate at its start, over the peak
_END = 1e-4  # and at its end


def learning_rate(config: TrainConfig, time: float) -> float:
    """The learning rate after `time` epochs (fractional)."""
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
    """The learning rate that the schedule scales.

    `batch_size` is the whole batch of an update, so workers and accumulation do not enter. Linear: Goyal et al.,
    "Accurate, Large Minibatch SGD" (2017); root: Krizhevsky, "One weird trick" (2014).
    """
    if config.lr_rule == "fixed":
        return config.lr
    ratio = config.batch_size / config.lr_batch
    return config.lr * (ratio if config.lr_rule == "linear" else math.sqrt(ratio))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
