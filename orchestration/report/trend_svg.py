"""Draws curves, trends and grouped columns as inline SVG: accuracy over epochs and settings, and selected samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from orchestration.report.svg import COLOURS, open_, text

_DASHES = ("", "6 3", "2 2")
_LEFT, _TOP, _WIDTH, _HEIGHT = 34.0, 10.0, 400.0, 230.0  # position and size of the plot area


@dataclass(frozen=True)
class Curve:
    """A line through accuracies.

    Attributes:
        name: name of the line.
        values: the accuracy at each place in percent, None if there is none yet.
        spreads: standard deviation over seeds at each place, or none.
    """

    name: str
    values: Sequence[float | None]
    spreads: Sequence[float | None] = ()

    @property
    def last(self) -> int:
        """Return the last place that has a value."""
        return max(place for place, value in enumerate(self.values) if value is not None)


def curves(lines: Sequence[Curve], title: str, names: Sequence[str]) -> str:
    """Draw accuracy over epochs, with a line for each name and the name at its end.

    Args:
        lines: the lines to draw.
        title: the title, for screen readers.
        names: all names of the page in their order, so that a name has one colour in all figures.
    """
    epochs = max((len(line.values) for line in lines), default=1)
    step = max(1, round(epochs / 5))
    shown = [1, *range(max(2 * step, 2) if step > 1 else 2, epochs + 1, step)]
    return _plot(lines, title, names, {epoch - 1: f"{epoch}" for epoch in shown}, "epoch", epochs, marked=False)


def trend(lines: Sequence[Curve], title: str, names: Sequence[str], ticks: Sequence[str], axis: str) -> str:
    """Draw accuracy over evenly spaced settings `ticks`: a line through points per name, whiskers for the seeds."""
    return _plot(lines, title, names, dict(enumerate(ticks)), axis, len(ticks), marked=True)


def _plot(
    lines: Sequence[Curve],
    title: str,
    names: Sequence[str],
    ticks: Mapping[int, str],
    axis: str,
    places: int,
    *,
    marked: bool,
) -> str:
    lines = [line for line in lines if any(value is not None for value in line.values)]
    right = 16 + 7.2 * max((len(line.name) for line in lines), default=1)
    words = "; ".join(f"{line.name}: {_words(line, ticks, marked)}" for line in lines)
    below = 13 * max((tick.count("\n") for tick in ticks.values()), default=0)
    parts = [open_(_LEFT + _WIDTH + right, _TOP + _HEIGHT + 34 + below, title, words), *_percent_axis()]
    for place, tick in ticks.items():
        for number, line in enumerate(tick.split("\n")):
            parts.append(text(_x(place, places), _TOP + _HEIGHT + 16 + 13 * number, line, "tick", "middle"))
    parts.append(text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 31 + below, axis, "tick", "middle"))
    ends = _apart([_y(line.values[line.last] or 0.0) for line in lines], 13)
    for curve, end in zip(lines, ends, strict=True):
        index = names.index(curve.name)
        kind = f"c{index % COLOURS}{' main' if curve.name == 'ERAT' else ''}"
        known = [(_x(place, places), value, place) for place, value in enumerate(curve.values) if value is not None]
        dash = _DASHES[index // COLOURS % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        points = " ".join(f"{x:.1f},{_y(value):.1f}" for x, value, _ in known)
        parts.append(f'<polyline points="{points}" class="line {kind}"{style}/>')
        for x, value, place in known if marked else ():
            spread = curve.spreads[place] if curve.spreads else None
            if spread:
                low, high = _y(max(value - spread, 0)), _y(min(value + spread, 100))
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" class="line {kind}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{_y(value):.1f}" r="3" class="point {kind}"/>')
        parts.append(text(_x(curve.last, places) + 6, end + 4, curve.name, f"name {kind}"))
    return "".join([*parts, "</svg>"])


def _words(line: Curve, ticks: Mapping[int, str], marked: bool) -> str:
    if not marked:
        return f"ends at {line.values[line.last]:.1f}"
    known = (
        (ticks[place].replace("\n", " and "), value) for place, value in enumerate(line.values) if value is not None
    )
    return ", ".join(f"{setting} {value:.1f}" for setting, value in known)


def columns(groups: Mapping[str, Mapping[str, float]], title: str, names: Sequence[str]) -> str:
    """Draw upright bars in percent: a group per setting with a bar per name, and a legend below."""
    shown = [name for name in names if any(name in group for group in groups.values())]
    words = "; ".join(
        f"{setting}: " + ", ".join(f"{name} {value:.1f}" for name, value in group.items())
        for setting, group in groups.items()
    )
    group_w = _WIDTH / max(1, len(groups))
    bar_w = min(30.0, 0.84 * group_w / max(1, len(shown)))
    parts = [open_(_LEFT + _WIDTH + 8, _TOP + _HEIGHT + 46, title, words), *_percent_axis()]
    for number, (setting, group) in enumerate(groups.items()):
        middle = _LEFT + group_w * (number + 0.5)
        parts.append(text(middle, _TOP + _HEIGHT + 16, setting, "tick", "middle"))
        for place, name in enumerate(shown):
            if name in group:
                x = middle + (place - len(shown) / 2) * bar_w
                parts.append(_column(x, 0.0, group[name], bar_w - 1, f"bar c{names.index(name) % COLOURS}"))
    return "".join([*parts, *_legend([(name, f"bar c{names.index(name) % COLOURS}") for name in shown]), "</svg>"])


def selection(classes: Sequence[str], stacks: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Draw bars for each class: the samples that each way of selecting took, with right (below) and wrong labels.

    Args:
        classes: the names of the classes.
        stacks: name of the way -> for each class (samples whose label is right, samples whose label is wrong).
        title: the title, for screen readers.
    """
    tallest = max((right + wrong for stack in stacks.values() for right, wrong in stack), default=1) or 1
    tallest = 5 * ceil(tallest / 5)
    scale = 100 / tallest
    words = "; ".join(
        f"{name} took of {label} {right:g} right, {wrong:g} wrong"
        for name, stack in stacks.items()
        for label, (right, wrong) in zip(classes, stack, strict=True)
    )
    group_w = _WIDTH / max(1, len(classes))
    bar_w = min(22.0, 0.84 * group_w / max(1, len(stacks)))
    parts = [open_(_LEFT + _WIDTH + 8, _TOP + _HEIGHT + 62, title, words), *_percent_axis(tallest)]
    for number, label in enumerate(classes):
        middle = _LEFT + group_w * (number + 0.5)
        parts.append(text(middle, _TOP + _HEIGHT + 16, label, "tick", "middle"))
        for place, stack in enumerate(stacks.values()):
            x, (right, wrong) = middle + (place - len(stacks) / 2) * bar_w, stack[number]
            parts.append(_column(x, 0.0, scale * right, bar_w - 1, f"bar right k{place}"))
            parts.append(_column(x, scale * right, scale * wrong, bar_w - 1, f"bar wrong k{place}"))
    entries = [
        (f"{name}, {kind}", f"bar {kind} k{place}") for place, name in enumerate(stacks) for kind in ("right", "wrong")
    ]
    return "".join([*parts, *_legend(entries), "</svg>"])


