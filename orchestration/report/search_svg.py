"""Draws the trials of a search as inline SVG: their accuracy over epochs with the rungs, and the Pareto front.

Each curve and point has the words that a browser shows when the pointer rests on it, and opens the details of its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log

from orchestration.report.budgets import log_ticks
from orchestration.report.costs import front, measured
from orchestration.report.marks import colour_scale
from orchestration.report.notation import accuracy, finite, number_of, promotion, state, validated
from orchestration.report.summary import best, rungs_of
from orchestration.report.svg import open_, text
from orchestration.study.trial import Trial

MOST_CURVES = 200  # a figure with more cannot be read, and would make the page heavy
MOST_POINTS = 60  # points of one curve
MOST_DOTS = 2000  # trials in the figure of the Pareto front that are not on it
_LEFT, _TOP, _WIDTH, _HEIGHT = 44.0, 12.0, 640.0, 280.0  # position and size of the plot area
_KINDS = {  # class of a curve -> what the legend says of it
    "best": "chosen",
    "done": "trained to the last epoch",
    "running": "under way",
    "paused": "waits at a rung",
    "stopped": "stopped at a rung",
}


def rung_curves(rows: Sequence[Trial]) -> tuple[str, str] | None:
    """Draw the validation accuracy of each trial over its epochs, with a line at each rung and a ring at an end there.

    Args:
        rows: the trials of a search; listed runs and confirmations are left out.

    Returns:
        The caption and the SVG; None if the search has no rungs, or no trial has finished an epoch.
    """
    rungs, chosen = rungs_of(rows), best(rows)
    known = [row for row in rows if row.source not in ("baseline", "confirm") and row.so_far.val_history]
    if not rungs or not known:
        return None
    known.sort(key=lambda row: (row is not chosen, row.status != "done", -(row.best_val_accuracy or 0.0), row.number))
    drawn = known[:MOST_CURVES]
    epochs = max(row.epochs or row.epoch for row in known)
    low, high = _range([height for row in drawn if (height := validated(row)) is not None])
    title = f"Validation accuracy over epochs, with rungs at {', '.join(map(str, rungs))}"
    words = "; ".join(_words(row) for row in drawn[:20])
    parts = [open_(_LEFT + _WIDTH + 14, _TOP + _HEIGHT + 62, title, words), *_heights(low, high)]
    clip = f'<rect x="{_LEFT - 7:g}" y="{_TOP - 7:g}" width="{_WIDTH + 14:g}" height="{_HEIGHT + 7:g}"/>'
    parts.append(f'<defs><clipPath id="rung-plot">{clip}</clipPath></defs>')
    step = max(1, round(epochs / 8))
    for epoch in [1, *range(max(2, 2 * step if step > 1 else 2), epochs + 1, step)]:
        parts.append(text(_across(epoch, epochs), _TOP + _HEIGHT + 16, str(epoch), "tick", "middle"))
    parts.append(text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 31, "epoch", "tick", "middle"))
    for rung in rungs:
        x = _across(rung, epochs)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{_TOP + _HEIGHT:g}" class="rung"/>')
        parts.append(text(x + 5, _TOP + _HEIGHT - 6, f"rung {rung}", "tick"))
    parts.append('<g clip-path="url(#rung-plot)">')
    parts += [_curve(row, _kind(row, chosen), epochs, low, high) for row in reversed(drawn)]
    parts.append("</g>")
    kinds = {_kind(row, chosen) for row in drawn}
    parts += _legend([(f"curve {kind}", name) for kind, name in _KINDS.items() if kind in kinds], "line")
    left_out = f" The best {len(drawn)} of {len(known)} trials." if len(drawn) < len(known) else ""
    caption = (
        "Validation accuracy after each epoch, a curve per trial. A dotted line: a rung, where the trials of a block "
        f"pause; a ring: a trial that ended or waits there.{left_out} Choose a curve to see its run."
    )
    return caption, "".join([*parts, "</svg>"])


def _kind(row: Trial, chosen: Trial | None) -> str:
    if row is chosen:
        return "best"
    return row.status if row.status in ("done", "paused", "stopped") else "running"


def _curve(row: Trial, kind: str, epochs: int, low: float, high: float) -> str:
    history = row.so_far.val_history
    step = ceil(len(history) / MOST_POINTS)
    shown = sorted({*range(1, len(history) + 1, step), len(history), *(r for r in row.rungs if r <= len(history))})
    points = [(_across(epoch, epochs), _up(100 * history[epoch - 1], low, high)) for epoch in shown]
    x, y = points[-1]
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="curve end {kind}"/>' if row.at_rung else ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<g data-runs="{escape(row.cell)}"><title>{escape(_words(row))}</title>'
        f'<polyline points="{line}" class="curve {kind}"/>{ring}</g>'
    )


def _words(row: Trial) -> str:
    went_on = promotion(row)
    return f"trial {number_of(row)}, {state(row)}{' ' + went_on if went_on else ''}: {accuracy(row.best_val_accuracy)}"


def pareto_front(rows: Sequence[Trial]) -> tuple[str, str] | None:
    """Draw validation accuracy over seconds of an epoch, a point per trial that is done, and a line through the front.

    Returns:
        The caption and the SVG; None if no trial has both figures.
    """
    known, members = measured(rows), front(rows)
    if not known:
        return None
    on_front = {row.number for row in members}
    costs = [seconds for _, seconds, _ in known]
    logarithmic = max(costs) > 8 * min(costs)
    scale = log if logarithmic else float
    left, right = scale(min(costs)), scale(max(costs))
    margin = 0.06 * (right - left) or 0.1 * abs(right) or 0.1
    left, right = left - margin, right + margin
    low, high = _range([100 * height for _, _, height in known])

    def at(seconds: float, height: float) -> tuple[float, float]:
        up = min(_up(100 * height, low, high), _TOP + _HEIGHT)
        return _LEFT + _WIDTH * (scale(seconds) - left) / (right - left), up

    places = {row.number: at(seconds, height) for row, seconds, height in known}
    words = "; ".join(f"trial {row.number} {_pair(row)}" for row in members)
    title = "Pareto front of validation accuracy and seconds of an epoch"
    parts = [open_(_LEFT + _WIDTH + 14, _TOP + _HEIGHT + 62, title, f"On the front: {words}"), *_heights(low, high)]
    ticks = log_ticks("", costs) if logarithmic else _even(min(costs), max(costs))
    for tick in ticks:
        if left <= scale(tick) <= right:
            x = at(tick, 0.0)[0]
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{_TOP + _HEIGHT:g}" class="grid"/>')
            parts.append(text(x, _TOP + _HEIGHT + 16, f"{tick:.4g}", "tick", "middle"))
    parts.append(text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 31, "seconds of an epoch", "tick", "middle"))
    line = " ".join("{:.1f},{:.1f}".format(*places[row.number]) for row in members)
    parts.append(f'<polyline points="{line}" class="front"/>')
    beaten = [row for row, _, _ in known if row.number not in on_front]
    beaten = sorted(beaten, key=lambda row: -(row.best_val_accuracy or 0.0))[:MOST_DOTS]
    for row in [*beaten, *members]:
        x, y = places[row.number]
        kind = "dot on-front" if row.number in on_front else "dot beaten"
        parts.append(
            f'<g data-runs="{escape(row.cell)}"><title>{escape(f"trial {row.number}: {_pair(row)}")}</title>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if row.number in on_front else 3.5}" class="{kind}"/></g>'
        )
    parts += _labels([(str(row.number), *places[row.number]) for row in members])
    parts += _legend([("dot on-front", "on the front, with its number"), ("dot beaten", "not on the front")], "dot")
    caption = (
        "Validation accuracy (best epoch, in percent) over the seconds of an epoch, as it ran, a point per trial that "
        "is done. The line is the Pareto front: no trial is better and cheaper than one on it. Choose a point to see "
        "its run."
    )
    return caption, "".join([*parts, "</svg>"])


def _pair(row: Trial) -> str:
    seconds = row.seconds / row.epoch if row.epoch else 0.0
    return f"{accuracy(row.best_val_accuracy)} in validation, {seconds:.3g} s per epoch"


def _labels(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Return a label above and left of each point that has room for it, the last point first."""
    parts: list[str] = []
    before = (-100.0, -100.0)
    for words, x, y in reversed(points):
        if abs(x - before[0]) >= 16 or abs(y - before[1]) >= 14:
            parts.append(text(x - 5, y - 8, words, "label", "middle"))
            before = (x, y)
    return parts


