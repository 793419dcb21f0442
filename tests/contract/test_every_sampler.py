"""Holds what is true of every registered sampler: results decide what it proposes, and nothing else does.

Each study is run on a simulated clock. Its proposals must not depend on the number of slots, on the lengths of the
trials, or on the moment at which the driver was killed, and must stay when the search is extended.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import optuna
import pytest
from optuna._gp import gp

from erat.result import RunResult
from orchestration.search.queue import Queue
from orchestration.search.simulate import simulate
from orchestration.study import sampling
from orchestration.study.registries import PRUNERS, SAMPLERS
from orchestration.study.spaces import SearchSpace
from orchestration.study.trial import Trial

EPOCHS, WINDOW, TOTAL, LONGER = 6, 4, 16, 20
NAME, ETA, WEIGHT, THRESHOLD = "defense.name", "defense.eta", "defense.lambda_u", "defense.threshold"
CLOCKS = [(1, 0), (4, 1), (16, 2)]  # slots, set of lengths
PRUNER_OF = {"median": {"pruner": "median"}, "halving": {"pruner": "halving", "rungs": [2, 4], "block": 5}}


def space_for(sampler: str, settings: Mapping[str, Any], *, conditional: bool = False) -> SearchSpace:
    """Return a space that the sampler can search."""
    steps = SAMPLERS.abilities(sampler).countable
    parameters: dict[str, Any] = {
        ETA: {"low": 0, "high": 1} | ({"step": 0.25} if steps else {}),
        WEIGHT: {"low": 0, "high": 50} | ({"step": 12.5} if steps else {}),
    }
    if conditional:
        choices = {NAME: {"choices": ["erat", "dividemix"]}}
        parameters = choices | parameters | {THRESHOLD: {"choices": [0.2, 0.5, 0.7], "when": {NAME: "dividemix"}}}
        parameters[ETA] |= {"when": {NAME: "erat"}}
    point = {ETA: 0.25, WEIGHT: 25.0} | ({NAME: "erat"} if conditional else {})
    content = {
        "name": "space",
        "about": "",
        "parameters": parameters,
        "points": [point],
        "startup": 3,
        "window": WINDOW,
    }
    made = SearchSpace.model_validate(content | {"sampler": sampler} | dict(settings))
    sampling.check(made)
    return made


@pytest.fixture(autouse=True)
def coarse_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit Gaussian processes coarsely and look at few places: which results they saw shows all the same."""
    monkeypatch.setattr(gp, "fit_kernel_params", partial(gp.fit_kernel_params, gtol=1.0))
    whole = optuna.samplers.GPSampler.__init__

    def coarse(sampler: optuna.samplers.GPSampler, *args: Any, **options: Any) -> None:
        whole(sampler, *args, **options)
        for name, value in (("_n_preliminary_samples", 64), ("_n_local_search", 2), ("_tol", 0.01)):
            assert hasattr(sampler, name), f"Optuna's {name} has another name now"
            setattr(sampler, name, value)

    monkeypatch.setattr(optuna.samplers.GPSampler, "__init__", coarse)


class KilledError(Exception):
    """The driver dies."""


@dataclass
class World:
    """What outlives a driver: what the ledger knows of one study, and how well and how fast trials learn.

    Args:
        space: the space.
        lengths: which set of lengths the trials have.
        proposed: the trials that were proposed, with their results at their ends or at a rung.
        promoted: number of a trial -> epoch of the last rung from which it was promoted.
        totals: numbers of trials that were asked for.
        windows: those of them that have another window than the space -> their window.
    """

    space: SearchSpace
    lengths: int = 0
    proposed: dict[int, Trial] = field(default_factory=dict)
    promoted: dict[int, int] = field(default_factory=dict)
    totals: list[int] = field(default_factory=list)
    windows: dict[int, int] = field(default_factory=dict)

    def run(self, slots: int, total: int = TOTAL, *, killed_after: int | None = None) -> list[tuple[Any, ...]]:
        """Run the study, or what is left of it, and return number, values and status of all its trials.

        Args:
            slots: number of trials that run at a time.
            total: number of trials.
            killed_after: number of epochs, of all trials, after which the driver dies. None: it does not.
        """
        space, left = self.space, killed_after
        self.totals = sorted({*self.totals, total})
        sampler = SAMPLERS[space.sampler](
            space.distributions("mnist"),
            seed=7,
            startup=space.startup,
            active=space.active,
            objective=space.objective,
        )
        queue = Queue(
            runs=[],
            points=space.scaled_points("mnist"),
            total=total,
            window=WINDOW,
            sampler=sampler,
            pruner=PRUNERS[space.pruner](space, EPOCHS),
            block=space.block,
            known=dict(self.proposed),
            trial_of=self._trial,
            on_proposed=lambda trial: self.proposed.setdefault(trial.number, replace(trial, result=None)) and None,
            epochs=EPOCHS,
            totals=self.totals,
            windows=self.windows,
            promoted=dict(self.promoted),
            on_promoted=lambda trial, epoch: self.promoted.update({trial.number: epoch}),
        )

        def accuracies(trial: Trial) -> Sequence[float]:
            nonlocal left
            if left is not None:
                if left == 0:
                    raise KilledError
                left -= 1
            return self._curve(trial)

        try:
            trials = simulate(queue, slots, self._seconds, accuracies).trials
        except KilledError:
            trials = [queue.trials[number] for number in sorted(queue.trials)]
        for trial in trials:
            if trial.ended or trial.status == "paused":
                self.proposed[trial.number] = trial
        return [(trial.number, trial.params, trial.status) for trial in trials]

    def _trial(self, number: int, source: str, params: dict[str, Any]) -> Trial:
        trial = Trial(number, str(number), params, source, {"train.epochs": EPOCHS, "train.seed": 0})
        result: RunResult | None = self.proposed[number].result if number in self.proposed else None
        if result is not None and result.status == "paused" and self.promoted.get(number, 0) >= result.epochs:
            result = replace(result, status="queued")
        return replace(trial, result=result)

    def _seconds(self, trial: Trial) -> float:
        return random.Random(self.lengths * 1000 + trial.number).uniform(0.5, 2)

    def _curve(self, trial: Trial) -> list[float]:
        at, weight = trial.params.get(ETA, 0.5), trial.params[WEIGHT] / 50
        top = 0.9 - 0.3 * ((at - 0.3) ** 2 + (weight - 0.6) ** 2) - 0.1 * trial.params.get(THRESHOLD, 0)
        return [top * (epoch + 1) / EPOCHS for epoch in range(EPOCHS)]


