"""Draws the Pareto front of a search with two objectives as PNG and SVG: validation accuracy over the cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from orchestration.report import marks
from orchestration.report.budgets import log_ticks
from orchestration.report.costs import front, measured
from orchestration.study.trial import Trial

MOST_LABELS = 20  # members of the front that have their number beside them


@matplotlib.rc_context(marks.STYLE)
def pareto_figure(rows: Sequence[Trial], out: Path, name: str = "pareto") -> list[Path]:
    """Draw validation accuracy over seconds of an epoch, and a line through the Pareto front.

    Args:
        rows: the trials; those that are not done are left out, as are listed runs and confirmations.
        out: folder for the PNG and the SVG.
        name: the name of the files.

    Returns:
        The files written; none if no trial has both figures.
    """
    known, members = measured(rows), {row.number for row in front(rows)}
    if not known:
        return []
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    others = [(seconds, 100 * height) for row, seconds, height in known if row.number not in members]
    best = sorted((seconds, 100 * height, row.number) for row, seconds, height in known if row.number in members)
    if others:
        x, y = zip(*others, strict=True)
        axes.scatter(x, y, s=36, facecolors="white", edgecolors=marks.MUTED, label="not on the front", zorder=3)
    x, y, numbers = zip(*best, strict=True)
    axes.plot(x, y, color=marks.PAPER, lw=1.5, zorder=2)
    axes.scatter(x, y, s=60, color=marks.PAPER, label="on the Pareto front", zorder=4)
    for place, words in list(zip(zip(x, y, strict=True), numbers, strict=True))[:MOST_LABELS]:
        axes.annotate(str(words), place, (-4, 6), textcoords="offset points", ha="right", fontsize=9)
    costs = [seconds for _, seconds, _ in known]
    if max(costs) > 8 * min(costs):
        axes.set_xscale("log")
        places = log_ticks("", costs)
        marks.ticks(axes, places, [f"{place:.3g}" for place in places])
    axes.margins(0.08)
    axes.set(xlabel="seconds of an epoch", ylabel="best validation accuracy (%)")
    axes.set_title(f"{len(known)} trials; on the line none is beaten in accuracy and cost at once", loc="left")
    marks.legend(figure, 2)
    return marks.save(figure, out, name)
