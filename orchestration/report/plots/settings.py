"""Draws what a search says about its settings: accuracy over each, together, in pairs, and which of them matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestration.report.colours import seen_range
from orchestration.report.importance import MOST_CORRELATION, Importance, Ranges, correlation, has
from orchestration.report.notation import header, validated, value
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
from orchestration.report.plots.search import (
    AT_RUNG,
    CHOSEN,
    MOST_DOTS,
    VALIDATION,
    front_last,
    point,
    reference_lines,
    searched,
    standings,
    told,
)
from orchestration.report.summary import best, listed
from orchestration.study.trial import Trial

MOST_LINES = 500  # trials in parallel coordinates
CELLS = 24  # cells of a surface on each side
# What carries a surface: this many trials, not along one line, over this share of the rectangle that they span.
SURFACE_TRIALS, LEAST_AREA = 12, 0.2


def numeric(rows: Sequence[Trial], key: str) -> bool:
    """Return whether all trials that have the key have a number there."""
    found = settings(rows, key)
    return bool(found) and all(isinstance(of, int | float) and not isinstance(of, bool) for of in found)


def settings(trials: Iterable[Trial], key: str) -> list[Any]:
    """Return the values of a key in the trials that have it."""
    return [row.params[key] for row in trials if has(row, key)]


def is_log(range_: BaseDistribution | None, found: Iterable[float]) -> bool:
    """Return whether the axis of a range is logarithmic: as it was searched, if all values are positive."""
    return isinstance(range_, FloatDistribution | IntDistribution) and range_.log and min(found) > 0


def slices(rows: Sequence[Trial], ranges: Ranges) -> list[Figure]:
    """Draw validation accuracy over each setting, a figure each; stopped trials have their own marks."""
    chosen, keys = best(rows), list(ranges)
    known = sorted(searched(rows), key=lambda row: -(row.best_val_accuracy or 0.0))[:MOST_DOTS]
    figures = []
    for place, key in enumerate(keys):
        here = [row for row in known if has(row, key)]
        if not here or len({repr(row.params[key]) for row in here}) < 2:
            continue
        is_number = numeric(here, key)
        points = [
            point(row, keys, chosen) | {"x": float(row.params[key]) if is_number else value(key, row.params[key])}
            for row in front_last(here, chosen)
        ]
        log = is_number and is_log(ranges[key], settings(here, key))
        kind: Json = {"type": "log"} if log else {}
        x = quantity("x", header(key), **kind) if is_number else names("x", header(key), axis={"labelAngle": 0})
        low, high = accuracies([each["val"] for each in points])
        y = quantity("val", VALIDATION, (low, high))
        styled = {"x": x, "y": y, "opacity": SHOWN, "size": wide(CHOSEN), "tooltip": told(keys)}
        layer = {
            "data": data(points),
            "params": [TOGGLE, *[ZOOM] * is_number],
            "mark": {"type": "point", "clip": True},
            "encoding": styled | shapes(standings(points)),
        }
        beside = reference_lines(rows, y)
        words = f"{len(points)} trials over {header(key)}" + (
            f"; chosen: {value(key, chosen.params.get(key))}" if chosen is not None else ""
        )
        figures.append(
            Figure(
                f"slice-{place}",
                f"Validation accuracy over {header(key)}; the other settings vary, too."
                + below([each["val"] for each in points], low),
                words,
                layered(*([beside] if beside else []), layer, height=240),
            )
        )
    return figures


# --- all settings at once --------------------------------------------------------------------------------------------


def parallel(rows: Sequence[Trial], ranges: Ranges) -> Figure | None:
    """Draw a line per trial through its settings to its accuracy; a line passes by a setting that its trial lacks."""
    chosen = best(rows)
    known = sorted(searched(rows), key=lambda row: (row.status != "done", -(row.best_val_accuracy or 0.0)))[:MOST_LINES]
    ranges = {key: range_ for key, range_ in ranges.items() if settings(known, key)}
    if not known or not ranges:
        return None
    heights = [validated(row) or 0.0 for row in known]
    low, high = seen_range(heights)[0], max(heights)  # one collapsed trial must not squeeze the others together
    under = low > min(heights)
    place_of: dict[str, Callable[[Any], float]] = {}
    labels: list[Json] = []
    for key, range_ in ranges.items():
        place_of[key], ends = _axis(key, range_, settings(known, key))
        labels += [{"axis": header(key), "place": place, "text": words} for place, words in ends]
    last = [(0.0, f"{'≤ ' if under else ''}{low:.1f} %"), (1.0, f"{high:.1f} %")]
    labels += [{"axis": "validation", "place": place, "text": words} for place, words in last]
    lines = []
    for row, height in zip(known, heights, strict=True):
        passed = [key for key in ranges if has(row, key)]
        share = max(height - low, 0.0) / ((high - low) or 1.0)
        places = [round(place_of[key](row.params[key]), 4) for key in passed]
        line = point(row, list(ranges), chosen) | {"share": share}
        lines.append(line | {"axis": [*map(header, passed), "validation"], "place": [*places, round(share, 4)]})
    axes = [*map(header, ranges), "validation"]
    x = names(
        "axis", None, scale={"domain": axes}, axis={"labelAngle": 0, "orient": "top", "grid": True, "domain": False}
    )
    y: Json = {"field": "place", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1], "nice": False}}
    styles = standings(lines)
    full: Json = {
        "opacity": {
            "condition": {"param": "shown", **quantity("share", None, (0, 1)), "legend": None},
            "value": 0.05,
        },
        "strokeWidth": {**quantity("share", None, (0, 1)), "legend": None},
        "strokeDash": {
            "condition": {"test": "datum.kind === 'chosen' || indexof(datum.state, 'done') === 0", "value": [1, 0]},
            "value": [4, 3],
        },
    }
    full["opacity"]["condition"]["scale"] |= {"range": [0.25, 1]}
    full["strokeWidth"]["scale"] |= {"range": [1, 3]}
    curves = {
        "data": data(reversed(lines)),  # the best on top
        "transform": [{"flatten": ["axis", "place"]}],
        "params": [TOGGLE],
        "mark": {"type": "line"},
        "encoding": {"x": x, "y": y, "detail": names("trial"), "tooltip": told(list(ranges))}
        | full
        | {
            "color": shapes(styles)["color"]
            | {"legend": {"title": None, "symbolType": "stroke", "symbolStrokeWidth": 2.5, "symbolOpacity": 1}}
        },
    }
    ticks = {
        "data": data(labels),
        "mark": {"type": "text", "align": "left", "dx": 5, "color": "var(--muted)"},
        "encoding": {"x": x, "y": y, "text": {"field": "text"}},
    }
    rungs = listed(sorted({row.epoch for row in known if row.at_rung}))
    dashed = "; a dashed line was stopped early or still runs, and has the accuracy that it had there"
    if rungs and all(each["kind"] in (AT_RUNG, CHOSEN) or each["state"].startswith("done") for each in lines):
        dashed = f"; a dashed line was stopped at rung {rungs}, and has the accuracy that it had there"
    return Figure(
        "parallel",
        "Each line is a trial, through its settings to its validation accuracy, the stronger the better"
        f"{dashed if any(row.status != 'done' for row in known) else ''}.",
        f"{len(lines)} trials through {', '.join(axes)}",
        layered(curves, ticks, height=260),
        least=105 * len(axes),
    )


def _axis(
    key: str, range_: BaseDistribution, found: Sequence[Any]
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Return a map from a value to its place in [0, 1] on the axis of the key, and the labels of the axis.

    Choices keep their order; numbers lie between the smallest and the largest setting.
    """
    if isinstance(range_, CategoricalDistribution):
        known = [choice for choice in range_.choices if choice in found]
        steps = max(len(known) - 1, 1)
        return lambda of: known.index(of) / steps, [(i / steps, value(key, name)) for i, name in enumerate(known)]
    low, high = min(found), max(found)
    scale = math.log if is_log(range_, found) else float
    span = (scale(high) - scale(low)) or 1.0
    return lambda of: (scale(of) - scale(low)) / span, [(0.0, value(key, low)), (1.0, value(key, high))]


