"""How a search fills a cluster, on a simulated clock: the project's own queue, pruners and sampler, imagined trainings.

The table compares windows and rungs with generations of two, as the search proposed before it had windows. A training
has 100 epochs, and the length of a whole one is drawn from N(1, 0.2), so that times are in full trainings. The surface
resembles that of the paper's budgets: two ranges, one of them logarithmic, with a flat top that lies at an angle, where
a trial that ends 0.4 points better by its seed alone is as frequent as one that is 0.4 points better by its values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from orchestration.search.observations import Observations
from orchestration.search.queue import Queue
from orchestration.search.simulate import Course, simulate
from orchestration.study.registries import PRUNERS, SAMPLERS
from orchestration.study.spaces import SearchSpace, load_space
from orchestration.study.trial import Trial

EPOCHS, TRIALS = 100, 200
SLOTS = (8, 64, 512)
# Where decisions must not differ: slots, seeds of the lengths; with this window and number of trials.
SAME_SLOTS, SAME_LENGTHS, SAME_WINDOW, SAME_TRIALS = (2, 8, 24, 64), (0, 1, 2), 48, 100
INF, TWO = "defense.epsilon_inf", "defense.epsilon_2"
BEST = 0.93  # the largest accuracy that any values reach on average


class _OfGenerations(Observations):
    """A proposal depends on the trials before its generation of two. The window is not read."""

    def limit(self, number: int, level: int) -> int:
        return self.begin + (number - self.begin) // 2 * 2


class Generations(Queue):
    """A queue that makes its proposals in generations of two, as before there were windows."""

    observing = _OfGenerations


@dataclass(frozen=True)
class Policy:
    """What a row of the table is about.

    Attributes:
        name: what the table calls it.
        pruner: name of the pruner.
        rungs: its rungs, for "halving".
        kind: class of the queue.
        most: least use and largest time on 64 slots; None: no bound.
    """

    name: str
    pruner: str
    rungs: tuple[int, ...] = ()
    kind: type[Queue] = Queue
    most: tuple[float, float] | None = None


POLICIES = (
    Policy("generations of 2, median stopping", "median", kind=Generations),
    Policy("window of 2 x slots, median stopping", "median", most=(0.80, 4.2)),
    Policy("window of 2 x slots, halving 30/100", "halving", (30,), most=(0.0, 2.7)),
    Policy("window of 2 x slots, halving 11/33/100", "halving", (11, 33)),
)


@cache
def space() -> SearchSpace:
    """The budgets, without the points, so that the search alone is compared."""
    return load_space("budgets").model_copy(update={"points": [], "baselines": []})


def reached(params: dict[str, Any]) -> float:
    """Return the accuracy at the end of a training with these values, on average over seeds."""
    kinds = space().distributions("cifar10")
    low, high = math.log(kinds[INF].low), math.log(kinds[INF].high)  # type: ignore[attr-defined]
    across = (math.log(params[INF]) - low) / (high - low) - 0.65
    along = (params[TWO] - kinds[TWO].low) / (kinds[TWO].high - kinds[TWO].low) - 0.55  # type: ignore[attr-defined]
    return BEST - 0.12 * across**2 - 0.10 * along**2 - 0.08 * across * along


def curve(trial: Trial, seed: int) -> list[float]:
    draw = random.Random(f"{seed} {trial.number}")
    top, tau = reached(trial.params) + draw.gauss(0, 0.004), draw.uniform(10, 15)
    return [top - 0.6 * math.exp(-epoch / tau) + draw.gauss(0, 0.002) for epoch in range(1, EPOCHS + 1)]


def run(policy: Policy, slots: int, window: int, trials: int = TRIALS, seed: int = 0, lengths: int = 0) -> Course:
    """Run a search, and return how it went.

    Args:
        policy: how it proposes and stops.
        slots: number of trials that run at a time.
        window: its window.
        trials: number of trials.
        seed: seed of the sampler and of the accuracies.
        lengths: seed of the lengths of the trainings.
    """
    settings = space().model_copy(update={"pruner": policy.pruner, "rungs": list(policy.rungs)})
    queue = policy.kind(
        runs=[],
        points=[],
        total=trials,
        window=window,
        sampler=SAMPLERS["tpe"](settings.distributions("cifar10"), seed=seed, startup=10, active=settings.active),
        pruner=PRUNERS[policy.pruner](settings, EPOCHS),
        block=settings.block,
        known={},
        trial_of=lambda number, source, params: Trial(number, f"{params}", params, source, {"train.epochs": EPOCHS}),
        on_proposed=lambda trial: None,
        epochs=EPOCHS,
    )
    curves = cache(lambda number: curve(queue.trials[number], seed))
    draw = random.Random(f"lengths {lengths} {seed}")
    length = [max(0.3, draw.gauss(1, 0.2)) / EPOCHS for _ in range(trials)]
    ahead = _next_decision(policy, settings)
    return simulate(queue, slots, lambda t: length[t.number], lambda t: curves(t.number), following=ahead)


def _next_decision(policy: Policy, settings: SearchSpace) -> Callable[[Trial, int], int]:
    rungs = [*policy.rungs, EPOCHS]
    if policy.pruner == "halving":
        return lambda trial, epoch: next(rung for rung in rungs if rung > epoch)
    grace = round(settings.grace * EPOCHS)
    return lambda trial, epoch: max(epoch + 1, grace)


def regret(course: Course) -> float:
    """Return by how many points the values that were chosen by validation miss the best ones, on average over seeds."""
    done = [trial for trial in course.trials if trial.status == "done"]
    chosen = max(done, key=lambda trial: trial.best_val_accuracy or 0)
    return 100 * (BEST - reached(chosen.params))


def differing(policy: Policy) -> int:
    """Return how many of the clusters and lengths give another table of trials and decisions than the first."""
    tables = [
        [(trial.params, trial.status, trial.epoch) for trial in course.trials]
        for slots, lengths in product(SAME_SLOTS, SAME_LENGTHS)
        for course in [run(policy, slots, SAME_WINDOW, SAME_TRIALS, lengths=lengths)]
    ]
    return sum(table != tables[0] for table in tables)


def report(console: Console, repeats: int) -> bool:
    """Print the table in Markdown, each figure a mean over so many seeds of the search; return if bounds are kept."""
    columns = [f"{slots} slots: use / time" for slots in SLOTS]
    print(f"| policy | {' | '.join(columns)} | work (64) | regret, points | same decisions |")
    print("|---|" + "--:|" * (len(columns) + 3))
    kept = True
    for policy in POLICIES:
        console.print(f"simulating {policy.name} ...", style="dim")
        courses = {slots: _courses(policy, slots, repeats) for slots in SLOTS}
        figures = {slots: (_mean(courses[slots], "use"), _mean(courses[slots], "time")) for slots in SLOTS}
        misses = [regret(course) for course in courses[64]]
        error = f" ± {stdev(misses) / math.sqrt(repeats):.2f}" if repeats > 1 else ""
        clusters = len(SAME_SLOTS) * len(SAME_LENGTHS)
        same = clusters - differing(policy)
        cells = [f"{100 * use:.1f} % / {time:.2f}" for use, time in figures.values()]
        cells += [
            f"{_mean(courses[64], 'work'):.0f}",
            f"{mean(misses):.2f}{error}",
            f"{same} of {clusters}",
        ]
        print(f"| {' | '.join([policy.name, *cells])} |", flush=True)
        kept &= same == clusters
        if policy.most is not None:
            use, time = policy.most
            good = figures[64][0] >= use and figures[64][1] <= time
            console.print(
                f"  bound on 64 slots: use {use:.0%} or more, time {time} or less: {'kept' if good else 'MISSED'}"
            )
            kept &= good
    return kept


def _courses(policy: Policy, slots: int, repeats: int) -> list[Course]:
    if policy.kind is Generations:  # two trials run at a time at most, so that further slots change nothing else
        return [replace(course, slots=slots) for course in _of_two(policy, repeats)]
    return [run(policy, slots, 2 * slots, seed=seed, lengths=seed) for seed in range(repeats)]


@cache
def _of_two(policy: Policy, repeats: int) -> list[Course]:
    return [run(policy, 2, 1, seed=seed, lengths=seed) for seed in range(repeats)]


def _mean(courses: Sequence[Course], figure: str) -> float:
    return mean(getattr(course, figure) for course in courses)
