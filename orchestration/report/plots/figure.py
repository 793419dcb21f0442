"""Holds a figure: its Vega-Lite specification with data, its caption, and its words for those who do not see it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from orchestration.report.colours import DASHES, SERIES, STOPS, on_paper, seen_range
from orchestration.report.notation import finite

Json = dict[str, Any]
HEIGHT, WIDTH = 280, 640  # of the plot area; the width only in files, because a page gives each figure its own

# Colours are those of the page's style sheet by name, so that dark mode and print need no other figure.
CONFIG: Json = {
    "background": None,
    "font": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--rule)",
        "domainColor": "var(--muted)",
        "tickColor": "var(--muted)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 150,
        "labelOverlap": "greedy",
    },
    "legend": {
        "orient": "bottom",
        "columns": 4,
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 260,
        "symbolSize": 90,
    },
    "text": {"color": "var(--ink)", "fontSize": 12},
    "rule": {"color": "var(--muted)"},
    "line": {"strokeWidth": 1.8},
    "point": {"filled": True, "size": 70},
    "bar": {"color": "var(--c0)"},
    "range": {"heatmap": list(STOPS), "ramp": list(STOPS)},
}

# A choice of entries of the legend: what is not chosen fades. Every click changes one entry.
TOGGLE: Json = {
    "name": "shown",
    "select": {"type": "point", "fields": ["kind"], "toggle": "true"},
    "bind": "legend",
}
# The wheel zooms only with a key, so that the page scrolls over a figure. A double click shows all again.
ZOOM: Json = {
    "name": "zoom",
    "select": {"type": "interval", "zoom": "wheel![event.ctrlKey || event.metaKey]"},
    "bind": "scales",
}
SHOWN: Json = {"condition": {"param": "shown", "value": 1}, "value": 0.07}


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: its name in the page and in files, unique within a study.
        caption: what it shows, in a sentence or two.
        words: what is to be seen, for screen readers.
        spec: a specification of Vega-Lite with its data. Colours are names of the style sheet, `var(--c0)`; an element
            of the data with `runs` opens these runs.
        least: width in pixels below which the figure scrolls within its frame; 0: it shrinks with the page.
    """

    name: str
    caption: str
    words: str
    spec: Mapping[str, Any]
    least: int = 0


def layered(*layers: Json, height: int = HEIGHT, **more: Any) -> Json:
    """Return a specification with these layers, as wide as its place."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {"width": "container", "height": height, "autosize": fit, "layer": list(layers), **more}


def data(rows: Iterable[Mapping[str, Any]]) -> Json:
    """Return the rows as inline data; numbers that are not finite are missing."""
    return {"values": [{key: _plain(value) for key, value in row.items()} for row in rows]}


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    number = finite(value)
    return None if number is None else float(f"{number:.6g}")


def quantity(field: str, title: str | None = None, domain: Sequence[float] = (), **scale: Any) -> Json:
    """Return the encoding of a number; `scale` has more of its scale, and a domain keeps out what lies beyond."""
    inner = {"zero": True} if scale.get("zero") else {"zero": False, "nice": False, "padding": 9}
    scale |= {"domain": list(domain), "nice": False} if domain else inner
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def names(field: str, title: str | None = None, **more: Any) -> Json:
    """Return the encoding of words in the order of the data."""
    return {"field": field, "type": "nominal", "title": title, "sort": None, **more}


def series(kinds: Sequence[str], every: Sequence[str] = (), field: str = "kind") -> Json:
    """Return colours and dashes for lines by name, with a legend: both tell them apart, so that grey does, too.

    Args:
        kinds: the names that are drawn.
        every: all names of the page, so that a name has one colour in all figures.
        field: the field that has the names.
    """
    places = [list(every or kinds).index(kind) for kind in kinds]
    legend = {"title": None, "symbolType": "stroke", "symbolStrokeWidth": 2.5}
    dashes = [DASHES[(place + place // len(SERIES)) % len(DASHES)] for place in places]
    colours = [SERIES[place % len(SERIES)] for place in places]
    return {
        "color": names(field, legend=legend, scale={"domain": list(kinds), "range": colours}),
        "strokeDash": names(field, legend=legend, scale={"domain": list(kinds), "range": dashes}),
    }


def wide(kind: str) -> Json:
    """Return the size of points, of which those of one kind are large."""
    return {"condition": {"test": {"field": "kind", "equal": kind}, "value": 260}, "value": 70}


def shapes(kinds: Mapping[str, tuple[str, str]], field: str = "kind") -> Json:
    """Return colours and shapes for points by name, with one legend for both; `kinds`: name -> (colour, shape)."""
    colours, forms = zip(*kinds.values(), strict=True)
    return {
        "color": names(field, legend={"title": None}, scale={"domain": list(kinds), "range": list(colours)}),
        "shape": names(field, legend={"title": None}, scale={"domain": list(kinds), "range": list(forms)}),
    }


def tips(*fields: tuple[str, str] | tuple[str, str, str]) -> list[Json]:
    """Return what is told of the element under the pointer: (field, title) of words, or a number with its format."""
    kinds = [{"type": "quantitative", "format": of[2]} if len(of) > 2 else {"type": "nominal"} for of in fields]
    return [{"field": of[0], "title": of[1], **kind} for of, kind in zip(fields, kinds, strict=True)]


def accuracies(heights: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis in percent that shows these accuracies, except for those far below the others."""
    known = [height for height in heights if finite(height) is not None] or [0.0, 100.0]
    bottom, top = seen_range(known)[0], max(known)
    unit = 10 if top - bottom > 20 else 5 if top - bottom > 8 else 1
    low = max(0.0, unit * floor((bottom - 0.15 * (top - bottom)) / unit))
    return low, min(100.0, max(low + unit, unit * ceil((top + 0.02 * (top - bottom)) / unit)))


def below(heights: Sequence[float], low: float) -> str:
    """Say how many points lie below the axis; nothing if none does."""
    count = sum(height < low for height in heights)
    return f" {count} point{'s' if count > 1 else ''} below this axis: drag the figure up." if count else ""


def contents(figures: Iterable[Figure]) -> Json:
    """Return what a page needs to draw these figures."""
    return {"config": CONFIG, "figures": {figure.name: figure.spec for figure in figures}}


def file_of(figure: Figure, form: str) -> bytes:
    """Return the figure as an SVG or PDF file of its own, on white, with the colours of a light page.

    Its lines and points differ in dashes and shapes too, so that it can be read in grey.
    """
    import vl_convert  # imported here because few commands need it

    spec = {key: value for key, value in figure.spec.items() if key != "autosize"}
    if spec.get("width") == "container":
        spec["width"] = max(figure.least, WIDTH)
    config = CONFIG | {"background": "#ffffff"}
    text = on_paper(json.dumps(spec | {"config": config}, allow_nan=False))
    if form == "pdf":
        return bytes(vl_convert.vegalite_to_pdf(text))
    return str(vl_convert.vegalite_to_svg(text)).encode()
