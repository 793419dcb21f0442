"""Proposals in Optuna's study: values that are drawn by Optuna, or known, as the ledger has them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial

from orchestration.study.parameters import ten_digits


class Draw(BaseSampler):
    """The draw of one proposal: Optuna's sampler with rounded values, or values that are known.

    Args:
        inner: Optuna's sampler; None: it is not asked.
        known: the values; None: those of `inner` are taken.
        joint: what `inner` draws jointly; None: it decides that itself.
    """

    def __init__(
        self, inner: BaseSampler | None, known: Mapping[str, Any] | None, joint: dict[str, BaseDistribution] | None
    ) -> None:
        self.inner, self.known, self.joint = inner, known, joint

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is drawn jointly."""
        if self.inner is None or self.joint is not None:
            return self.joint or {}
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values that are drawn jointly."""
        values = self.inner.sample_relative(study, trial, search_space) if self.inner is not None else {}
        if self.known is not None:
            return {}
        return {key: rounded(value, search_space[key]) for key, value in values.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of one key."""
        if self.known is not None:
            return rounded(self.known[param_name], param_distribution)
        assert self.inner is not None, "either of them is given"
        return rounded(self.inner.sample_independent(study, trial, param_name, param_distribution), param_distribution)


class Ended(FrozenTrial):
    """A trial that has ended, whose copies share its content: to copy all that of ten thousand takes a second."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrial:
        return copy(self)


class WithoutNotes(InMemoryStorage):
    """A storage that drops what a sampler notes of a trial.

    TPE and GP note what they drew jointly, also for conditional keys that the trial does not have in the end, and take
    account of that while the trial runs. The ledger has no such notes, so a resumed study would go on differently.
    """

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Do nothing."""


def rounded(value: Any, distribution: BaseDistribution) -> Any:
    """Return a value as the study holds it: with ten digits, and within the range.

    A point may lie outside the range, where Optuna would refuse it; it then counts as the nearest value.
    """
    if isinstance(distribution, CategoricalDistribution):
        return value
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is not None:
        return low + min(max(round((value - low) / step), 0), round((high - low) / step)) * step
    return min(max(ten_digits(value), low), high)


def suggested(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> Any:
    """Return the value of a key as the ledger has it."""
    match distribution:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return ten_digits(trial.suggest_float(key, low, high, step=step, log=log))
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(key, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(key, choices)
        case _:
            raise AssertionError(f"no such distribution is made of a parameter: {distribution}")
