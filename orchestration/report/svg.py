"""Figures of a page as inline SVG: colours come from the page's style sheet, so they suit light, dark and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import mean, quantiles

from orchestration.report.matrix import MatrixTable

# Dark to light at an even pace, so that the order survives in grey and under colour blindness: 0 to 100 %.
_STOPS = ((22, 33, 62), (35, 70, 122), (47, 126, 163), (79, 179, 165), (165, 220, 174), (238, 250, 209))
MOST_DOTS = 80  # more cells than that are shown by their quartiles alone
_DASHES = ("", "6 3", "2 2")
_COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """A line over epochs: name, and a mean accuracy in percent after each epoch."""

    name: str
    values: Sequence[float]


def _open(width: float, height: float, title: str, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" style="max-width:{width:g}px">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    of = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{of}>{escape(words)}</text>'


def colour(share: float) -> tuple[str, str]:
    """Fill for an accuracy in [0, 1], and the ink that reads on it."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    low, high, part = _STOPS[index], _STOPS[index + 1], place - index
    rgb = [round(a + (b - a) * part) for a, b in zip(low, high, strict=True)]
    light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 125
    return "#{:02x}{:02x}{:02x}".format(*rgb), "#10131a" if light else "#ffffff"


def heat_map(table: MatrixTable) -> str:
    """Defense x data corruption; a missing cell stays empty."""
    cell_w, cell_h, left, top = 62, 30, 12 + 7.2 * max(map(len, table.defenses)), 26
    width, height = left + cell_w * len(table.corruptions) + 4, top + cell_h * len(table.defenses) + 4
    known = [
        f"{defense} on {of} {cell.mean:.1f}"
        for defense in table.defenses
        for of in table.corruptions
        if (cell := table.cells[defense][of]).mean is not None
    ]
    parts = [_open(width, height, f"Accuracy, {table.title}", "; ".join(known))]
    for column, corruption in enumerate(table.corruptions):
        parts.append(_text(left + (column + 0.5) * cell_w, top - 9, corruption, "label", "middle"))
    for line, defense in enumerate(table.defenses):
        y = top + line * cell_h
        parts.append(_text(left - 8, y + cell_h / 2 + 4, defense, "label", "end"))
        for column, corruption in enumerate(table.corruptions):
            number, x = table.cells[defense][corruption].mean, left + column * cell_w
            box = f'x="{x + 1:g}" y="{y + 1:g}" width="{cell_w - 2}" height="{cell_h - 2}" rx="4"'
            if number is None:
                parts.append(f'<rect {box} class="empty"/>')
                continue
            fill, ink = colour(number / 100)
            parts.append(f'<rect {box} fill="{fill}"/>')
            words = _text(x + cell_w / 2, y + cell_h / 2 + 4, f"{number:.1f}", "value", "middle")
            parts.append(words.replace("<text", f'<text style="fill:{ink}"', 1))
    return "".join([*parts, "</svg>"])


def colour_bar() -> str:
    """The legend of the heat maps."""
    stops = "".join(
        f'<stop offset="{i / (len(_STOPS) - 1):.2f}" stop-color="#{r:02x}{g:02x}{b:02x}"/>'
        for i, (r, g, b) in enumerate(_STOPS)
    )
    return (
        _open(240, 30, "Colours of the heat maps", "dark is 0 %, light is 100 %")
        + f'<defs><linearGradient id="scale">{stops}</linearGradient></defs>'
        + '<rect x="0" y="0" width="240" height="10" rx="3" fill="url(#scale)"/>'
        + _text(0, 25, "0 %", "tick")
        + _text(240, 25, "100 %", "tick", "end")
        + "</svg>"
    )


def bars(values: Mapping[str, Sequence[float]]) -> str:
    """A bar per name: mean over its cells, dots for the cells (or their quartiles), whiskers to the extremes."""
    known = {name: list(cells) for name, cells in values.items() if cells}
    left, plot, line_h, top = 12 + 7.2 * max(map(len, known), default=1), 480.0, 34, 8
    height = top + line_h * len(known) + 24
    words = "; ".join(
        f"{name} {mean(cells):.1f} ({min(cells):.1f} to {max(cells):.1f})" for name, cells in known.items()
    )
    parts = [_open(left + plot + 60, height, "Mean accuracy over cells, per defense", words)]
    for tick in range(0, 101, 20):
        x = left + plot * tick / 100
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{top}" y2="{height - 20}" class="grid"/>')
        parts.append(_text(x, height - 5, f"{tick}", "tick", "middle"))
    for index, (name, cells) in enumerate(known.items()):
        y = top + index * line_h
        parts.append(_text(left - 8, y + line_h / 2 + 4, name, "label", "end"))
        parts += _bar(left, y, plot / 100, line_h, cells, index)
    return "".join([*parts, "</svg>"])


def _bar(left: float, y: float, unit: float, height: float, cells: Sequence[float], index: int) -> list[str]:
    average, middle = mean(cells), y + height / 2
    low, high = left + unit * min(cells), left + unit * max(cells)
    kind = f"c{index % _COLOURS}"
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
    return [*parts, _text(left + unit * 100 + 10, middle + 4, f"{average:.1f}", "value")]


