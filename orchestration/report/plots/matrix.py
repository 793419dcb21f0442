"""Draws the runs of a matrix: heat maps, means, curves, trends over settings, selected labels, and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from statistics import mean, quantiles
from typing import Any

from orchestration.report.colours import DARK, LIGHT, LIGHT_TEXT_UNTIL, SERIES, STOPS
from orchestration.report.plots.figure import (
    SHOWN,
    TOGGLE,
    ZOOM,
    Figure,
    Json,
    accuracies,
    data,
    layered,
    names,
    quantity,
    series,
    tips,
)
from orchestration.report.sections import TableView
from orchestration.report.trends import Selected, Trend

MOST_DOTS = 80  # more values than this are shown by their quartiles only
CELL = (66, 32)  # width and height of a cell of a heat map in pixels, however few there are


@dataclass(frozen=True)
class Curve:
    """A line of accuracies.

    Attributes:
        name: name of the line.
        values: the accuracy at each place in percent, None if there is none yet.
        spreads: standard deviation over seeds at each place, or none.
    """

    name: str
    values: Sequence[float | None]
    spreads: Sequence[float | None] = ()


def heat_map(view: TableView, name: str) -> Figure:
    """Draw the heat map of a table, defense x data corruption, its cells of one size; a missing cell stays empty."""
    table = view.table
    cells = [
        {
            "defense": defense,
            "on": of,
            "mean": cell.last.mean,
            "shown": "" if cell.last.mean is None else f"{cell.last.mean:.1f}",
            "seeds": f"{len(cell.last.values)} of {cell.last.planned}",
            "spread": cell.last.spread,
            "best": cell.best.mean,
            "runs": " ".join(cell.shown.runs),
        }
        for defense, line in view.lines.items()
        for of, cell in zip(table.corruptions, line, strict=True)
    ]
    text: Json = {"condition": {"test": f"datum.mean < {100 * LIGHT_TEXT_UNTIL:g}", "value": LIGHT}, "value": DARK}
    colour = quantity("mean", "accuracy, %", (0, 100)) | {
        "legend": {"orient": "bottom", "gradientLength": 120, "values": [0, 50, 100]}
    }
    colour["scale"] |= {"range": list(STOPS)}
    told = tips(
        ("defense", "defense"),
        ("on", "images"),
        ("mean", "last epoch, %", ".2f"),
        ("spread", "± over seeds", ".2f"),
        ("best", "epoch best by validation, %", ".2f"),
        ("seeds", "seeds"),
    )
    known: Json = {"transform": [{"filter": "isValid(datum.mean)"}]}
    rounded = {"type": "rect", "cornerRadius": 4, "stroke": "var(--card)", "strokeWidth": 2}
    hollow = {"type": "rect", "cornerRadius": 4, "fill": None, "stroke": "var(--rule)", "strokeDash": [3, 3]}
    spec: Json = {
        "width": {"step": CELL[0]},
        "height": {"step": CELL[1]},
        "data": data(cells),
        "encoding": {
            "x": names(
                "on", None, axis={"title": None, "orient": "top", "labelAngle": 0, "domain": False, "ticks": False}
            ),
            "y": names("defense", None, axis={"title": None, "domain": False, "ticks": False}),
        },
        "layer": [
            {"mark": hollow},
            known | {"mark": rounded, "encoding": {"color": colour, "tooltip": told}},
            known
            | {"mark": {"type": "text"}, "encoding": {"text": {"field": "shown"}, "color": text, "tooltip": told}},
        ],
    }
    words = "; ".join(f"{cell['defense']} on {cell['on']} {cell['shown']}" for cell in cells if cell["shown"])
    return Figure(
        name,
        f"{table.title}: accuracy of the last epoch in percent. Empty: not finished. Choose a cell to see its runs.",
        words,
        spec,
        least=120 + CELL[0] * len(table.corruptions),
    )


def bars(values: Mapping[str, Sequence[float]], name: str, caption: str, axis: str, most: float = 100.0) -> Figure:
    """Draw a bar per name: the mean of its values, dots for the values (or their quartiles), a line to the extremes.

    Args:
        values: name -> values, in percent or on the scale of `most`.
        name: name of the figure.
        caption: its caption.
        axis: the title of the axis.
        most: the end of the axis.
    """
    known = {of: list(found) for of, found in values.items() if found}
    rows, dots = [], []
    for of, found in known.items():
        lower, upper = (quantiles(found, n=4)[0], quantiles(found, n=4)[2]) if len(found) > MOST_DOTS else (None, None)
        rows.append(
            {"name": of, "mean": mean(found), "low": min(found), "high": max(found), "lower": lower, "upper": upper}
            | {"n": len(found)}
        )
        dots += [{"name": of, "value": value} for value in found] if lower is None else []
    y = names("name", None, axis={"title": None, "grid": False}, scale={"domain": list(known)})
    domain = (0.0, most)
    told = tips(
        ("name", "defense"),
        ("mean", "mean", ".4~g"),
        ("low", "least", ".4~g"),
        ("high", "most", ".4~g"),
        ("n", "of", "d"),
    )
    colour = names("name", legend=None, scale={"domain": list(known), "range": _colours(list(known), list(known))})
    ink = {"color": "var(--ink)"}
    spec = layered(
        {
            "mark": {"type": "bar", "opacity": 0.6},
            "encoding": {"y": y, "x": quantity("mean", axis, domain), "color": colour, "tooltip": told},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.2, **ink},
            "encoding": {"y": y, "x": quantity("low", axis, domain), "x2": {"field": "high"}, "tooltip": told},
        },
        {
            "mark": {"type": "bar", "height": 10, "fill": "var(--card)", "stroke": "var(--ink)"},
            "transform": [{"filter": "isValid(datum.lower)"}],
            "encoding": {"y": y, "x": quantity("lower", axis, domain), "x2": {"field": "upper"}, "tooltip": told},
        },
        {
            "data": data(dots),
            "mark": {"type": "point", "size": 20, "opacity": 0.7, **ink},
            "encoding": {"y": y, "x": quantity("value", axis, domain), "tooltip": tips(("value", axis, ".4~g"))},
        },
        height=34 * len(known),
        data=data(rows),
    )
    words = "; ".join(f"{row['name']} {row['mean']:.3g} ({row['low']:.3g} to {row['high']:.3g})" for row in rows)
    return Figure(name, caption, words, spec)


def curves(lines: Sequence[Curve], name: str, title: str, every: Sequence[str]) -> Figure:
    """Draw accuracy over epochs, a line per name.

    Args:
        lines: the lines, with a value for each epoch from 1.
        name: name of the figure.
        title: what was run.
        every: all names of the page in their order, so that a name has one colour in all figures.
    """
    rows = [
        {"kind": line.name, "epoch": [*range(1, len(line.values) + 1)], "y": [_short(value) for value in line.values]}
        for line in lines
    ]
    spec = layered(
        {
            "data": data(rows),
            "transform": [{"flatten": ["epoch", "y"]}],
            "params": [TOGGLE, ZOOM],
            "mark": {"type": "line", "clip": True},
            "encoding": {
                "x": quantity("epoch", "epoch", (1, max(2, *(len(line.values) for line in lines)))),
                "y": quantity("y", "clean test accuracy, %", (0, 100)),
                "opacity": SHOWN,
                "tooltip": tips(("kind", "defense")),
            }
            | series([line.name for line in lines], every),
        },
        {
            "data": data({"kind": line.name, "epoch": len(line.values), "y": line.values[-1]} for line in lines),
            "mark": {"type": "point", "size": 36},
            "encoding": {
                "x": quantity("epoch", "epoch"),
                "y": quantity("y", None, (0, 100)),
                "color": series([line.name for line in lines], every)["color"],
                "opacity": SHOWN,
                "tooltip": tips(("kind", "defense"), ("epoch", "epoch", "d"), ("y", "%", ".1f")),
            },
        },
    )
    words = "; ".join(f"{line.name} ends at {line.values[-1]:.1f}" for line in lines if line.values[-1] is not None)
    caption = f"{title}: clean test accuracy after each epoch in percent, mean over the finished cells of a defense."
    return Figure(name, caption, words, spec)


def trend(panel: Trend, name: str, every: Sequence[str]) -> Figure:
    """Draw accuracy over settings: lines through points for numbers, with the spread of seeds; bars for names."""
    rows = [
        {
            "kind": line,
            "at": tick.replace("\n", " and "),
            "y": cell.mean,
            "low": None if cell.spread is None or cell.mean is None else max(cell.mean - cell.spread, 0.0),
            "high": None if cell.spread is None or cell.mean is None else min(cell.mean + cell.spread, 100.0),
            "n": len(cell.values),
        }
        for line, cells in panel.lines.items()
        for tick, cell in zip(panel.ticks, cells, strict=True)
        if cell.mean is not None
    ]
    shown = [line for line in panel.lines if any(row["kind"] == line for row in rows)]
    order = [tick.replace("\n", " and ") for tick in panel.ticks]
    scored = [cell for cells in panel.lines.values() for cell in cells if cell.mean is not None]
    ends = [cell.mean + side * (cell.spread or 0.0) for cell in scored if cell.mean is not None for side in (-1, 1)]
    ends = [min(max(end, 0.0), 100.0) for end in ends]
    told = tips(("kind", "defense"), ("at", panel.axis), ("y", "mean, %", ".2f"), ("n", "seeds", "d"))
    axis = {"labelAngle": 0, "labelExpr": "split(datum.label, ' and ')"}
    x = names("at", panel.axis, scale={"domain": order}, axis=axis)
    styles = series(shown, every)
    if panel.ordered:
        y = quantity("y", "accuracy, %", accuracies(ends))
        mark: list[Json] = [
            {
                "params": [TOGGLE],
                "mark": {"type": "line", "clip": True, "point": {"size": 45}},
                "encoding": {"x": x, "y": y, "opacity": SHOWN, "tooltip": told} | styles,
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "clip": True},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "opacity": SHOWN}
                | {"color": styles["color"]},
            },
        ]
    else:
        beside = {"xOffset": names("kind", scale={"domain": shown})}
        colour = styles["color"] | {"legend": {"title": None, "symbolType": "square"}}
        encoding = {"x": x, "y": quantity("y", "accuracy, %", (0, 100)), "color": colour, **beside}
        mark = [
            {
                "params": [TOGGLE],
                "mark": {"type": "bar", "stroke": "var(--card)"},
                "encoding": {**encoding, "opacity": SHOWN, "tooltip": told},
            }
        ]
    words = "; ".join(f"{row['kind']}, {row['at']}: {row['y']:.1f}" for row in rows)
    least = 60 * len(panel.ticks) if max(map(len, order), default=0) > 4 else 0
    return Figure(name, f"{panel.title}", words, layered(*mark, data=data(rows)), least)


def selection(chosen: Selected, name: str) -> Figure:
    """Draw for each class the samples that each way of selecting took, with right and with wrong labels (Fig. 2)."""
    kinds = {"right labels": "var(--c0)", "wrong labels": "var(--c1)"}
    rows = [
        {"class": label, "way": way, "kind": kind, "count": count, "place": place}
        for way, stack in chosen.stacks.items()
        for label, parts in zip(chosen.classes, stack, strict=True)
        for place, (kind, count) in enumerate(zip(kinds, parts, strict=True))
    ]
    colour = names("kind", legend={"title": None}, scale={"domain": list(kinds), "range": list(kinds.values())})
    ways = list(chosen.stacks)
    outline = names("way", legend=None, scale={"domain": ways, "range": ["var(--card)", "var(--ink)"]})
    spec = layered(
        {
            "params": [TOGGLE],
            "mark": {"type": "bar", "strokeWidth": 1.2},
            "encoding": {
                "x": names("class", f"class; of each pair of bars the left one is {ways[0]}, the right one {ways[-1]}")
                | {"axis": {"labelAngle": 0}},
                "xOffset": names("way", scale={"domain": ways}),
                "y": quantity("count", "samples", zero=True),
                "order": {"field": "place"},
                "color": colour,
                "stroke": outline,
                "opacity": SHOWN,
                "tooltip": tips(
                    ("way", "selected by"), ("class", "class"), ("kind", "with"), ("count", "samples", "d")
                ),
            },
        },
        data=data(rows),
        height=230,
    )
    words = "; ".join(
        f"{way} took of {label} {right:g} right, {wrong:g} wrong"
        for way, stack in chosen.stacks.items()
        for label, (right, wrong) in zip(chosen.classes, stack, strict=True)
    )
    return Figure(name, chosen.title, words, spec, least=44 * len(chosen.classes))


def seconds(times: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the seconds of an epoch of each defense."""
    caption = "Bar: mean over the finished runs; dots: runs. As they ran, side by side with others."
    return bars(times, "seconds", caption, "seconds of an epoch", round_up(max(map(max, times.values()))))


def round_up(number: float) -> float:
    """Return the next larger number that is 1, 2 or 5 times a power of ten."""
    scale = 10.0 ** floor(log10(number))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= number)


def _colours(kinds: Sequence[str], every: Sequence[str]) -> list[str]:
    return [SERIES[list(every).index(kind) % len(SERIES)] for kind in kinds]


def _short(value: Any) -> float | None:
    return None if value is None else round(float(value), 2)
