"""Draws accuracy over the searched settings, as PNG and SVG: the result of a sweep beside that of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from orchestration.report import marks
from orchestration.report.budgets import MARGIN, BudgetAxis, hurting, log_ticks, pair
from orchestration.report.costs import OTHERS
from orchestration.report.notation import EPSILON_2, EPSILON_INF, header, searched_keys, tested, validated, value
from orchestration.report.summary import best
from orchestration.study.trial import Trial

# searched on a linear scale over a range that starts at or near 0
_LINEAR = ("defense.eta", "defense.lambda_u", EPSILON_2)
# The paper's own setting and its finding, for each key that the paper studies alone.
_FINDINGS = {
    "defense.eta": (0.1, "Paper, Fig. 6: η = 0.1 best balances clean labels against equal classes"),
    "defense.lambda_u": (25.0, "Paper, Fig. 7: unlabelled images help; too small and too large a weight both hurt"),
}


def sweep_figure(space_name: str, rows: Sequence[Trial], baselines: Sequence[Trial], out: Path) -> list[Path]:
    """Draw the figure that fits the searched keys.

    Args:
        space_name: the name of the files.
        rows: the trials; those that have not ended are left out.
        baselines: reference runs.
        out: folder for the PNG and the SVG.

    Returns:
        The files written; none if no trial ended or nothing was searched.
    """
    keys = searched_keys([row for row in rows if row.source not in OTHERS])
    name = Path(space_name).stem
    if set(keys) == {EPSILON_INF, EPSILON_2}:
        return budget_figure(rows, baselines, out, name)
    if len(keys) == 1:
        return line_figure(rows, keys[0], baselines, out, name)
    return joint_figure(rows, keys, out, name) if keys else []


# -- Two budgets -----------------------------------------------------------------------------------------------------


@matplotlib.rc_context(marks.STYLE)
def budget_figure(rows: Sequence[Trial], baselines: Sequence[Trial], out: Path, name: str = "budgets") -> list[Path]:
    """Draw accuracy over the paper's eight pairs of Fig. 5 (left) and in the plane of both budgets (right).

    Returns:
        `budgets.png` and `budgets.svg`; nothing if no trial ended.
    """
    trials = marks.finished(rows)
    if not trials:
        return []
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.75, 1])
    axis = BudgetAxis.of(rows)
    chosen = best(rows)
    _draw_budgets(left, trials, marks.references(rows, baselines), axis, chosen)
    _draw_plane(figure, right, trials, axis, chosen)
    marks.legend(figure, 4)
    return marks.save(figure, out, name)


def _draw_budgets(
    axes: Axes, trials: Sequence[Trial], baselines: Sequence[Trial], axis: BudgetAxis, chosen: Trial | None
) -> None:
    def position(row: Trial) -> float:
        return axis.position(pair(row)[0])

    if axis.companions:  # pairs of budgets that grow together: a proposal is none, and stands in the plane of both
        trials = [row for row in trials if row.source == "paper"]
        chosen = chosen if chosen is not None and chosen.source == "paper" else None
    marks.draw_trials(axes, trials, position)
    _ring(axes, chosen, position, _shown)
    _frame(axes, trials, baselines, chosen)
    # A trial that was stopped early is low because it trained little, which says nothing about its budget.
    full = sorted((row for row in trials if row.source == "paper" and row.status == "done"), key=position)
    verdict = _shade(axes, [(position(row), height) for row in full if (height := _shown(row)) is not None])
    axes.set_title(f"Paper, Fig. 5: too small and too large both hurt.\n{verdict}", loc="left")
    axes.set_ylabel("accuracy (%)")
    marks.ticks(axes, range(len(axis.stops)), [axis.label(index) for index in range(len(axis.stops))])
    axes.set_xlim(-0.9, len(axis.stops) - 0.1)
    multiple = f"multiple of {value(EPSILON_INF, axis.reference)}, " if axis.reference else ""
    axes.set_xlabel(f"training budget ({multiple}ε∞{', ε2' if axis.companions else ''})")


def _shade(axes: Axes, curve: Sequence[tuple[float, float]]) -> str:
    """Shade the ends of the curve (position, accuracy) where budgets hurt, and say in a sentence what was found."""
    if len(curve) < 3:
        return "Here: too few of the paper's pairs ran to the end to tell."
    places = [place for place, _ in curve]
    small, large = hurting([height for _, height in curve])
    ends = []
    if small:
        ends.append(("too small", places[0] - 0.5, (places[small - 1] + places[small]) / 2))
    if large:
        ends.append(("too large", (places[-large - 1] + places[-large]) / 2, places[-1] + 0.5))
    for name, start, end in ends:
        axes.axvspan(start, end, color=marks.RING, alpha=0.10, lw=0, zorder=0)
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top", "fontsize": 9}
        axes.text((start + end) / 2, 0.985, name, color=marks.MUTED, **place)
    if not ends:
        return f"Here: all pairs lie within {MARGIN:g} points of the best."
    which = " and ".join(name for name, _, _ in ends)
    return f"Here: {which} cost{'' if len(ends) > 1 else 's'} more than {MARGIN:g} points (shaded)."


def _draw_plane(figure: Figure, axes: Axes, trials: Sequence[Trial], axis: BudgetAxis, chosen: Trial | None) -> None:
    """Draw both budgets of every trial, coloured by the validation accuracy on which the choice is based."""
    seen = [(row, height) for row in trials if (height := validated(row)) is not None and min(pair(row)) > 0]
    axes.set_title("Both budgets", loc="left")
    axes.set(xlabel="ε∞", ylabel="ε2")
    if not seen:
        return
    scale, below = marks.colour_scale([height for _, height in seen])
    colours = ScalarMappable(scale, "cividis")
    for (row, _), colour in zip(seen, colours.to_rgba(np.array([height for _, height in seen])), strict=True):
        shape, size = ("o", 70) if row.source == "paper" else ("*", 150)
        face: Any = colour if row.status == "done" else "white"
        faint: dict[str, Any] = {"alpha": 0.6} if row.at_rung else {}
        if row.status != "done":
            faint["label"] = "stopped at a rung" if row.at_rung else "stopped early"
        axes.scatter(*pair(row), s=size, marker=shape, facecolors=face, edgecolors=tuple(colour), zorder=3, **faint)
    _ring(axes, chosen, lambda row: pair(row)[0], lambda row: pair(row)[1])
    axes.set_xscale("log")
    stops = axis.stops[1::2] if len(axis.stops) > 6 else axis.stops  # there is no room for every label
    marks.ticks(axes, stops, [value(EPSILON_INF, stop) for stop in stops])
    places = [*axis.stops, *(pair(row)[0] for row, _ in seen)]
    axes.set_xlim(min(places) / 1.3, max(places) * 1.3)
    axes.margins(y=0.1)
    figure.colorbar(colours, ax=axes, label="best validation accuracy (%)", extend="min" if below else "neither")


def _shown(row: Trial) -> float | None:
    """Return the test accuracy, or the validation accuracy if no test was made, in percent."""
    height = tested(row)
    return validated(row) if height is None else height


def _frame(axes: Axes, trials: Sequence[Trial], baselines: Sequence[Trial], chosen: Trial | None) -> None:
    """Fit the y axis to the paper's points and the best trial, or to all full trials if the paper's are missing."""
    full = [row for row in trials if row.status == "done"]
    core = [row for row in full if row.source == "paper"]
    core = [*core, chosen] if core and chosen is not None else full
    marks.frame(axes, trials, core, (tested, validated), baselines)


def _ring(axes: Axes, chosen: Trial | None, x: marks.Position, y: marks.Accuracy) -> None:
    if chosen is not None and (height := y(chosen)) is not None:
        marks.ring(axes, x(chosen), height)


# -- One key, or several ---------------------------------------------------------------------------------------------


class Scale:
    """An x axis for the values of one key: numbers at their values, anything else as equally spaced names."""

    def __init__(self, rows: Sequence[Trial], key: str) -> None:
        self.key = key
        found = [row.params[key] for row in rows if row.params.get(key) is not None]
        self.numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
        self.names = [] if self.numeric else sorted({value(key, v) for v in found})
        self.log = bool(found) and self.numeric and key not in _LINEAR and 0 < 20 * min(found) <= max(found)

    def position(self, row: Trial) -> float:
        """Return the place of a row on the axis, or NaN, which is not drawn, if the row has no such value."""
        setting = row.params.get(self.key)
        if setting is None:
            return nan
        return float(setting) if self.numeric else float(self.names.index(value(self.key, setting)))

    def apply(self, axes: Axes, rows: Sequence[Trial]) -> None:
        """Label the axis."""
        axes.set_xlabel(header(self.key))
        if self.names:
            marks.ticks(axes, range(len(self.names)), self.names)
        elif self.log:
            axes.set_xscale("log")
            places = log_ticks(self.key, [self.position(row) for row in rows])
            marks.ticks(axes, places, [value(self.key, place) for place in places])


@matplotlib.rc_context(marks.STYLE)
def line_figure(
    rows: Sequence[Trial], key: str, baselines: Sequence[Trial], out: Path, name: str | None = None
) -> list[Path]:
    """Draw accuracy over one searched key; the files are named after the key unless `name` is given."""
    trials = [row for row in marks.finished(rows) if row.params.get(key) is not None]
    if not trials:
        return []
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    scale = Scale(trials, key)
    marks.draw_trials(axes, trials, scale.position)
    chosen = best(rows)
    _ring(axes, chosen, scale.position, _shown)
    _frame(axes, trials, marks.references(rows, baselines), chosen)
    setting, finding = _FINDINGS.get(key, (None, f"Accuracy over {header(key)}"))
    if setting is not None and scale.numeric:
        axes.axvline(
            setting, color=marks.MUTED, lw=1, ls=":", zorder=0, label=f"the paper's {header(key)} = {setting:g}"
        )
    axes.set_title(finding, loc="left")
    axes.set_ylabel("accuracy (%)")
    scale.apply(axes, trials)
    marks.legend(figure, 3)
    return marks.save(figure, out, name or key.rsplit(".", 1)[-1])


@matplotlib.rc_context(marks.STYLE)
def joint_figure(rows: Sequence[Trial], keys: Sequence[str], out: Path, name: str = "joint") -> list[Path]:
    """Draw validation accuracy over each of several keys that were searched together, one panel per key."""
    trials = [row for row in marks.finished(rows) if validated(row) is not None]
    if not trials or not keys:
        return []
    lines = (len(keys) + 1) // 2
    figure = Figure(figsize=(10, 0.8 + 3 * lines), layout="constrained")
    chosen = best(rows)
    panels = list(figure.subplots(lines, 2, sharey=True, squeeze=False).flat)
    for axes, key in zip(panels, keys, strict=False):
        here = [row for row in trials if row.params.get(key) is not None]
        scale = Scale(here, key)
        marks.draw_marks(axes, here, scale.position, validated)
        _ring(axes, chosen, scale.position, validated)
        scale.apply(axes, here)
        marks.frame(axes, trials, [row for row in trials if row.status == "done"], [validated])
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    for axes in panels[::2]:
        axes.set_ylabel("best validation accuracy (%)")
    panels[0].set_title(f"{len(trials)} trials, each in every panel", loc="left")
    marks.legend(figure, 4)
    return marks.save(figure, out, name)