def curves(lines: Sequence[Curve], title: str, names: Sequence[str]) -> str:
    """Accuracy over epochs, a line a name with the name at its end.

    Args:
        names: all names of the page in their order: a name has one colour in all figures.
    """
    lines = [line for line in lines if line.values]
    left, top, plot_w, plot_h = 34.0, 10.0, 400.0, 230.0
    right = 16 + 7.2 * max((len(line.name) for line in lines), default=1)
    epochs = max((len(line.values) for line in lines), default=1)
    words = "; ".join(f"{line.name} ends at {line.values[-1]:.1f}" for line in lines)
    parts = [_open(left + plot_w + right, top + plot_h + 34, title, words)]
    for tick in range(0, 101, 20):
        y = top + plot_h * (1 - tick / 100)
        parts.append(f'<line x1="{left:g}" x2="{left + plot_w:g}" y1="{y:g}" y2="{y:g}" class="grid"/>')
        parts.append(_text(left - 6, y + 4, f"{tick}", "tick", "end"))
    step = max(1, round(epochs / 5))
    for epoch in [1, *range(max(2 * step, 2) if step > 1 else 2, epochs + 1, step)]:
        x = left + plot_w * (epoch - 1) / max(1, epochs - 1)
        parts.append(_text(x, top + plot_h + 16, f"{epoch}", "tick", "middle"))
    parts.append(_text(left + plot_w / 2, top + plot_h + 31, "epoch", "tick", "middle"))
    ends = _apart([top + plot_h * (1 - line.values[-1] / 100) for line in lines], 13)
    for line, end in zip(lines, ends, strict=True):
        index = names.index(line.name)
        points = " ".join(
            f"{left + plot_w * i / max(1, epochs - 1):.1f},{top + plot_h * (1 - value / 100):.1f}"
            for i, value in enumerate(line.values)
        )
        dash = _DASHES[index // _COLOURS % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        main = " main" if line.name == "ERAT" else ""
        parts.append(f'<polyline points="{points}" class="line c{index % _COLOURS}{main}"{style}/>')
        kind = f"name c{index % _COLOURS}{main}"
        parts.append(_text(left + plot_w * len(line.values) / epochs + 6, end + 4, line.name, kind))
    return "".join([*parts, "</svg>"])


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as keeps labels from lying on each other."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for _ in range(60):
        for upper, lower in pairwise(order):
            lack = gap - (moved[lower] - moved[upper])
            if lack > 0:
                moved[upper], moved[lower] = moved[upper] - lack / 2, moved[lower] + lack / 2
    shift = min(0.0, 252.0 - max(moved, default=0.0))
    return [place + shift for place in moved]


def importance(shares: Mapping[str, float]) -> str:
    """A bar per key: its share of what the settings explain."""
    left, plot, line_h = 16 + 7.2 * max(map(len, shares), default=1), 360.0, 30
    words = "; ".join(f"{name} {share:.2f}" for name, share in shares.items())
    parts = [_open(left + plot + 60, line_h * len(shares) + 6, "Importance of the searched settings", words)]
    for index, (name, share) in enumerate(shares.items()):
        y = index * line_h
        parts.append(_text(left - 8, y + line_h / 2 + 4, name, "label", "end"))
        parts.append(
            f'<rect x="{left:g}" y="{y + 5}" width="{plot * share:.1f}" height="{line_h - 10}" rx="3" class="bar c0"/>'
        )
        parts.append(_text(left + plot * share + 8, y + line_h / 2 + 4, f"{share:.2f}", "value"))
    return "".join([*parts, "</svg>"])


def parallel(
    axes: Mapping[str, Sequence[float]], labels: Mapping[str, tuple[str, str]], heights: Sequence[float]
) -> str:
    """Parallel coordinates: a line a trial through its settings to its accuracy, coloured by it.

    Args:
        axes: name -> each trial's place from 0 (bottom) to 1.
        labels: name -> words at the bottom and the top of its axis.
        heights: each trial's accuracy as a place from 0 to 1.
    """
    names = list(axes)
    gap, top, plot_h = 130.0, 34.0, 220.0
    width = gap * (len(names) - 1) + 130
    parts = [
        _open(width, top + plot_h + 28, "Parallel coordinates", f"{len(heights)} trials through {', '.join(names)}")
    ]
    for trial in sorted(range(len(heights)), key=lambda index: heights[index]):  # the best on top
        points = " ".join(
            f"{65 + gap * i:.1f},{top + plot_h * (1 - axes[name][trial]):.1f}" for i, name in enumerate(names)
        )
        stroke = f"color-mix(in srgb, var(--c0) {10 + 90 * heights[trial]:.0f}%, var(--rule))"
        parts.append(
            f'<polyline points="{points}" fill="none" style="stroke:{stroke};stroke-width:{1 + heights[trial]:.1f}"/>'
        )
    for index, name in enumerate(names):
        x = 65 + gap * index
        low, high = labels[name]
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{top:g}" y2="{top + plot_h:g}" class="axis"/>')
        parts.append(_text(x, 12, name, "label", "middle") + _text(x, 27, high, "tick", "middle"))
        parts.append(_text(x, top + plot_h + 17, low, "tick", "middle"))
    return "".join([*parts, "</svg>"])
