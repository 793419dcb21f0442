"""Gives the colours of tables and figures: those of the style sheet by their names, and the scale of accuracies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from statistics import median

from orchestration.report.assets import asset

# From dark (0 %) to light (100 %) in even steps, so that the order is kept in grey and with colour blindness.
STOPS = ("#16213e", "#23467a", "#2f7ea3", "#4fb3a5", "#a5dcae", "#eefad1")
DARK, LIGHT = "#10131a", "#ffffff"  # text on light and on dark cells
LIGHT_TEXT_UNTIL = 0.55  # accuracies below are shown on dark cells
SERIES = tuple(f"var(--c{number})" for number in range(8))
DASHES: tuple[list[int], ...] = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])  # told apart without colours


def colour(share: float) -> tuple[str, str]:
    """Return the fill colour for an accuracy in [0, 1], and a text colour that is legible on it."""
    place = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    index = min(int(place), len(STOPS) - 2)
    ends = [[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in STOPS[index : index + 2]]
    rgb = [round(a + (b - a) * (place - index)) for a, b in zip(*ends, strict=True)]
    light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 125
    return "#{:02x}{:02x}{:02x}".format(*rgb), DARK if light else LIGHT


def seen_range(heights: Sequence[float]) -> tuple[float, float]:
    """Return the range of accuracies in percent that colours and axes show.

    It leaves out accuracies far below the others, because a single failed trial would otherwise give all others the
    same colour.
    """
    low, high = min(heights), max(heights)
    floor = max(low, high - max(4 * (high - median(heights)), 2.0))
    return floor, max(high, floor + 0.5)


@cache
def palette() -> dict[str, str]:
    """Return the colours of the style sheet on a light ground: name -> "#rrggbb"."""
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", asset("page.css").partition("@media")[0]))


def on_paper(text: str) -> str:
    """Replace the names of colours, such as `var(--c0)`, by the colours on a light ground."""
    return re.sub(r"var\(--(\w+)\)", lambda name: palette()[name[1]], text)
