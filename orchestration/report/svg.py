"""Draws the figures of a page as inline SVG; their colours come from its style sheet, for light, dark and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import mean, quantiles

from orchestration.report.matrix import MatrixTable

# From dark (0 %) to light (100 %) in even steps, so that the order is kept in grey and with colour blindness.
_STOPS = ((22, 33, 62), (35, 70, 122), (47, 126, 163), (79, 179, 165), (165, 220, 174), (238, 250, 209))
MOST_DOTS = 80  # more values than this are shown by their quartiles only
COLOURS = 8


def open_(width: float, height: float, title: str, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" style="max-width:{width:g}px">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    of = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{of}>{escape(words)}</text>'


def colour(share: float) -> tuple[str, str]:
    """Return the fill colour for an accuracy in [0, 1], and a text colour that is legible on it."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    low, high, part = _STOPS[index], _STOPS[index + 1], place - index
    rgb = [round(a + (b - a) * part) for a, b in zip(low, high, strict=True)]
    light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 125
    return "#{:02x}{:02x}{:02x}".format(*rgb), "#10131a" if light else "#ffffff"


def heat_map(table: MatrixTable) -> str:
    """Draw the heat map of a table, defense x data corruption; a missing cell stays empty."""
    cell_w, cell_h, left, top = 62, 30, 12 + 7.2 * max(map(len, table.defenses)), 26
    width, height = left + cell_w * len(table.corruptions) + 4, top + cell_h * len(table.defenses) + 4
    known = [
        f"{defense} on {of} {cell.mean:.1f}"
        for defense in table.defenses
        for of in table.corruptions
        if (cell := table.cells[defense][of]).mean is not None
    ]
    parts = [open_(width, height, f"Accuracy, {table.title}", "; ".join(known))]
    for column, corruption in enumerate(table.corruptions):
        parts.append(text(left + (column + 0.5) * cell_w, top - 9, corruption, "label", "middle"))
    for line, defense in enumerate(table.defenses):
        y = top + line * cell_h
        parts.append(text(left - 8, y + cell_h / 2 + 4, defense, "label", "end"))
        for column, corruption in enumerate(table.corruptions):
            number, x = table.cells[defense][corruption].mean, left + column * cell_w
            box = f'x="{x + 1:g}" y="{y + 1:g}" width="{cell_w - 2}" height="{cell_h - 2}" rx="4"'
            if number is None:
                parts.append(f'<rect {box} class="empty"/>')
                continue
            fill, ink = colour(number / 100)
            parts.append(f'<rect {box} fill="{fill}"/>')
            words = text(x + cell_w / 2, y + cell_h / 2 + 4, f"{number:.1f}", "value", "middle")
            parts.append(words.replace("<text", f'<text style="fill:{ink}"', 1))
    return "".join([*parts, "</svg>"])


def colour_bar() -> str:
    """Draw the legend of the heat maps."""
    stops = "".join(
        f'<stop offset="{i / (len(_STOPS) - 1):.2f}" stop-color="#{r:02x}{g:02x}{b:02x}"/>'
        for i, (r, g, b) in enumerate(_STOPS)
    )
    return (
        open_(240, 30, "Colours of the heat maps", "dark is 0 %, light is 100 %")
        + f'<defs><linearGradient id="scale">{stops}</linearGradient></defs>'
        + '<rect x="0" y="0" width="240" height="10" rx="3" fill="url(#scale)"/>'
        + text(0, 25, "0 %", "tick")
        + text(240, 25, "100 %", "tick", "end")
        + "</svg>"
    )


def bars(values: Mapping[str, Sequence[float]], title: str, most: float = 100.0) -> str:
    """Draw a bar per name: the mean of its values, dots for the values (or their quartiles), whiskers to the extremes.

    Args:
        values: name -> values, in percent or on the scale of `most`.
        title: the title, for screen readers.
        most: the end of the axis.
    """
    known = {name: list(cells) for name, cells in values.items() if cells}
    left, plot, line_h, top = 12 + 7.2 * max(map(len, known), default=1), 480.0, 34, 8
    height = top + line_h * len(known) + 24
    words = "; ".join(
        f"{name} {_short(mean(cells))} ({_short(min(cells))} to {_short(max(cells))})" for name, cells in known.items()
    )
    parts = [open_(left + plot + 60, height, title, words)]
    for fifth in range(6):
        x = left + plot * fifth / 5
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{top}" y2="{height - 20}" class="grid"/>')
        parts.append(text(x, height - 5, f"{most * fifth / 5:.3g}", "tick", "middle"))
    for index, (name, cells) in enumerate(known.items()):
        y = top + index * line_h
        parts.append(text(left - 8, y + line_h / 2 + 4, name, "label", "end"))
        parts += _bar(left, y, plot / most, line_h, cells, index)
    return "".join([*parts, "</svg>"])