@cache
def undisturbed(sampler: str, pruner: str) -> list[tuple[Any, ...]]:
    return World(space_for(sampler, PRUNER_OF[pruner])).run(4)


def cases(values: Sequence[tuple[int, ...]], brief: Sequence[tuple[int, ...]]) -> list[Any]:
    """Return each sampler with each pruner and values.

    Gaussian processes take seconds: with them only `brief` is quick, and only with halving, which asks more of a
    sampler than the median does: trials that pause, are stopped, and go on.
    """
    return [
        pytest.param(
            *(sampler, pruner, *each),
            marks=[pytest.mark.slow] * (sampler == "gp" and (each not in brief or pruner != "halving")),
        )
        for sampler in SAMPLERS.names()
        for pruner in PRUNER_OF
        for each in values
    ]


@pytest.mark.parametrize(("sampler", "pruner", "slots", "lengths"), cases(CLOCKS, [CLOCKS[0], CLOCKS[-1]]))
def test_proposals_depend_neither_on_slots_nor_on_lengths(sampler: str, pruner: str, slots: int, lengths: int) -> None:
    world = World(space_for(sampler, PRUNER_OF[pruner]), lengths)
    assert world.run(slots) == undisturbed(sampler, pruner)


@pytest.mark.parametrize(("sampler", "pruner", "killed_after"), cases([(1,), (18,), (31,)], [(18,)]))
def test_a_study_goes_on_with_the_same_proposals_after_a_kill(sampler: str, pruner: str, killed_after: int) -> None:
    world = World(space_for(sampler, PRUNER_OF[pruner]))
    before = world.run(4, killed_after=killed_after)
    assert {status for _, _, status in before} - {"done", "stopped"}, "or the kill came too late"
    assert world.run(1) == undisturbed(sampler, pruner)


@pytest.mark.parametrize(("sampler", "pruner"), cases([()], [()]))
def test_when_a_search_is_extended_the_old_trials_stay(sampler: str, pruner: str) -> None:
    world = World(space_for(sampler, PRUNER_OF[pruner]))
    assert world.run(4) == undisturbed(sampler, pruner)
    longer = world.run(4, LONGER)
    assert longer[:TOTAL] == undisturbed(sampler, pruner)
    assert len(longer) == LONGER


@pytest.mark.parametrize(("sampler", "pruner"), cases([()], [()]))
@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_an_extension_may_have_a_window_of_its_own(sampler: str, pruner: str, window: int) -> None:
    """Also if the search is extended before it has ended, or the driver is killed among the further trials."""

    def extended(lengths: int) -> World:
        return World(space_for(sampler, PRUNER_OF[pruner]), lengths, totals=[TOTAL], windows={LONGER: window})

    whole = extended(0).run(4, LONGER)
    assert whole[:TOTAL] == undisturbed(sampler, pruner)
    for slots, lengths in CLOCKS[::2]:
        assert extended(lengths).run(slots, LONGER) == whole
    world = World(space_for(sampler, PRUNER_OF[pruner]), windows={LONGER: window})
    world.run(4, killed_after=31)
    world.run(16, LONGER, killed_after=40)
    assert world.run(2, LONGER) == whole


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS.names() if SAMPLERS.abilities(name).conditions])
def test_conditional_keys(sampler: str) -> None:
    """A sampler may remember what it drew for a key that a trial does not have; a resumed study cannot know that."""
    space = space_for(sampler, PRUNER_OF["halving"] | {"startup": 2}, conditional=True)
    whole = World(space).run(4)
    for params in [params for _, params, _ in whole]:
        assert (ETA in params) == (params[NAME] == "erat") == (THRESHOLD not in params)
    for slots, killed_after in ((16, 20), (1, 33)):
        world = World(space)
        world.run(slots, killed_after=killed_after)
        assert world.run(3) == whole


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS.names() if SAMPLERS.abilities(name).objectives > 1])
def test_two_objectives(sampler: str) -> None:
    """The seconds of an epoch are a result here, so that only studies of equal lengths can be compared."""
    space = space_for(sampler, {"pruner": "none", "objective": ["val_accuracy", "cost"]})
    whole = World(space).run(4, 8)
    assert World(space).run(16, 8) == whole
    world = World(space)
    world.run(4, 8, killed_after=25)
    assert world.run(1, 8) == whole
