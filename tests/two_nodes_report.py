"""What `tests.two_nodes` found, as Markdown, and whether it is within the tolerances, which are all here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]

# Rounding turns sign steps and selections, and a run goes its own way from there: accuracies are compared in the mean
# over seeds. It may lie this far from none, or two standard errors, which excuse no more than the second number.
POINT, AT_MOST = 0.01, 0.03
# Samples of which both would believe, or not, the label: no fewer than this, and than two seeds of one worker share.
SAME = 0.90
SEEDS_SHARE = 0.02  # less than which it may be below that
LOSS = 0.05  # of an epoch's training loss, in the mean over seeds
# Of the largest number in a parameter's gradient. ERAT's attack takes sign steps; DivideMix's prior penalty after the
# warm-up is of each worker's own share (tests/unit/test_parallel_defenses.py).
GRADIENT = {
    ("erat", "warm-up"): 1e-2,
    ("erat", "after it"): 1e-2,
    ("dividemix", "warm-up"): 1e-3,
    ("dividemix", "after it"): 5e-2,
}
FIGURES = {"accuracy": "final test accuracy", "precision": "precision of the selection", "noise_caught": "noise caught"}


def report(rows: Sequence[Row]) -> tuple[str, bool]:
    """The tables, and whether every tolerance holds. Seeds that lack one of their two runs are left out."""
    runs = [row for row in rows if row["what"] == "run"]
    pairs = {defense: _pairs(runs, defense) for defense in dict.fromkeys(run["defense"] for run in runs)}
    parts = [part(pairs) for part in (_figures, _selections, _losses)]
    parts += [_places(runs), _gradients([row for row in rows if row["what"] == "gradients"])]
    said = [line for lines, _ in parts for line in [*lines, ""]]
    holds = all(kept for _, kept in parts)
    return "\n".join([*said, f"All tolerances hold: {'yes' if holds else 'NO'}."]), holds


def _pairs(runs: Iterable[Row], defense: str) -> list[tuple[Row, Row]]:
    """(one worker's run, two workers'), for each seed that has both."""
    of = {(run["seed"], run["workers"]): run for run in runs if run["defense"] == defense}
    seeds = sorted({seed for seed, _ in of})
    return [(of[seed, 1], of[seed, 2]) for seed in seeds if (seed, 1) in of and (seed, 2) in of]


Pairs = dict[str, list[tuple[Row, Row]]]
Part = tuple[list[str], bool]


def _figures(pairs: Pairs) -> Part:
    lines = [
        "| defense | figure | one worker | two nodes | two minus one | within |",
        "|:--|:--|--:|--:|--:|:--|",
    ]
    kept = []
    for defense, both in pairs.items():
        for name, words in FIGURES.items():
            one, two = ([run[name] for run in runs] for runs in zip(*both, strict=True))
            difference, error = paired(one, two)
            limit = max(POINT, min(2 * error, AT_MOST))
            kept.append(abs(difference) <= limit)
            shift = f"{100 * difference:+.2f} ± {100 * error:.2f}"
            judged = f"{100 * limit:.2f}: {_word(kept[-1])}"
            lines.append(f"| {defense} | {words} | {_spread(one)} | {_spread(two)} | {shift} | {judged} |")
    seeds = {defense: len(both) for defense, both in pairs.items()}
    lines += ["", f"In %, mean ± standard deviation over seeds ({seeds}); difference ± its standard error."]
    return lines, all(kept)


def paired(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences two - one, and its standard error; of a single pair that is 0."""
    differences = [b - a for a, b in zip(one, two, strict=True)]
    return mean(differences), stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0


def _selections(pairs: Pairs) -> Part:
    lines = [
        "| defense | same status, one worker and two nodes | two seeds of one worker | within |",
        "|:--|--:|--:|:--|",
    ]
    kept = []
    for defense, both in pairs.items():
        same = [agreement(one, two) for one, two in both]
        others = [agreement(a, b) for (a, _), (b, _) in combinations(both, 2)]
        limit = max(SAME, mean(others) - SEEDS_SHARE) if others else SAME
        kept.append(mean(same) >= limit)
        between = _spread(others) if others else ""
        lines.append(f"| {defense} | {_spread(same)} | {between} | {100 * limit:.1f} at least: {_word(kept[-1])} |")
    lines += ["", "Samples, in %, whose label another epoch would believe in both runs, or in neither."]
    return lines, all(kept)


def agreement(one: Row, two: Row) -> float:
    """Share of the samples of which both believe the label, or neither."""
    return float((_mask(one) == _mask(two)).mean())


def _mask(run: Row) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(run["believed"]), np.uint8), count=run["samples"])


def _losses(pairs: Pairs) -> Part:
    epochs = max(len(one["loss"]) for both in pairs.values() for one, _ in both)
    lines = [
        "| defense | training loss, two nodes to one worker | " + " | ".join(map(str, range(1, epochs + 1))) + " |",
        "|:--|:--|" + "--:|" * epochs,
    ]
    kept = []
    for defense, both in pairs.items():
        relative = [[b / a - 1 for a, b in zip(one["loss"], two["loss"], strict=True)] for one, two in both]
        means = [mean(column) for column in zip(*relative, strict=True)]
        largest = [max(map(abs, column)) for column in zip(*relative, strict=True)]
        kept.append(max(map(abs, means)) <= LOSS)
        for words, values in {"mean": means, "of any seed": largest}.items():
            lines.append(f"| {defense} | {words} | " + " | ".join(f"{100 * value:+.3f}" for value in values) + " |")
    lines += ["", f"By epoch, in %. The mean within {100 * LOSS:.0f} %: {_word(all(kept))}."]
    return lines, all(kept)


def _places(runs: Sequence[Row]) -> Part:
    """Where the workers were."""
    apart = [len(set(run["nodes"])) == 2 for run in runs if run["workers"] == 2]
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


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}"


def _word(kept: bool) -> str:
    return "holds" if kept else "DOES NOT HOLD"
