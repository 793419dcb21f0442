"""Draws the two budgets of the defense, which the space `budgets` searches: their plane, and the paper's pairs."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.report.budgets import MARGIN, BudgetAxis, hurting, log_ticks, pair
from orchestration.report.colours import seen_range
from orchestration.report.importance import Ranges
from orchestration.report.notation import EPSILON_2, EPSILON_INF, tested, validated, value
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
)
from orchestration.report.plots.search import CHOSEN, point, searched, told
from orchestration.report.summary import best
from orchestration.study.trial import Trial

_LEVELS = {"labelExpr": "format(datum.value * 255, '.3~g')"}


def budgets(rows: Sequence[Trial], ranges: Ranges) -> list[Figure]:
    """Draw both budgets of every trial, and accuracy over the paper's pairs of them (Fig. 5), which grow together.

    A proposal has two budgets of its own, so it has a place in the plane and none among the pairs.
    """
    if set(ranges) != {EPSILON_INF, EPSILON_2}:
        return []
    chosen, keys = best(rows), list(ranges)
    known = [row for row in searched(rows) if min(pair(row)) > 0]
    found = [_plane(known, keys, chosen)] if known else []
    axis = BudgetAxis.of(rows)
    paper = sorted((row for row in known if row.source == "paper"), key=lambda row: axis.position(pair(row)[0]))
    if axis.companions and len(paper) > 1:
        found.append(_pairs(rows, paper, axis, keys, chosen))
    return found


def _plane(known: Sequence[Trial], keys: Sequence[str], chosen: Trial | None) -> Figure:
    heights = [validated(row) or 0.0 for row in known]
    seen = seen_range(heights)
    under = " The darkest colour also stands for what lies below." if seen[0] > min(heights) else ""
    kinds = {"paper": "circle", "optuna": "diamond"}
    points = [
        point(row, keys, chosen)
        | {"inf": pair(row)[0], "two": pair(row)[1], "levels": value(EPSILON_INF, pair(row)[0])}
        | {"from": row.source if row.source in kinds else "optuna", "rung": row.status != "done"}
        for row in known
    ]
    colour = quantity("val", "validation, %", seen)
    colour["scale"] |= {"clamp": True}
    ticks = log_ticks(EPSILON_INF, [pair(row)[0] for row in known])
    places: Json = {
        "x": quantity("inf", "ε∞ times 255", type="log") | {"axis": _LEVELS | {"values": ticks}},
        "y": quantity("two", "ε2"),
    }
    named = {"paper": "the paper's pairs", "optuna": "proposals"}
    legend = {"title": None, "labelExpr": "datum.label === 'paper' ? \"the paper's pairs\" : 'proposals'"}
    shape = names("from", legend=legend, scale={"domain": list(kinds), "range": list(kinds.values())})
    ring = [each for each in points if each["kind"] == CHOSEN]
    stroke: Json = {"condition": {"test": "datum.rung", "value": "var(--muted)"}, "value": "var(--ink)"}
    spec = layered(
        {
            "data": data(points),
            "params": [ZOOM],
            "mark": {"type": "point", "size": 130, "strokeWidth": 1.2},
            "encoding": {
                **places,
                "fill": colour | {"legend": {"orient": "right", "gradientLength": 160}},
                "stroke": stroke,
                "shape": shape,
                "opacity": {"condition": {"test": "datum.rung", "value": 0.5}, "value": 1},
                "tooltip": told(keys),
            },
        },
        {
            "data": data(ring),
            "mark": {"type": "point", "size": 420, "filled": False, "stroke": "var(--c1)", "strokeWidth": 2.5},
            "encoding": places,
        },
        height=320,
    )
    sources = " and ".join(named[kind] for kind in kinds if any(each["from"] == kind for each in points))
    return Figure(
        "budgets",
        f"Both budgets of every trial ({sources}), coloured by validation accuracy; the ring is the chosen one, and a "
        f"faint mark was stopped early.{under}",
        f"{len(points)} trials over ε∞ and ε2"
        + (f"; chosen: ε∞ {ring[0]['levels']}, ε2 {ring[0]['two']:.3g}" if ring else ""),
        spec,
    )


def _pairs(
    rows: Sequence[Trial], paper: Sequence[Trial], axis: BudgetAxis, keys: Sequence[str], chosen: Trial | None
) -> Figure:
    labels = {axis.position(stop): axis.label(place) for place, stop in enumerate(axis.stops)}
    measures = {"test, last epoch": ("var(--c0)", "circle"), "validation, best epoch": ("var(--c1)", "diamond")}
    points = [
        point(row, keys, chosen) | {"kind": kind, "pair": labels.get(axis.position(pair(row)[0]), ""), "y": height}
        for kind, of in zip(measures, (tested, validated), strict=True)
        for row in paper
        if (height := of(row)) is not None
    ]
    low, high = accuracies([each["y"] for each in points])
    order = [labels[place] for place in sorted(labels)]
    multiple = f"multiple of {value(EPSILON_INF, axis.reference)}, " if axis.reference else ""
    x = names("pair", f"training budget ({multiple}ε∞, ε2)", scale={"domain": order})
    x["axis"] = {"labelAngle": 0, "labelExpr": "split(datum.label, '\\n')"}
    encoding = {"x": x, "y": quantity("y", "accuracy, %", (low, high))}
    styles = shapes(measures)
    full = data(each for each in points if each["state"].startswith("done"))  # one stopped early would dent the line
    spec = layered(
        {
            "data": full,
            "mark": {"type": "line", "clip": True},
            "encoding": encoding | {"color": styles["color"], "opacity": SHOWN},
        },
        {
            "data": data(points),
            "params": [TOGGLE],
            "mark": {"type": "point", "clip": True},
            "encoding": encoding | styles | {"opacity": SHOWN, "tooltip": [*told(keys), *tips(("kind", "shown"))]},
        },
    )
    reached = [height for row in paper if row.status == "done" and (height := _shown(row)) is not None]
    return Figure(
        "pairs",
        f"Accuracy over the paper's pairs of budgets (Fig. 5), in which both grow together. {verdict(reached)} "
        f"Proposals are no such pairs, and stand in the plane.{below([each['y'] for each in points], low)}",
        "; ".join(f"{each['pair'].splitlines()[0]} {each['kind']} {each['y']:.1f}" for each in points if each["pair"]),
        spec,
        least=460,
    )


def verdict(reached: Sequence[float]) -> str:
    """Say which ends of the paper's pairs hurt, from the accuracies of those that ran to the end, in their order."""
    if len(reached) < 3:
        return "Here: too few of the paper's pairs ran to the end to tell."
    small, large = hurting(reached)
    ends = [name for name, count in (("too small", small), ("too large", large)) if count]
    if not ends:
        return f"Here: all pairs lie within {MARGIN:g} points of the best."
    return f"Here: {' and '.join(ends)} cost{'' if len(ends) > 1 else 's'} more than {MARGIN:g} points."


def _shown(row: Trial) -> float | None:
    """Return the test accuracy, or the validation accuracy if no test was made, in percent."""
    height = tested(row)
    return validated(row) if height is None else height