# --- two settings ----------------------------------------------------------------------------------------------------


def surface(trials: Sequence[Trial], first: str, second: str, ranges: Ranges) -> Figure | str:
    """Draw validation accuracy over two numbers, between the trials that are done; return why not if they carry none.

    The surface is linear between neighbouring trials and is drawn within their hull alone.
    """
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import ConvexHull, QhullError

    both = f"Surface over {header(first)} and {header(second)}"
    if len(trials) < SURFACE_TRIALS:
        return f"{both}: {len(trials)} trials ran to the last epoch, and fewer than {SURFACE_TRIALS} carry none."
    columns, logs = [], []
    for key in (first, second):
        found = np.array([float(row.params[key]) for row in trials])
        logs.append(is_log(ranges[key], found))
        columns.append(np.log(found) if logs[-1] else found)
    even_N2 = np.stack([(column - column.min()) / (np.ptp(column) or 1.0) for column in columns], axis=1)
    together = correlation(*even_N2.T)
    if together > MOST_CORRELATION:
        return f"{both}: the trials lie near one line (correlation {together:.2f}), beside which nothing was tried."
    try:
        area = float(ConvexHull(even_N2).volume)
    except QhullError:
        area = 0.0
    if area < LEAST_AREA:
        return f"{both}: the trials cover {area:.0%} of the rectangle that they span, too little to fill it."
    heights = np.array([validated(row) or 0.0 for row in trials])
    low, high = seen_range(list(map(float, heights)))
    between = LinearNDInterpolator(even_N2, heights)
    edges = [np.linspace(column.min(), column.max(), CELLS + 1) for column in columns]
    shown = [np.exp(edge) if log else edge for edge, log in zip(edges, logs, strict=True)]
    cells = []
    for i in range(CELLS):
        for j in range(CELLS):
            height = float(between((i + 0.5) / CELLS, (j + 0.5) / CELLS))
            if math.isfinite(height):
                x, x2, y, y2 = shown[0][i], shown[0][i + 1], shown[1][j], shown[1][j + 1]
                cells.append({"x": x, "x2": x2, "y": y, "y2": y2, "val": round(height, 2)})
    kinds = [{"type": "log", "nice": False} if log else {"nice": False} for log in logs]
    x, y = (quantity(name, header(key), **kind) for name, key, kind in zip("xy", (first, second), kinds, strict=True))
    colour = quantity("val", "validation, %", (low, high)) | {"legend": {"orient": "right", "gradientLength": 160}}
    colour["scale"] |= {"clamp": True}
    keys = list(ranges)
    points = [
        point(row, keys, None) | {"x": float(row.params[first]), "y": float(row.params[second])} for row in trials
    ]
    spec = layered(
        {
            "data": data(cells),
            "mark": {"type": "rect"},
            "encoding": {"x": x, "x2": {"field": "x2"}, "y": y, "y2": {"field": "y2"}, "color": colour},
        },
        {
            "data": data(points),
            "mark": {"type": "point", "fill": "#ffffff", "stroke": "#222222", "strokeWidth": 1.2},
            "encoding": {"x": x, "y": y, "tooltip": told(keys)},
        },
        height=320,
    )
    return Figure(
        "surface",
        f"Validation accuracy over {header(first)} and {header(second)}, the two numbers that matter most: linear "
        f"between the {len(trials)} trials (points) that ran to the last epoch, and nothing beyond them.",
        f"{len(trials)} trials; the highest, {heights.max():.1f} %, at {header(first)} "
        f"{value(first, trials[int(heights.argmax())].params[first])} and {header(second)} "
        f"{value(second, trials[int(heights.argmax())].params[second])}",
        spec,
    )


# --- which setting matters -------------------------------------------------------------------------------------------


def importance(found: Importance) -> Figure:
    """Draw the share of each setting in the variation of validation accuracy, and its spread over resampled trials."""
    rows = [
        {"name": header(key), "mean": found.mean[key], "low": found.low[key], "high": found.high[key]}
        for key in found.mean
    ]
    y = names("name", None, axis={"title": None, "grid": False})
    told_of = tips(("name", "setting"), ("mean", "share", ".2f"), ("low", "from", ".2f"), ("high", "to", ".2f"))
    x = quantity("mean", "share of the variation", (0, 1)) | {"axis": {"tickCount": 5}}
    spec = layered(
        {"mark": {"type": "bar", "opacity": 0.75}, "encoding": {"y": y, "x": x, "tooltip": told_of}},
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": "var(--ink)"},
            "encoding": {"y": y, "x": quantity("low", "share of the variation", (0, 1)), "x2": {"field": "high"}},
        },
        height=34 * len(rows),
        data=data(rows),
    )
    words = "; ".join(f"{row['name']} {row['mean']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in rows)
    return Figure("importance", found.caption, words, spec)
