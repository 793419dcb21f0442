"""Draws the candidates of a search over their seeds, and says whether the first leads by more than their noise."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.report.draws import LEVEL, interval
from orchestration.report.notation import percent
from orchestration.report.plots.figure import SHOWN, TOGGLE, Figure, data, layered, names, quantity, shapes, tips
from orchestration.study.confirmations import Confirmed, confirmed
from orchestration.study.trial import Trial


def confirmations(rows: Sequence[Trial]) -> Figure | None:
    """Draw for each candidate the accuracies of its seeds and the interval of their mean; None if there are none."""
    candidates = confirmed(rows)
    dots, means = [], []
    for each in candidates:
        name = f"trial {each.trial.number}"
        for kind, reached in _figures(each).items():
            known = [(run, height) for run, height in reached if height is not None]
            dots += [
                {
                    "candidate": name,
                    "kind": kind,
                    "y": height,
                    "seed": str(run.config.get("train.seed")),
                    "runs": run.cell,
                }
                for run, height in known
            ]
            heights = [height for _, height in known]
            if len(heights) > 1:
                low, high = interval(heights)
                mean = sum(heights) / len(heights)
                means.append(
                    {"candidate": name, "kind": kind, "mean": mean, "low": low, "high": high, "n": len(heights)}
                )
    if not means:
        return None
    kinds = {"validation, which chooses": ("var(--c0)", "circle"), "test, which does not": ("var(--c1)", "diamond")}
    place = {"y": names("candidate", None, axis={"title": None, "grid": False}), "yOffset": names("kind")}
    x = quantity("mean", "accuracy, %")
    span = {**place, "x": quantity("low", "accuracy, %"), "x2": {"field": "high"}, "color": shapes(kinds)["color"]}
    told_mean = tips(
        ("candidate", "of"),
        ("kind", "accuracy"),
        ("mean", "mean", ".2f"),
        ("low", "from", ".2f"),
        ("high", "to", ".2f"),
        ("n", "seeds", "d"),
    )
    told_dot = tips(("candidate", "of"), ("kind", "accuracy"), ("seed", "seed"), ("y", "%", ".2f"))
    spec = layered(
        {"data": data(means), "mark": {"type": "rule", "strokeWidth": 2}, "encoding": span | {"tooltip": told_mean}},
        {
            "data": data(dots),
            "params": [TOGGLE],
            "mark": {"type": "tick", "thickness": 2, "size": 16, "opacity": 0.6},
            "encoding": {**place, "x": quantity("y", "accuracy, %"), "color": shapes(kinds)["color"]}
            | {"opacity": SHOWN, "tooltip": told_dot},
        },
        {
            "data": data(means),
            "mark": {"type": "point", "size": 110},
            "encoding": {**place, "x": x, **shapes(kinds), "opacity": SHOWN, "tooltip": told_mean},
        },
        height=58 * len(candidates),
    )
    words = "; ".join(
        f"{each['candidate']}, {each['kind']}: {each['mean']:.1f} ({each['low']:.1f} to {each['high']:.1f})"
        for each in means
    )
    caption = (
        f"The best trials with further seeds: a stroke per seed, the mean, and its {LEVEL:.0%} interval (Student's t "
        f"over the seeds). {lead(candidates)}"
    )
    return Figure("confirmation", caption.strip(), words, spec)


def _figures(each: Confirmed) -> dict[str, list[tuple[Trial, float | None]]]:
    return {
        "validation, which chooses": [(run, percent(run.best_val_accuracy)) for run in each.runs],
        "test, which does not": [(run, percent(run.final_test_accuracy)) for run in each.runs],
    }


def lead(candidates: Sequence[Confirmed]) -> str:
    """Say whether the first candidate leads the second by more than the noise of seeds; nothing if one is alone."""
    complete = [each for each in candidates if each.complete]
    if len(complete) < 2:
        return ""
    first, second = complete[:2]
    mine, theirs = (
        {
            run.config.get("train.seed"): height
            for run in each.runs
            if (height := percent(run.best_val_accuracy)) is not None
        }
        for each in (first, second)
    )
    found = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if len(found) < 2:
        return ""
    (low, high), ahead = interval(found), sum(found) / len(found)
    verdict = "within the noise of seeds" if low <= 0 <= high else "more than the noise of seeds"
    return (
        f"Trial {first.trial.number} is {ahead:+.2f} points from trial {second.trial.number} over {len(found)} shared "
        f"seeds, {LEVEL:.0%} interval [{low:+.2f}, {high:+.2f}]: {verdict}."
    )
