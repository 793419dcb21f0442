"""Draws a grid of runs as bars, with the seeds as dots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from orchestration.report import marks
from orchestration.report.grid import Grid
from orchestration.study.trial import Trial


@matplotlib.rc_context(marks.STYLE)
def grid_figure(rows: Sequence[Trial], out: Path) -> list[Path]:
    """Draw a bar per setting with the seeds as dots, grouped by line; return the files, none if no run has ended."""
    grid = Grid.of(rows)
    if not any(cell.values for line in grid.cells.values() for cell in line.values()):
        return []
    figure = Figure(figsize=(max(6.0, 1.2 * len(grid.lines)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(grid.columns)
    colours = (marks.PAPER, marks.OPTUNA, *marks.BASELINES[1:])
    for index, column in enumerate(grid.columns):
        for place, line in enumerate(grid.lines):
            cell = grid.cells[line].get(column)
            if cell is None or cell.mean is None:
                continue
            x = place + (index - (len(grid.columns) - 1) / 2) * width
            colour = colours[index % len(colours)]
            axes.bar(x, cell.mean, 0.9 * width, color=colour, alpha=0.75, label=column if place == 0 else None)
            axes.scatter([x] * len(cell.values), cell.values, s=10, color="black", zorder=3, lw=0)
    marks.ticks(axes, range(len(grid.lines)), [line.replace(" on ", "\n") for line in grid.lines])
    axes.tick_params(axis="x", labelsize=9)
    axes.set_ylim(0, 100)
    axes.set_ylabel("clean test accuracy (%)")
    axes.set_title("Bars: mean over seeds; dots: seeds", loc="left")
    marks.legend(figure, columns=len(grid.columns))
    return marks.save(figure, out, "grid")
