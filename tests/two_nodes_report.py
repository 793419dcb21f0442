"""Reports the results of `tests.two_nodes` as Markdown, and whether they are within the tolerances, which are all here.

Rounding changes sign steps and selections, after which two runs diverge. A third arm shows how far: one worker that
adds in another order (`train.channels_last`). In the mean over seeds, two nodes must agree with one worker; for each
seed, they must not differ more from it than the third arm does, within the factors below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Row = dict[str, Any]

CONFIDENCE = 0.99  # of the interval around a mean difference that must contain 0, unless the mean is below the floor
SIZE = 3.0  # the differences of two nodes may be this many times those of the third arm (root mean square), plus floor
POINT = 0.01  # the floor for accuracies, precision and noise caught, and for the training loss
SAME = 0.02  # the floor for the share of samples that two runs judge alike
AT_MOST = 0.10  # the most by which that share may lie below that of the third arm
FIRST = 1e-3  # relative tolerance for the training loss of the first epoch, in every seed
# Relative to the largest number in the gradient of a parameter. ERAT's attack takes sign steps; the prior penalty of
# DivideMix after the warm-up is computed from each worker's own share
# (tests/unit/erat/engine/test_parallel_defenses.py).
GRADIENT = {
    ("erat", "warm-up"): 1e-2,
    ("erat", "after it"): 1e-2,
    ("dividemix", "warm-up"): 1e-3,
    ("dividemix", "after it"): 5e-2,
}
FIGURES = {"accuracy": "final test accuracy", "precision": "precision of the selection", "noise_caught": "noise caught"}
ARMS = ("one worker", "two nodes", "rounded otherwise")


class Seed(NamedTuple):
    """The runs of one seed, one for each arm."""

    one: Row
    two: Row
    other: Row


Seeds = dict[str, list[Seed]]  # by defense
Part = tuple[list[str], bool]  # lines, and whether the tolerances hold


def report(rows: Sequence[Row]) -> tuple[str, bool]:
    """Return (the tables, whether every tolerance holds). Seeds that lack one of their runs are left out."""
    runs = [row for row in rows if row["what"] == "run"]
    seeds = {defense: _seeds(runs, defense) for defense in dict.fromkeys(run["defense"] for run in runs)}
    parts = [part(seeds) for part in (_figures, _selections, _losses)]
    parts += [_places(runs), _gradients([row for row in rows if row["what"] == "gradients"])]
    said = [line for lines, _ in parts for line in [*lines, ""]]
    holds = all(kept for _, kept in parts)
    return "\n".join([*said, f"All tolerances hold: {'yes' if holds else 'NO'}."]), holds


def _seeds(runs: Iterable[Row], defense: str) -> list[Seed]:
    of = {(run["seed"], run["arm"]): run for run in runs if run["defense"] == defense}
    seeds = sorted({seed for seed, _ in of})
    return [Seed(*(of[seed, arm] for arm in ARMS)) for seed in seeds if all((seed, arm) in of for arm in ARMS)]


# --- differences -----------------------------------------------------------------------------------------------------


def shift(differences: Sequence[float]) -> tuple[float, float]:
    """Return (the mean of the differences, its standard error, which is 0 for a single difference)."""
    count = len(differences)
    return fmean(differences), stdev(differences) / count**0.5 if count > 1 else 0.0


def slack(differences: Sequence[float], floor: float) -> float:
    """Return how far the mean may be from 0: half of Student's confidence interval, or the floor if that is larger."""
    half = student.ppf(0.5 + CONFIDENCE / 2, len(differences) - 1) if len(differences) > 1 else 0.0
    return max(floor, float(half) * shift(differences)[1])


def size(differences: Sequence[float]) -> float:
    """Return the root mean square of the differences."""
    return math.sqrt(fmean(d * d for d in differences))


def alike(two: Sequence[float], other: Sequence[float], floor: float) -> bool:
    """Return whether the differences of two nodes from one worker are 0 in the mean and as small as the third arm's."""
    return abs(shift(two)[0]) <= slack(two, floor) and size(two) <= SIZE * size(other) + floor


# --- tables ----------------------------------------------------------------------------------------------------------


def _figures(seeds: Seeds) -> Part:
    lines = [
        "| defense | figure | one worker | two nodes | two nodes - one | rounded otherwise - one | within |",
        "|:--|:--|--:|--:|--:|--:|:--|",
    ]
    kept = []
    for defense, runs in seeds.items():
        for name, words in FIGURES.items():
            one, two, other = ([run[name] for run in arm] for arm in zip(*runs, strict=True))
            ours, theirs = _minus(two, one), _minus(other, one)
            kept.append(alike(ours, theirs, POINT))
            judged = f"± {100 * slack(ours, POINT):.2f}: {_word(kept[-1])}"
            cells = (defense, words, _spread(one), _spread(two), _shift(ours), _shift(theirs), judged)
            lines.append(f"| {' | '.join(cells)} |")
    counted = ", ".join(f"{defense}: {len(runs)}" for defense, runs in seeds.items())
    lines += [
        "",
        f"In %: mean ± standard deviation over seeds ({counted}); differences of the same seed: mean ± standard error "
        "(root mean square).",
    ]
    return lines, all(kept)