def _bar(left: float, y: float, unit: float, height: float, cells: Sequence[float], index: int) -> list[str]:
    average, middle = mean(cells), y + height / 2
    low, high = left + unit * min(cells), left + unit * max(cells)
    kind = f"c{index % COLOURS}"
    parts = [
        f'<rect x="{left:g}" y="{y + 6:g}" width="{unit * average:.1f}" height="{height - 12:g}" rx="3" '
        f'class="bar {kind}"/>',
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}" class="whisker"/>',
    ]
    if len(cells) <= MOST_DOTS:
        parts += [f'<circle cx="{left + unit * value:.1f}" cy="{middle:g}" r="2.6" class="dot"/>' for value in cells]
    else:
        lower, _, upper = quantiles(cells, n=4)
        box = f'x="{left + unit * lower:.1f}" width="{max(unit * (upper - lower), 1):.1f}"'
        parts.append(f'<rect {box} y="{middle - 5:g}" height="10" class="quartiles"/>')
    return [*parts, text(left + 490, middle + 4, _short(average), "value")]


def _short(number: float) -> str:
    return f"{number:.1f}" if number >= 10 else f"{number:.2g}"


def importance(shares: Mapping[str, float]) -> str:
    """Draw a bar per key: its share of the variation that the settings explain."""
    left, plot, line_h = 16 + 7.2 * max(map(len, shares), default=1), 360.0, 30
    words = "; ".join(f"{name} {share:.2f}" for name, share in shares.items())
    parts = [open_(left + plot + 60, line_h * len(shares) + 6, "Importance of the searched settings", words)]
    for index, (name, share) in enumerate(shares.items()):
        y = index * line_h
        parts.append(text(left - 8, y + line_h / 2 + 4, name, "label", "end"))
        parts.append(
            f'<rect x="{left:g}" y="{y + 5}" width="{plot * share:.1f}" height="{line_h - 10}" rx="3" class="bar c0"/>'
        )
        parts.append(text(left + plot * share + 8, y + line_h / 2 + 4, f"{share:.2f}", "value"))
    return "".join([*parts, "</svg>"])


def parallel(
    axes: Mapping[str, Sequence[float | None]],
    labels: Mapping[str, Sequence[tuple[float, str]]],
    heights: Sequence[float],
    faint: Sequence[bool] = (),
    legend: str = "",
) -> str:
    """Draw parallel coordinates: a line per trial through its settings to its accuracy, which sets its colour.

    Args:
        axes: name -> position of each trial from 0 (bottom) to 1; None for a trial that lacks the setting: its line
            passes by.
        labels: name -> (position, text) at its axis.
        heights: accuracy of each trial as a position from 0 to 1.
        faint: whether to draw each trial as a faint dashed line, below the others. Empty: none.
        legend: what these lines are; empty: there is no legend.
    """
    names, pale = list(axes), list(faint) or [False] * len(heights)
    gap, top, plot_h = 130.0, 34.0, 220.0
    width = gap * (len(names) - 1) + 130
    parts = [
        open_(
            width,
            top + plot_h + (50 if legend else 28),
            "Parallel coordinates",
            f"{len(heights)} trials through {', '.join(names)}",
        )
    ]
    for trial in sorted(range(len(heights)), key=lambda index: (not pale[index], heights[index])):  # the best on top
        points = " ".join(
            f"{65 + gap * i:.1f},{top + plot_h * (1 - place):.1f}"
            for i, name in enumerate(names)
            if (place := axes[name][trial]) is not None
        )
        if pale[trial]:
            parts.append(f'<polyline points="{points}" class="pale"/>')
            continue
        stroke = f"color-mix(in srgb, var(--c0) {10 + 90 * heights[trial]:.0f}%, var(--rule))"
        parts.append(
            f'<polyline points="{points}" fill="none" style="stroke:{stroke};stroke-width:{1 + heights[trial]:.1f}"/>'
        )
    for index, name in enumerate(names):
        x = 65 + gap * index
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{top:g}" y2="{top + plot_h:g}" class="axis"/>')
        parts.append(text(x, 12, name, "label", "middle"))
        for place, words in labels[name]:
            if place in (0, 1):
                parts.append(text(x, 27 if place else top + plot_h + 17, words, "tick", "middle"))
            else:
                parts.append(text(x + 5, top + plot_h * (1 - place) + 4, words, "tick"))
    if legend:
        y = top + plot_h + 38
        entries = [("curve done", "to the last epoch")] * (not all(pale)) + [("pale", legend)]
        for x, (kind, words) in zip((65.0, 215.0), entries, strict=False):
            parts.append(f'<line x1="{x:g}" x2="{x + 24:g}" y1="{y:g}" y2="{y:g}" class="{kind}"/>')
            parts.append(text(x + 30, y + 4, words, "tick"))
    return "".join([*parts, "</svg>"])
