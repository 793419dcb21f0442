"""Foresee how a study will go: its own queue runs on a simulated clock, with the estimated seconds of each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from erat.config import RunConfig
from erat.variants import defense_name
from orchestration.search.driver import make_queue
from orchestration.search.observations import Observation
from orchestration.search.pruners import Pruner
from orchestration.search.simulate import Course, simulate
from orchestration.study.ledger import Ledger
from orchestration.study.registries import PRUNERS
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial

BETTER, WORSE = 0.9, 0.1  # validation accuracies of imagined trials


@dataclass(frozen=True)
class Foreseen:
    """What is left of a study, if nothing fails.

    Attributes:
        seconds: until the end of the last trial, which follows from the slots, the window and the longest runs.
        training: seconds of training of all trials together.
        trainings: the same work as a number of full trainings.
        by_defense: name of a defense -> its part of `training`.
        confirmations: number of trials that confirm the best ones.
    """

    seconds: float
    training: float
    trainings: float
    by_defense: Mapping[str, float]
    confirmations: int


def foresee(
    name: str,
    spec: StudySpec,
    trials: int,
    ledger: Ledger,
    slots: int,
    seconds: Callable[[RunConfig], float],
    windows: Mapping[int, int] | None = None,
) -> tuple[Foreseen, Foreseen]:
    """Return how what is left of a study goes if its pruner stops much, and if it stops nothing.

    What a pruner stops is not known ahead. Successive halving keeps a fixed share at each rung, so both are the same
    with it, and without a pruner. A pruner that compares trials is taken to stop every second proposal as soon as it
    may, or none.

    Args:
        name: name of the study.
        spec: its specification, whose window is settled.
        trials: number of trials of the search, without the listed runs.
        ledger: the ledger, whose results of this study count as done.
        slots: number of trials that run at a time.
        seconds: expected seconds of a full training.
        windows: number of trials -> window, as `settings.settled` returns it. None: those of the ledger.
    """
    pruner: Pruner = PRUNERS[spec.space.pruner](spec.space, spec.base.train.epochs)
    studied = [_Study(name, spec, trials, ledger, slots, seconds, pruner, windows, worse=0)]
    if spec.search is not None and type(pruner).stops is not Pruner.stops:
        studied.insert(0, _Study(name, spec, trials, ledger, slots, seconds, pruner, windows, worse=2))
    found = [study.foresee() for study in studied]
    return found[0], found[-1]


@dataclass
class _Study:
    """A study whose trainings are imagined; it is a sampler whose values do not matter.

    Args:
        worse: every how many proposals one is worse than the others; 0: none.
        before: number of a trial -> number of epochs that it had before.
        configs: number of a trial -> its configuration, unless the trial is imagined.
    """

    name: str
    spec: StudySpec
    trials: int
    ledger: Ledger
    slots: int
    seconds_of: Callable[[RunConfig], float]
    pruner: Pruner
    windows: Mapping[int, int] | None
    worse: int
    before: dict[int, int] = field(default_factory=dict)
    configs: dict[int, RunConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lengths: dict[int, float] = {}
        self._base, self._length = self.spec.base.flat(), self.seconds_of(self.spec.base)
        space, epochs = self.spec.space, self.spec.base.train.epochs
        # The only epochs after which anything may be decided that depends on no result.
        self._looks = sorted({*self.pruner.rungs, max(1, round(space.grace * epochs))} if self.spec.search else ())

    def foresee(self) -> Foreseen:
        queue = make_queue(
            self.spec,
            self.trials,
            self.name,
            self.ledger,
            self,
            trial_of=self.trial,
            windows=self.windows,
            on_proposed=lambda trial: None,
            work_of=lambda params: self.seconds_of(self.spec.config(params)),
        )
        course = simulate(queue, self.slots, self.epoch_seconds, self.accuracies, following=self.following)
        return self.summary(course)

    def trial(self, number: int, source: str, params: dict[str, Any]) -> Trial:
        """Return a trial with its result in the ledger, or an imagined one that is like the base configuration."""
        if source not in ("optuna", "confirm") or params.keys() - {"train.seed"}:
            made = replace(self.spec.trial(number, source, params), rungs=(), seeds=1)
            trial = self.ledger.with_outcome(made, self.name)
            self.configs[number] = self.spec.config(params)
        else:
            trial = Trial(number, f"imagined {number}", params, source, self._base)
        self.before[number] = trial.epoch
        return trial

    def epoch_seconds(self, trial: Trial) -> float:
        if (config := self.configs.get(trial.number)) is None:
            return self._length / self.spec.base.train.epochs
        if trial.number not in self._lengths:
            self._lengths[trial.number] = self.seconds_of(config) / config.train.epochs
        return self._lengths[trial.number]

    def accuracies(self, trial: Trial) -> Sequence[float]:
        poor = self.worse and trial.source == "optuna" and trial.number % self.worse
        return [WORSE if poor else BETTER] * trial.epochs

    def following(self, trial: Trial, epoch: int) -> int:
        return next((look for look in self._looks if epoch < look < trial.epochs), trial.epochs)

    def summary(self, course: Course) -> Foreseen:
        by_defense: dict[str, float] = {}
        trainings, confirmations = 0.0, 0
        for trial in course.trials:
            if epochs := trial.epoch - self.before[trial.number]:
                defense = defense_name(trial.config)
                by_defense[defense] = by_defense.get(defense, 0.0) + epochs * self.epoch_seconds(trial)
                trainings += epochs / trial.epochs
                confirmations += trial.confirms is not None
        return Foreseen(course.time, course.work, trainings, by_defense, confirmations)

    # -- the sampler ------------------------------------------------------------------------------------------------

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        """Take no note."""

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the values that are known, or none."""
        return dict(known or {})

    def tell(self, number: int, observation: Observation) -> None:
        """Take no note."""