def _selections(seeds: Seeds) -> Part:
    lines = [
        "| defense | one worker and two nodes | one worker and rounded otherwise | two seeds of one worker | within |",
        "|:--|--:|--:|--:|:--|",
    ]
    kept = []
    for defense, runs in seeds.items():
        ours = [agreement(seed.one, seed.two) for seed in runs]
        theirs = [agreement(seed.one, seed.other) for seed in runs]
        strangers = [agreement(a.one, b.one) for a, b in combinations(runs, 2)]
        less = _minus(ours, theirs)
        limit = min(slack(less, SAME), AT_MOST)
        kept.append(shift(less)[0] >= -limit)
        between = _spread(strangers) if strangers else ""
        judged = f"{100 * limit:.2f} below at most: {_word(kept[-1])}"
        lines.append(f"| {defense} | {_spread(ours)} | {_spread(theirs)} | {between} | {judged} |")
    lines += ["", "Samples, in %, whose label another epoch would believe in both runs, or in neither."]
    return lines, all(kept)


def agreement(one: Row, two: Row) -> float:
    """Return the share of the samples whose label both runs believe, or neither does."""
    return float((_mask(one) == _mask(two)).mean())


def _mask(run: Row) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(run["believed"]), np.uint8), count=run["samples"])


def _losses(seeds: Seeds) -> Part:
    epochs = max(len(seed.one["loss"]) for runs in seeds.values() for seed in runs)
    lines = [
        "| training loss, off one worker's | " + " | ".join(map(str, range(1, epochs + 1))) + " | all, signed |",
        "|:--|" + "--:|" * (epochs + 1),
    ]
    kept = []
    for defense, runs in seeds.items():
        ours, theirs = ([_off(seed.one, arm) for seed, arm in _against(runs, place)] for place in (1, 2))
        means, others = ([fmean(of_seed) for of_seed in arm] for arm in (ours, theirs))
        kept.append(alike(means, others, POINT) and max(abs(of_seed[0]) for of_seed in ours) <= FIRST)
        for arm, values, signed in ((ARMS[1], ours, means), (ARMS[2], theirs, others)):
            by_epoch = (fmean(map(abs, column)) for column in zip(*values, strict=True))
            cells = " | ".join(f"{100 * value:.3f}" for value in by_epoch)
            lines.append(f"| {defense}, {arm} | {cells} | {_shift(signed)} |")
    lines += [
        "",
        "By epoch, in % of one worker's loss: mean over seeds without the sign; of all epochs with it. "
        f"In the mean as above, and the first epoch within {100 * FIRST:.1f} % in every seed: {_word(all(kept))}.",
    ]
    return lines, all(kept)


def _against(runs: Sequence[Seed], place: int) -> list[tuple[Seed, Row]]:
    return [(seed, seed[place]) for seed in runs]


def _off(one: Row, run: Row) -> list[float]:
    return [b / a - 1 for a, b in zip(one["loss"], run["loss"], strict=True)]


def _places(runs: Sequence[Row]) -> Part:
    """Report where the workers were."""
    apart = [len(set(run["nodes"])) == 2 for run in runs if run["arm"] == "two nodes"]
    where = sorted({node.split()[0] for run in runs for node in run["nodes"]})
    how = "network namespaces" if all(run["namespaces"] for run in runs) else "NOT all in network namespaces"
    line = f"Runs with two workers on two nodes: {sum(apart)} of {len(apart)}; addresses {', '.join(where)} ({how})."
    return [line], all(apart)


def _gradients(rows: Sequence[Row]) -> Part:
    lines = ["| first step | largest relative difference of the gradient | within |", "|:--|--:|:--|"]
    kept = []
    for row in rows:
        limit = GRADIENT[row["defense"], row["step"]]
        kept.append(row["relative"] <= limit)
        lines.append(f"| {row['defense']}, {row['step']} | {row['relative']:.1e} | {limit:.0e}: {_word(kept[-1])} |")
    places = {address for row in rows for address in row["addresses"]}
    lines += ["", f"Of two processes at {', '.join(sorted(places))}, without Ray, to one process."]
    return lines, all(kept)


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(theirs, ours, strict=True)]


def _shift(differences: Sequence[float]) -> str:
    mean, error = shift(differences)
    return f"{100 * mean:+.2f} ± {100 * error:.2f} ({100 * size(differences):.2f})"


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"


def _word(kept: bool) -> str:
    return "holds" if kept else "DOES NOT HOLD"
