"""Draws the parts of figures: colours, trials as marks, baselines, axes, files. Without pyplot, so no global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from orchestration.report.colours import seen_range
from orchestration.report.costs import OTHERS
from orchestration.report.notation import baseline_name, tested, validated
from orchestration.study.trial import FINISHED, Trial

# The colours of Okabe and Ito, which can be told apart with the common forms of colour blindness.
PAPER, OPTUNA, RING, MUTED = "#0072B2", "#E69F00", "#D55E00", "#595959"
BASELINES = ("#000000", "#009E73", "#CC79A7", "#56B4E9")
DASHES = ((5, 2), (2, 1.5), (6, 2, 1, 2), (1, 1))
STYLE: Any = {  # typed by matplotlib as a dictionary with 300 literal keys
    "font.family": "DejaVu Sans",  # comes with matplotlib, so pictures are the same everywhere; it has ⅛ and ∞
    "font.size": 10.5,
    "text.parse_math": False,  # a class may be called "$x", which is not mathematics
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and restyled
    "svg.hashsalt": "erat",  # the same data give the same file
}
Position = Callable[[Trial], float]
Accuracy = Callable[[Trial], float | None]


def finished(rows: Sequence[Trial]) -> list[Trial]:
    """Return the trials of the space that ended with an accuracy, without baselines and confirmations."""
    ended = [row for row in rows if row.status in FINISHED and row.source not in OTHERS]
    return [row for row in ended if tested(row) is not None or validated(row) is not None]


def references(rows: Sequence[Trial], baselines: Sequence[Trial]) -> list[Trial]:
    """Return the baselines with a test accuracy, including those among the trials, each once."""
    named = {row.cell: row for row in [*baselines, *(row for row in rows if row.source == "baseline")]}
    return [row for row in named.values() if row.status in FINISHED and tested(row) is not None]


def draw_trials(axes: Axes, rows: Sequence[Trial], position: Position) -> None:
    """Draw test accuracy as large marks and validation accuracy as small ones; lines join the paper's settings."""
    paper = sorted((row for row in rows if row.source == "paper"), key=position)
    others = [row for row in rows if row.source != "paper"]
    joined = [row for row in paper if row.status == "done"]  # a trial that was stopped early would dent the line
    thin: dict[str, Any] = {"lw": 0.9, "ls": (0, (4, 2))}
    axes.plot(*_points(joined, position, tested), color=PAPER, zorder=2, lw=2)
    axes.plot(*_points(joined, position, validated), color=PAPER, zorder=2, **thin)
    draw_marks(axes, rows, position, tested, ": test, last epoch")
    for group, colour in ((paper, PAPER), (others, OPTUNA)):
        x, y = _points(group, position, validated)
        if x:
            axes.scatter(x, y, s=14, color=colour, lw=0, zorder=3, label="validation, best epoch")


def draw_marks(axes: Axes, rows: Sequence[Trial], x: Position, y: Accuracy, what: str = "") -> None:
    """Draw one large mark per trial: circles for the paper's settings, stars for proposals, hollow if stopped early.

    Those that were stopped at a rung are fainter.
    """
    for from_paper, colour, marker, size, name in (
        (True, PAPER, "o", 48, "paper's settings"),
        (False, OPTUNA, "*", 120, "Optuna's proposals"),
    ):
        group = [row for row in rows if (row.source == "paper") == from_paper]
        for status, at_rung, face, label in (
            ("done", False, colour, name + what),
            ("stopped", False, "white", "stopped early"),
            ("stopped", True, "white", "stopped at a rung"),
        ):
            xs, ys = _points([row for row in group if (row.status, row.at_rung) == (status, at_rung)], x, y)
            if xs:
                style: dict[str, Any] = {"facecolors": face, "edgecolors": colour, "linewidths": 1.2, "label": label}
                axes.scatter(xs, ys, marker=marker, s=size, zorder=4 if at_rung else 5, **style | _faint(at_rung))


def _faint(at_rung: bool) -> dict[str, Any]:
    """Return the style of marks of trials that were stopped at a rung, which were trained less than the others."""
    return {"alpha": 0.45, "linewidths": 0.9} if at_rung else {}


def _points(rows: Sequence[Trial], x: Position, y: Accuracy) -> tuple[list[float], list[float]]:
    known = [(x(row), height) for row in rows if (height := y(row)) is not None]
    return [place for place, _ in known], [height for _, height in known]


def ring(axes: Axes, x: float, y: float) -> None:
    """Mark the chosen trial."""
    style: dict[str, Any] = {"facecolors": "none", "edgecolors": RING, "linewidths": 2}
    axes.scatter([x], [y], s=230, zorder=6, **style)
    axes.scatter([], [], s=80, label="best by validation accuracy", **style)  # smaller, to fit the legend's line


def frame(
    axes: Axes,
    trials: Sequence[Trial],
    core: Sequence[Trial],
    accuracies: Sequence[Accuracy],
    baselines: Sequence[Trial] = (),
) -> None:
    """Choose the y axis by the core trials and draw the baselines as dashed lines.

    Trials and baselines far below the core (a trial stopped in its first epochs, plain training under a poison) are
    named instead of shown, because they would flatten the curve that the figure is about.

    Args:
        trials: all trials that were drawn.
        core: the trials that must be visible.
        accuracies: the accuracies that were drawn of each trial.
        baselines: the result of `references`; their test accuracy is drawn.
    """

    def heights(rows: Sequence[Trial]) -> list[float]:
        return [height for row in rows for accuracy in accuracies if (height := accuracy(row)) is not None]

    inner = heights(core) or heights(trials)
    floor = min(inner) - 1.5 * max(max(inner) - min(inner), 2.0)
    seen = inner + [height for height in heights(trials) if height >= floor]
    hidden = sum(max(heights([row]), default=floor) < floor for row in trials)
    for index, row in enumerate(baselines):
        height = tested(row) or 0.0
        label = f"{baseline_name(row)}: {height:.1f}"
        style: dict[str, Any] = {"color": BASELINES[index % 4], "lw": 1.5, "ls": (0, DASHES[index % 4]), "zorder": 1}
        if height >= floor:
            seen.append(height)
            axes.axhline(height, label=label, **style)
        else:
            axes.plot([], [], label=f"{label} (below this axis)", **style)
    room = max(max(seen) - min(seen), 1.0)
    axes.set_ylim(min(seen) - 0.08 * room, max(seen) + 0.16 * room)
    if hidden:
        note = f"{hidden} trial{'s' if hidden > 1 else ''} below this axis"
        axes.annotate(note, (0.99, 0.015), xycoords="axes fraction", ha="right", color=MUTED, fontsize=9)


def legend(figure: Figure, columns: int) -> None:
    """Draw a legend with one entry per name below all axes, where it hides no mark."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower left", ncols=columns)


def colour_scale(heights: Sequence[float]) -> tuple[Normalize, bool]:
    """Return the range of the colours over accuracies, and whether some accuracies lie below it (`seen_range`)."""
    low, high = seen_range(heights)
    return Normalize(low, high), low > min(heights)


def ticks(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """Set these ticks on the x axis and no others."""
    axes.set_xticks(places, labels)
    axes.xaxis.set_minor_locator(NullLocator())


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write the figure as PNG and SVG into the folder `out`, which is created if needed; return both paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
