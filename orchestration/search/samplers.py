"""Samplers by name: what the search tries next. These are Optuna's; the project's own one is in `grid`.

A proposal depends on the seed, on the number of the trial and on what was given, proposed and told before, and on
nothing else. A study that is resumed repeats these calls with the values that it knows, and so gets the proposals that
it would have made without the interruption. Optuna's study holds the values of the ledger, with ten digits, because
later proposals are made from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from erat.seeding import derive
from orchestration.search.draws import Draw, Ended, WithoutNotes, suggested
from orchestration.search.observations import Observation
from orchestration.study import abilities
from orchestration.study.abilities import Abilities
from orchestration.study.sampling import always

_DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"val_accuracy": "maximize", "cost": "minimize"}
Told = tuple[TrialState, "list[float] | None", "dict[int, float]"]  # state, values, value after each epoch


class OptunaSampler:
    """A sampler of Optuna on a study in memory; the base of those below.

    Optuna's sampler is made anew for each proposal, with a seed of its own, so that no proposal depends on how many
    random numbers others drew.

    Args:
        distributions: dotted key -> Optuna's distribution; a key comes after those that it depends on.
        seed: seed of all draws.
        startup: number of results before which the values are drawn at random.
        active: returns whether this key is searched in a trial whose earlier keys have these values.
        objective: what is optimised, "val_accuracy" or that and "cost".
    """

    abilities: ClassVar[Abilities] = Abilities()
    # Whether Optuna's sampler reads the results of pruned trials. The value of a pruned trial is told to the others as
    # that of a complete one: if they ignored it, they would try again where trials were stopped.
    reads_pruned: ClassVar[bool] = False
    # Whether Optuna's sampler needs what it noted in the study at earlier proposals. It then makes all proposals anew
    # when a study is resumed.
    reads_notes: ClassVar[bool] = False

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        *,
        seed: int,
        startup: int,
        active: Callable[[str, Mapping[str, Any]], bool] = always,
        objective: Sequence[str] = ("val_accuracy",),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Optuna calls its QMC sampler and the grouping of conditional keys experimental; the tests hold what is used.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.distributions, self.seed, self.startup, self._active = dict(distributions), seed, startup, active
        self.conditional = not all(active(key, {}) for key in distributions)
        self._directions = [_DIRECTIONS[name] for name in objective]
        self._study = self._new_study()
        self._places: dict[int, int] = {}  # number of a trial -> its place in Optuna's study
        self._running: dict[int, optuna.Trial] = {}  # by place: trials that were not told
        self._replaced: dict[int, Told] = {}  # place -> what was told of a trial that had been told before

    def draws(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        raise NotImplementedError

    def joint(self) -> dict[str, BaseDistribution] | None:
        """Return what is drawn jointly, by sorted keys; None: Optuna finds it out from the earlier trials.

        Without conditions all keys are; the order is the one that Optuna would find.
        """
        return None if self.conditional else dict(sorted(self.distributions.items()))

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        """Take note of values that were given ahead."""
        self._ask(number, Draw(None, params, {}))

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the values of a trial: those that are known, or else a new proposal."""
        anew = known is None or self.reads_notes
        inner = self.draws(derive(self.seed, "proposal", number) % 2**32) if anew else None
        made = self._ask(number, Draw(inner, known, self.joint()))
        return made if known is None else dict(known)

    def tell(self, number: int, observation: Observation) -> None:
        """Take a trial into account in later proposals; another call for the same trial replaces the first one."""
        place, (state, values, history) = self._places[number], self._told(observation)
        if place not in self._running:
            self._replaced[place] = state, values, history
            return
        trial = self._running.pop(place)
        for epoch, value in history.items():
            trial.report(value, epoch)
        self._study.tell(place, None if state is TrialState.PRUNED else values, state)

    def _told(self, observation: Observation) -> Told:
        best, cost = observation.best_val_accuracy, observation.cost
        if observation.state == "failed" or best is None:
            return TrialState.FAIL, None, {}
        if observation.state == "pruned" and self.reads_pruned:
            return TrialState.PRUNED, [best], {observation.epochs: best}
        if len(self._directions) == 1:
            return TrialState.COMPLETE, [best], {}
        # The cost is known at the end alone; two objectives therefore exclude pruners (`sampling.check`).
        return (TrialState.FAIL, None, {}) if cost is None else (TrialState.COMPLETE, [best, cost], {})

    def _ask(self, number: int, draw: Draw) -> dict[str, Any]:
        if self._replaced:
            self._rebuild()
        self._study.sampler = draw
        trial = self._study.ask()
        self._places[number], self._running[trial.number] = trial.number, trial
        values: dict[str, Any] = {}
        for key, distribution in self.distributions.items():
            if self._active(key, values) if draw.known is None else key in draw.known:
                values[key] = suggested(trial, key, distribution)
        return values

    def _rebuild(self) -> None:
        """Make the study anew: Optuna has no means to replace what was told of a trial."""
        earlier, self._study = self._study.get_trials(deepcopy=False), self._new_study()
        for trial in earlier:
            if trial.number in self._running and not self.reads_notes:
                self._study.sampler = Draw(None, trial.params, {})
                self._running[trial.number] = again = self._study.ask()
                for key, distribution in trial.distributions.items():
                    suggested(again, key, distribution)
            else:
                self._study.add_trial(self._latest(trial))
        self._replaced.clear()

    def _latest(self, trial: FrozenTrial) -> FrozenTrial:
        """Return the trial with what was told of it last."""
        if trial.number in self._running or (isinstance(trial, Ended) and trial.number not in self._replaced):
            return trial
        known = trial.state, trial.values, trial.intermediate_values
        state, values, history = self._replaced.get(trial.number, known)
        return Ended(
            number=trial.number,
            trial_id=-1,  # the study gives it another one
            state=state,
            value=None,
            values=values,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={},
            system_attrs=trial.system_attrs,
            intermediate_values=history,
        )

    def _new_study(self) -> optuna.Study:
        storage = InMemoryStorage() if self.reads_notes else WithoutNotes()
        return optuna.create_study(storage=storage, directions=self._directions)


