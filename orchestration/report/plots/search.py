"""Draws the trials of a search: in the order of their numbers, over epochs and rungs, their cost, and over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from orchestration.report.costs import OTHERS, cost, front, measured
from orchestration.report.notation import (
    accuracy,
    baseline_name,
    header,
    number_of,
    origin,
    promotion,
    state,
    tested,
    validated,
    value,
)
from orchestration.report.plots.figure import (
    SHOWN,
    TOGGLE,
    ZOOM,
    Figure,
    Json,
    accuracies,
    below,
    data,
    layered,
    names,
    quantity,
    shapes,
    tips,
    wide,
)
from orchestration.report.summary import best, rungs_of
from orchestration.study.trial import Trial

MOST_CURVES = 200  # a figure with more cannot be read, and would make the page heavy
MOST_POINTS = 60  # points of one curve
MOST_DOTS = 2000  # points of trials in a figure
_STAR = "M0,-1L.23,-.31L.95,-.31L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31L-.23,-.31Z"
# how a trial stands -> (colour, shape)
CHOSEN, DONE, AT_RUNG, EARLY = "chosen", "trained to the last epoch", "stopped at a rung", "stopped early"
STANDINGS = {
    CHOSEN: ("var(--c1)", _STAR),
    DONE: ("var(--c0)", "circle"),
    "under way": ("var(--c2)", "diamond"),
    "waits at a rung": ("var(--hold)", "square"),
    AT_RUNG: ("var(--muted)", "triangle-down"),
    EARLY: ("var(--wait)", "cross"),
    "failed": ("var(--bad)", "triangle-up"),
}
VALIDATION = "validation accuracy, best epoch, %"


def standing(row: Trial, chosen: Trial | None) -> str:
    """Return how a trial stands, in the words of the legend."""
    if row is chosen:
        return CHOSEN
    if row.status == "stopped":
        return AT_RUNG if row.at_rung else EARLY
    return {"done": DONE, "paused": "waits at a rung", "failed": "failed"}.get(row.status, "under way")


def standings(points: Sequence[Json]) -> dict[str, tuple[str, str]]:
    """Return the colours and shapes of those standings that occur."""
    found = {point["kind"] for point in points}
    return {kind: style for kind, style in STANDINGS.items() if kind in found}


def searched(rows: Sequence[Trial]) -> list[Trial]:
    """Return the trials of the search that have a validation accuracy, stopped ones too, without listed runs."""
    return [row for row in rows if row.source not in OTHERS and row.status != "failed" and validated(row) is not None]


def front_last(rows: Sequence[Trial], chosen: Trial | None) -> list[Trial]:
    """Return the trials with the chosen one at the end, so that it is drawn over the others."""
    return sorted(rows, key=lambda row: row is chosen)


def point(row: Trial, keys: Sequence[str], chosen: Trial | None) -> Json:
    """Return what figures say of a trial; accuracies are in percent."""
    went_on = promotion(row)
    return {
        "trial": number_of(row),
        "kind": standing(row, chosen),
        "state": f"{state(row)}{' ' + went_on if went_on else ''}, epoch {row.epoch}",
        "source": origin(row),
        "val": validated(row),
        "test": tested(row),
        "runs": row.cell,
        **{f"t{place}": value(key, row.params.get(key)) for place, key in enumerate(keys)},
    }


def told(keys: Sequence[str]) -> list[Json]:
    """Return what is told of a trial under the pointer."""
    settings = ((f"t{place}", header(key)) for place, key in enumerate(keys))
    known = (("trial", "trial"), ("state", "state"), ("source", "from"), ("val", "validation, %", ".1f"))
    return tips(*known, ("test", "test, last epoch, %", ".1f"), *settings)


def history(rows: Sequence[Trial], keys: Sequence[str]) -> Figure | None:
    """Draw the validation accuracy of each trial in the order of their numbers, and the best one so far."""
    chosen, known = best(rows), searched(rows)
    if not known:
        return None
    known = sorted(known, key=lambda row: -(row.best_val_accuracy or 0.0))[:MOST_DOTS]
    known.sort(key=lambda row: row.number)
    points = [point(row, keys, chosen) | {"number": row.number} for row in front_last(known, chosen)]
    climb: list[Json] = []
    for row in known:
        height = validated(row)
        if row.status == "done" and height is not None and (not climb or height > climb[-1]["val"]):
            climb.append({"number": row.number, "val": height})
    if climb:
        climb.append({"number": known[-1].number, "val": climb[-1]["val"]})
    low, high = accuracies([each["val"] for each in points])
    y = quantity("val", VALIDATION, (low, high))
    steps: Json = {"type": "line", "interpolate": "step-after", "color": "var(--muted)", "strokeDash": [4, 3]}
    marks: Json = {"type": "point", "clip": True, "opacity": 0.9}
    spec = layered(
        {
            "data": data(climb),
            "mark": steps | {"clip": True},
            "encoding": {"x": quantity("number", "trial"), "y": y},
        },
        {
            "data": data(points),
            "params": [TOGGLE, ZOOM],
            "mark": marks,
            "encoding": {"x": quantity("number", "trial"), "y": y, "opacity": SHOWN, "tooltip": told(keys)}
            | {"size": wide(CHOSEN)}
            | shapes(standings(points)),
        },
    )
    lost = sum(row.status == "failed" and row.source not in OTHERS for row in rows)
    failed = f" {lost} failed trial{'s have' if lost > 1 else ' has'} no accuracy." if lost else ""
    return Figure(
        "history",
        "Validation accuracy of each trial, in the order in which they were proposed; the dashed line is the best so "
        f"far of those that ran to the last epoch.{failed}{below([each['val'] for each in points], low)}",
        f"{len(points)} trials; best so far: "
        + ", ".join(f"trial {each['number']} {each['val']:.1f}" for each in climb),
        spec,
    )


def curves(rows: Sequence[Trial]) -> Figure | None:
    """Draw the validation accuracy of each trial over its epochs with the winner in front, and a line at each rung.

    Args:
        rows: the trials of a search; listed runs and confirmations are left out.
    """
    rungs, chosen = rungs_of(rows), best(rows)
    known = [row for row in rows if row.source not in OTHERS and row.so_far.val_history]
    if not known:
        return None
    known.sort(key=lambda row: (row is not chosen, row.status != "done", -(row.best_val_accuracy or 0.0), row.number))
    shown = known[:MOST_CURVES]
    lines = [_line(row, chosen) for row in shown]
    low, high = accuracies([height for row in shown if (height := validated(row)) is not None])
    x = quantity("epoch", "epoch", (1, max(2, *(row.epochs or row.epoch for row in known))))
    encoding = {"x": x, "y": quantity("val", "validation accuracy, %", (low, high)), "detail": names("trial")}
    told_of = tips(("trial", "trial"), ("state", "state"), ("best", "best validation, %", ".1f"))
    styles = shapes(standings(lines))
    flat = [{"flatten": ["epoch", "val"]}]
    mark: Json = {"type": "line", "clip": True}

    def layer(part: Sequence[Json], width: float, **more: Any) -> Json:
        colours = {"color": styles["color"], "opacity": SHOWN, "tooltip": told_of}
        drawn = mark | {"strokeWidth": width, "opacity": 0.6 if width < 2 else 1}
        return {"data": data(part), "transform": flat, "mark": drawn, "encoding": encoding | colours, **more}

    others, first = [line for line in lines if line["kind"] != CHOSEN], [li for li in lines if li["kind"] == CHOSEN]
    ends = [_end(line, row) for line, row in zip(lines, shown, strict=True) if row.at_rung or len(line["epoch"]) == 1]
    layers = [layer(others or lines, 1.3, params=[TOGGLE, ZOOM])]
    if rungs:
        layers.insert(0, _rungs(rungs, x))
    if ends:
        ring = {"type": "point", "clip": True, "filled": True, "size": 45}
        layers.append(
            {
                "data": data(ends),
                "mark": ring,
                "encoding": {**encoding, **styles, "opacity": SHOWN, "tooltip": told_of},
            }
        )
    if first and others:
        layers.append(layer(first, 3.2))
    left_out = f" The best {len(shown)} of {len(known)} trials." if len(shown) < len(known) else ""
    at = f", with rungs at {', '.join(map(str, rungs))}" if rungs else ""
    explained = (
        " A dotted line: a rung, where the trials of a block pause; a mark: a trial that ended or waits there."
        if rungs
        else ""
    )
    return Figure(
        "curves",
        "Validation accuracy after each epoch, a curve per trial, the chosen one in front."
        f"{explained}{left_out} Choose a curve to see its run.",
        f"Validation accuracy over epochs{at}: " + "; ".join(map(_words, shown[:20])),
        layered(*layers, height=320),
    )


def _line(row: Trial, chosen: Trial | None) -> Json:
    history = row.so_far.val_history
    step = ceil(len(history) / MOST_POINTS)
    epochs = sorted({*range(1, len(history) + 1, step), len(history), *(r for r in row.rungs if r <= len(history))})
    heights = [round(100 * history[epoch - 1], 2) for epoch in epochs]
    known = {key: value for key, value in point(row, (), chosen).items() if key in ("trial", "kind", "state", "runs")}
    return known | {"best": validated(row), "epoch": epochs, "val": heights}


def _end(line: Json, row: Trial) -> Json:
    return line | {"epoch": line["epoch"][-1], "val": line["val"][-1]}


def _rungs(rungs: Sequence[int], x: Json) -> Json:
    values = data({"epoch": rung, "name": f"rung {rung}"} for rung in rungs)
    rule: Json = {"mark": {"type": "rule", "color": "var(--hold)", "strokeDash": [2, 4]}, "encoding": {"x": x}}
    text = {"type": "text", "align": "left", "dx": 4, "dy": -6, "baseline": "bottom", "color": "var(--muted)"}
    words = {"mark": text, "encoding": {"x": x, "y": {"value": "height"}, "text": {"field": "name"}}}
    return {"data": values, "layer": [rule, words]}


def _words(row: Trial) -> str:
    went_on = promotion(row)
    return f"trial {number_of(row)}, {state(row)}{' ' + went_on if went_on else ''}: {accuracy(row.best_val_accuracy)}"


def promotions(rows: Sequence[Trial]) -> Figure | None:
    """Draw what became of the trials that came to each rung; None without rungs, or before any came to one."""
    rungs, found = rungs_of(rows), [row for row in rows if row.source not in OTHERS]
    bars = []
    for rung in rungs:
        here = [_fate(row, rung) for row in found if row.epoch >= rung]
        bars += [
            {"rung": f"rung {rung}", "kind": fate, "count": here.count(fate), "place": place}
            for place, fate in enumerate(_FATES)
            if fate in here
        ]
    if not bars:
        return None
    shown = [kind for kind in _FATES if any(bar["kind"] == kind for bar in bars)]
    colour = names("kind", legend={"title": None}, scale={"domain": shown, "range": [_FATES[kind] for kind in shown]})
    encoding = {
        "y": names("rung", None, axis={"title": None, "grid": False}),
        "x": quantity("count", "trials that came to the rung", zero=True),
        "order": {"field": "place"},
    }
    told_of = tips(("rung", "at"), ("kind", "of them"), ("count", "trials", "d"))
    edge = {"type": "bar", "stroke": "var(--card)", "strokeWidth": 2}
    count = {"type": "text", "color": "#ffffff", "fontWeight": "bold"}
    middle = {"x": quantity("count", None, zero=True) | {"stack": "zero", "bandPosition": 0.5}}
    spec = layered(
        {
            "mark": edge,
            "params": [TOGGLE],
            "encoding": encoding | {"color": colour, "opacity": SHOWN, "tooltip": told_of},
        },
        {
            "mark": count,
            "encoding": encoding | middle | {"detail": names("kind"), "text": {"field": "count"}},
        },
        height=44 * len(rungs),
        data=data(bars),
    )
    words = "; ".join(f"{bar['rung']}: {bar['count']} {bar['kind']}" for bar in bars)
    return Figure("promotions", "What became of the trials that came to each rung.", words, spec)


# What becomes of a trial at a rung -> its colour; white numbers stand on these.
_FATES = {"went on": "#1d6fa5", "waits": "#7b3fa0", "stopped": "#6b7280", "failed later": "#b3261e"}


def _fate(row: Trial, rung: int) -> str:
    if row.epoch > rung or row.promoted >= rung:
        return "went on"
    return {"stopped": "stopped", "failed": "failed later"}.get(row.status, "waits")


def pareto(rows: Sequence[Trial], keys: Sequence[str]) -> Figure | None:
    """Draw validation accuracy over seconds of an epoch, a point per finished trial, and a line through the front."""
    known, members = measured(rows), front(rows)
    if not known:
        return None
    on_front = {row.number for row in members}
    costs = [seconds for _, seconds, _ in known]
    beaten = [row for row, _, _ in known if row.number not in on_front]
    beaten = sorted(beaten, key=lambda row: -(row.best_val_accuracy or 0.0))[:MOST_DOTS]
    kinds = {
        "on the front, with its number": ("var(--c0)", "circle"),
        "not on the front": ("var(--muted)", "triangle-down"),
    }
    points = [
        point(row, keys, None) | {"cost": cost(row), "kind": list(kinds)[row.number not in on_front]}
        for row in [*beaten, *members]
    ]
    low, high = accuracies([each["val"] for each in points])
    scale: Json = {"type": "log"} if max(costs) > 8 * min(costs) else {}
    x, y = quantity("cost", "seconds of an epoch", **scale), quantity("val", VALIDATION, (low, high))
    line = data(each for each in points if each["kind"] == next(iter(kinds)))
    told_of = [*told(keys), *tips(("cost", "seconds of an epoch", ".3g"))]
    label = {"type": "text", "dx": -8, "dy": -9, "clip": True}
    spec = layered(
        {
            "data": line,
            "mark": {"type": "line", "color": "var(--c0)", "clip": True, "opacity": 0.6},
            "encoding": {"x": x, "y": y},
        },
        {
            "data": data(points),
            "params": [TOGGLE, ZOOM],
            "mark": {"type": "point", "clip": True},
            "encoding": {"x": x, "y": y, "opacity": SHOWN, "tooltip": told_of}
            | shapes({kind: style for kind, style in kinds.items() if any(each["kind"] == kind for each in points)}),
        },
        {"data": line, "mark": label, "encoding": {"x": x, "y": y, "text": {"field": "trial"}}},
    )
    return Figure(
        "pareto",
        "Validation accuracy (best epoch) over the seconds of an epoch, as it ran, a point per trial that is done. The "
        "line is the Pareto front: no trial is better and cheaper than one on it. Choose a point to see its run."
        f"{below([each['val'] for each in points], low)}",
        "On the front: "
        + "; ".join(f"trial {row.number} {accuracy(row.best_val_accuracy)}, {cost(row) or 0:.3g} s" for row in members),
        spec,
    )


def reference_lines(rows: Sequence[Trial], y: Json) -> Json | None:
    """Return a layer with the validation accuracy of each listed run as a named line; None if there is none."""
    known = [(baseline_name(row), validated(row)) for row in rows if row.source == "baseline" and row.status == "done"]
    values = [{"name": f"{name} {height:.1f}", "val": height} for name, height in known if height is not None]
    if not values:
        return None
    text = {"type": "text", "align": "left", "dx": 4, "dy": -5, "color": "var(--muted)", "clip": True}
    rule = {"mark": {"type": "rule", "strokeDash": [5, 3], "clip": True}, "encoding": {"y": y}}
    words = {"mark": text, "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "name"}}}
    return {"data": data(values), "layer": [rule, words]}
