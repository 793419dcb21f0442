"""Says which settings of a search matter for validation accuracy, how sure that is, or why it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestration.report.notation import header
from orchestration.study.trial import Trial

Ranges = Mapping[str, BaseDistribution]
LEAST_TRIALS = 10  # fewer trials that ran to the end leave the forest to chance
MOST_TRIALS = 300  # the forest's time grows with their number
RESAMPLINGS, TREES = 12, 8
INNER = (10, 90)  # percentiles of the resamplings that the whiskers show
MOST_CORRELATION = 0.9  # settings that varied together share an importance that nobody can divide


@dataclass(frozen=True)
class Importance:
    """The importance of settings by fANOVA.

    Attributes:
        mean: key -> its share of the variation, in [0, 1], the largest first: the mean over resampled trials.
        low, high: key -> the 10th and 90th percentile over resampled trials.
        caption: how it was found, and whether the order is sure.
    """

    mean: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    caption: str


def importances(trials: Sequence[Trial], ranges: Ranges, seed: int = 0, trees: int = 64) -> dict[str, float]:
    """Return the importance of each key that every trial has, as shares in descending order.

    It is empty if there are fewer than two such keys, or if all accuracies are equal.
    """
    shared = shared_by(trials, ranges)
    if len({row.best_val_accuracy for row in trials}) < 2 or len(shared) < 2:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=seed)
        return dict(optuna.importance.get_param_importances(study_of(trials, shared), evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(before)


def has(row: Trial, key: str) -> bool:
    """Return whether a trial has a value of the key that has a place on an axis: any but none, NaN and infinity."""
    found = row.params.get(key)
    return found is not None and not (isinstance(found, float) and not isfinite(found))


def shared_by(trials: Sequence[Trial], ranges: Ranges) -> Ranges:
    """Return the ranges of the keys that every trial has and that vary."""
    return {
        key: range_
        for key, range_ in ranges.items()
        if all(has(row, key) for row in trials) and len({repr(row.params[key]) for row in trials}) > 1
    }


def spread(trials: Sequence[Trial], ranges: Ranges) -> Importance | str:
    """Return the importance of the settings with its spread; a sentence that says why not if it does not hold.

    Args:
        trials: those that ran to the last epoch and have a validation accuracy; others are not comparable with them.
        ranges: dotted key -> Optuna's distribution.
    """
    shared = shared_by(trials, ranges)
    what = "Importance of the settings"
    if len(trials) < LEAST_TRIALS:
        return f"{what}: {len(trials)} trials ran to the last epoch, and fewer than {LEAST_TRIALS} leave it to chance."
    if len(shared) < 2:
        return f"{what}: fewer than two settings vary over all trials."
    for first, second in combinations(shared, 2):
        if (together := _together(trials, first, second)) > MOST_CORRELATION:
            return (
                f"{what}: {header(first)} and {header(second)} were varied together (correlation {together:.2f}), so "
                "that no trial tells which of them it was."
            )
    random = np.random.default_rng(0)
    if len(trials) > MOST_TRIALS:
        trials = [trials[place] for place in sorted(random.choice(len(trials), MOST_TRIALS, replace=False))]
    found: dict[str, list[float]] = {key: [] for key in shared}
    for seed in range(RESAMPLINGS):
        drawn = [trials[place] for place in random.integers(len(trials), size=len(trials))]
        for key, share in importances(drawn, {key: shared[key] for key in shared}, seed, TREES).items():
            found[key].append(share)
    if not all(found.values()):
        return f"{what}: all trials have the same accuracy."
    mean = {key: float(np.mean(shares)) for key, shares in found.items()}
    mean = dict(sorted(mean.items(), key=lambda item: -item[1]))
    low, high = ({key: float(np.percentile(found[key], end)) for key in mean} for end in INNER)
    first, second = list(mean)[:2]
    order = (
        f"that {header(first)} matters most is not sure"
        if low[first] <= high[second]
        else f"{header(first)} matters most in nearly all of them"
    )
    which = "each setting" if len(shared) == len(ranges) else "the settings that every trial has"
    caption = (
        f"Importance of {which} for validation accuracy (fANOVA, Optuna), of {len(trials)} trials that ran to the last "
        f"epoch. Bar: mean over {RESAMPLINGS} resamplings of the trials; line: the middle 80 % of them; {order}."
    )
    return Importance(mean, low, high, caption)


def _together(trials: Sequence[Trial], first: str, second: str) -> float:
    """Return the size of the rank correlation of two settings over the trials; 0 if one of them is no number."""
    columns = [[row.params[key] for row in trials] for key in (first, second)]
    if not all(isinstance(of, int | float) for column in columns for of in column):
        return 0.0
    return correlation(*columns)


def correlation(x: Any, y: Any) -> float:
    """Return the size of the rank correlation of two settings, in [0, 1]; 0 if one of them does not vary."""
    from scipy.stats import spearmanr

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return abs(float(spearmanr(x, y).statistic))


def study_of(trials: Sequence[Trial], ranges: Ranges) -> optuna.Study:
    """Return the trials as an Optuna study; ranges are widened to contain the paper's points."""
    wide = {key: _widened(range_, [row.params[key] for row in trials]) for key, range_ in ranges.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for row in trials:
        params = {key: row.params[key] for key in ranges}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict(wide), value=float(row.best_val_accuracy or 0.0)
            )
        )
    return study


def _widened(range_: BaseDistribution, settings: Sequence[Any]) -> BaseDistribution:
    """Return the range, widened to contain the paper's points too."""
    if isinstance(range_, CategoricalDistribution):
        return CategoricalDistribution(list(dict.fromkeys([*range_.choices, *settings])))
    assert isinstance(range_, FloatDistribution | IntDistribution), "parameters are of these kinds"
    low, high = min(range_.low, *settings), max(range_.high, *settings)
    log = range_.log and low > 0
    if isinstance(range_, IntDistribution):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