class TPE(OptunaSampler):
    """The tree-structured Parzen estimator.

    Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; with all keys drawn jointly (Falkner et al. 2018,
    BOHB).
    """

    reads_pruned: ClassVar[bool] = True

    def draws(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        # What matters is said here and not left to the version's defaults, which have changed. `multivariate`: keys
        # whose best values depend on each other are drawn together; with conditions, in groups of keys that occur
        # together. `constant_liar`: trials without a result count as bad ones, or the trials of a window, which know
        # the same results, would be near each other.
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=self.startup,
            multivariate=True,
            group=self.conditional,
            constant_liar=True,
        )


class GP(OptunaSampler):
    """A Gaussian process with the logarithm of the expected improvement; trials without a result are integrated out.

    Ament et al. 2023, Unexpected Improvements to Expected Improvement for Bayesian Optimization.
    """

    abilities: ClassVar[Abilities] = abilities.GP

    def draws(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        # No process can be fitted to no result. Accuracies of equal settings differ by chance: not deterministic.
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=max(1, self.startup), deterministic_objective=False
        )


class CMAES(OptunaSampler):
    """Covariance matrix adaptation over the ranges of numbers; choices are drawn at random.

    Hansen 2016, The CMA Evolution Strategy: A Tutorial.
    """

    abilities: ClassVar[Abilities] = abilities.CMAES
    reads_notes: ClassVar[bool] = True

    def draws(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        return optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=max(1, self.startup), warn_independent_sampling=False
        )

    def joint(self) -> dict[str, BaseDistribution]:
        """Return the ranges of numbers."""
        keys = sorted(self.distributions.items())
        return {key: kind for key, kind in keys if not isinstance(kind, CategoricalDistribution)}


class _WithoutResults(OptunaSampler):
    """A sampler whose proposals do not depend on results."""

    def tell(self, number: int, observation: Observation) -> None:
        """Take no account of a trial."""


class QMC(_WithoutResults):
    """A scrambled Sobol sequence, which covers the space more evenly than random values.

    Bergstra and Bengio 2012, Random Search for Hyper-Parameter Optimization.
    """

    abilities: ClassVar[Abilities] = abilities.QMC
    reads_notes: ClassVar[bool] = True

    def draws(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler for one proposal, which continues the one sequence of the study."""
        return optuna.samplers.QMCSampler(
            qmc_type="sobol", scramble=True, seed=derive(self.seed, "sequence") % 2**32, warn_independent_sampling=False
        )


class Random(_WithoutResults):
    """Values drawn at random, each key for itself."""

    abilities: ClassVar[Abilities] = abilities.RANDOM

    def draws(self, seed: int) -> BaseSampler:
        """Return Optuna's sampler for one proposal, with this seed."""
        return optuna.samplers.RandomSampler(seed=seed)

    def joint(self) -> dict[str, BaseDistribution]:
        """Return nothing."""
        return {}