def _range(heights: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis in percent that shows these accuracies, except for those far below the others."""
    known = [height for height in heights if finite(height) is not None] or [0.0, 100.0]
    scale, _ = colour_scale(known)
    bottom, top = float(scale.vmin or 0.0), max(known)
    unit = 10 if top - bottom > 20 else 5 if top - bottom > 8 else 1
    low = max(0.0, unit * floor((bottom - 0.15 * (top - bottom)) / unit))
    return low, min(100.0, max(low + unit, unit * ceil((top + 0.02 * (top - bottom)) / unit)))


def _even(low: float, high: float, parts: int = 6) -> list[float]:
    """Return about `parts` round numbers from low to high."""
    raw = (high - low) / parts or abs(high) or 1.0
    unit = 10.0 ** floor(log(raw, 10))
    step = next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= raw * 0.999)
    return [step * count for count in range(floor(low / step), ceil(high / step) + 1)]


def _heights(low: float, high: float) -> list[str]:
    parts = [text(_LEFT + 2, _TOP - 3, "validation accuracy, %", "tick")]
    for value in _even(low, high, 5):
        if low <= value <= high:
            y = _up(value, low, high)
            parts.append(f'<line x1="{_LEFT:g}" x2="{_LEFT + _WIDTH:g}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            parts.append(text(_LEFT - 6, y + 4, f"{value:.4g}", "tick", "end"))
    return parts


def _legend(entries: Sequence[tuple[str, str]], shape: str) -> list[str]:
    parts, x, y = [], _LEFT, _TOP + _HEIGHT + 50
    for kind, name in entries:
        if shape == "line":
            parts.append(f'<line x1="{x:.0f}" x2="{x + 22:.0f}" y1="{y - 4:g}" y2="{y - 4:g}" class="{kind}"/>')
        else:
            parts.append(f'<circle cx="{x + 11:.0f}" cy="{y - 4:g}" r="4.5" class="{kind}"/>')
        parts.append(text(x + 28, y, name, "tick"))
        x += 46 + 6.0 * len(name)
    return parts


def _across(epoch: int, epochs: int) -> float:
    return _LEFT + _WIDTH * (epoch - 1) / max(1, epochs - 1)


def _up(percent: float, low: float, high: float) -> float:
    return _TOP + _HEIGHT * (1 - (percent - low) / (high - low))
