"""Samplers by name, from Optuna: what the search tries next.

Each draw depends only on the seed, on the number of the trial and on what was told before, so that a study that is
resumed gets the proposals that it would have made without the interruption. Optuna's study holds the same rounded
values (ten digits) as the ledger, because later proposals are made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from erat.seeding import derive
from orchestration.search.queue import Observation
from orchestration.study.parameters import ten_digits


def _always(key: str, values: Mapping[str, Any]) -> bool:
    return True


class OptunaSampler:
    """A sampler of Optuna on a study in memory.

    Args:
        distributions: dotted key -> Optuna's distribution; a key comes after those that it depends on.
        seed: seed of all draws.
        startup: number of results before which the values are drawn at random.
        active: returns whether this key is searched in a trial whose earlier keys have these values.
    """

    def __init__(
        self,
        distributions: Mapping[str, Any],
        *,
        seed: int,
        startup: int,
        active: Callable[[str, Mapping[str, Any]], bool] = _always,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions, self._seed, self._startup, self._active = distributions, seed, startup, active
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}

    def draws(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        raise NotImplementedError

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        """Take note of values that were given ahead."""
        self._study.enqueue_trial(dict(params))
        self._ask(number)

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the values of a trial: those that are known, or else a new proposal."""
        if known is not None:
            self.given(number, known)
            return dict(known)
        return self._ask(number)

    def tell(self, number: int, observation: Observation) -> None:
        """Take a trial into account in later proposals."""
        trial = self._asked[number]
        if observation.state == "complete":
            self._study.tell(trial, observation.best_val_accuracy)
        elif observation.state == "pruned":
            assert observation.best_val_accuracy is not None
            trial.report(observation.best_val_accuracy, observation.epochs)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _ask(self, number: int) -> dict[str, Any]:
        self._study.sampler = self.draws(derive(self._seed, "proposal", number) % 2**32)
        self._asked[number] = trial = self._study.ask()
        values: dict[str, Any] = {}
        for key, distribution in self._distributions.items():
            if self._active(key, values):
                values[key] = _suggested(trial, key, distribution)
        return values


class TPE(OptunaSampler):
    """The tree-structured Parzen estimator."""

    def draws(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self._startup, multivariate=True, constant_liar=True
        )


def _suggested(trial: Any, key: str, distribution: Any) -> Any:
    match distribution:
        case FloatDistribution():
            return ten_digits(trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log))
        case IntDistribution():
            step, log = distribution.step, distribution.log
            return trial.suggest_int(key, distribution.low, distribution.high, step=step, log=log)
        case _:
            return trial.suggest_categorical(key, distribution.choices)