def _column(x: float, base: float, height: float, width: float, kind: str) -> str:
    y = _y(base + height)
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_HEIGHT * height / 100:.1f}" class="{kind}"/>'


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, x, y = [], _LEFT, _TOP + _HEIGHT + 28
    for name, kind in entries:
        width = 26 + 6.2 * len(name)
        if x > _LEFT and x + width > _LEFT + _WIDTH:
            x, y = _LEFT, y + 16
        parts.append(f'<rect x="{x:.0f}" y="{y:g}" width="10" height="10" rx="2" class="{kind}"/>')
        parts.append(text(x + 14, y + 9, name, "tick"))
        x += width
    return parts


def _percent_axis(most: float = 100.0) -> list[str]:
    parts = []
    for fifth in range(6):
        y = _y(20 * fifth)
        parts.append(f'<line x1="{_LEFT:g}" x2="{_LEFT + _WIDTH:g}" y1="{y:g}" y2="{y:g}" class="grid"/>')
        parts.append(text(_LEFT - 6, y + 4, f"{most * fifth / 5:.3g}", "tick", "end"))
    return parts


def _x(place: int, places: int) -> float:
    return _LEFT + _WIDTH * place / max(1, places - 1)


def _y(percent: float) -> float:
    return _TOP + _HEIGHT * (1 - percent / 100)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Return the positions, moved as little as needed so that labels do not overlap.

    Args:
        gap: the least distance between two positions.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for _ in range(60):
        for upper, lower in pairwise(order):
            lack = gap - (moved[lower] - moved[upper])
            if lack > 0:
                moved[upper], moved[lower] = moved[upper] - lack / 2, moved[lower] + lack / 2
    shift = min(0.0, 252.0 - max(moved, default=0.0))
    return [place + shift for place in moved]
