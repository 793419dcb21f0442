"""Draws what a search says about its settings, from the trials: importance, parallel coordinates, contours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestration.report import marks, svg
from orchestration.report.figures import sweep_figure
from orchestration.report.notation import header, validated, value
from orchestration.report.search_svg import pareto_front, rung_curves
from orchestration.report.summary import listed
from orchestration.study.trial import Trial

MOST_PALE = 500  # lines of trials that were stopped at a rung
_AT_RUNGS = "; a dashed one was stopped at a rung, and has the accuracy that it had there"
ENOUGH = 6  # number of trials from which the figures say more than the table
Ranges = Mapping[str, BaseDistribution]


def search_figures(name: str, rows: Sequence[Trial], ranges: Ranges, pareto: bool = False) -> list[tuple[str, str]]:
    """Return (caption, SVG) of every figure for which there are enough finished trials.

    Args:
        name: name of the space.
        rows: the trials.
        ranges: dotted key -> Optuna's distribution.
        pareto: whether the search has two objectives.
    """
    found = [drawn for drawn in (pareto_front(rows) if pareto else None, rung_curves(rows)) if drawn is not None]
    searched, baselines = ([row for row in rows if (row.source == "baseline") is kind] for kind in (False, True))
    with TemporaryDirectory() as folder:
        for path in sweep_figure(name, searched, baselines, Path(folder)):
            if path.suffix == ".svg":
                found.append(("Accuracy over the searched settings", inlined(path.read_text(), "sweep")))
    ended = [row for row in marks.finished(searched) if validated(row) is not None]
    trials = [row for row in ended if row.status == "done"]
    at_rungs = sorted((row for row in ended if row.at_rung), key=lambda row: -(row.best_val_accuracy or 0.0))
    at_rungs = at_rungs[:MOST_PALE]
    if len(trials) + len(at_rungs) < ENOUGH or not any(_settings([*trials, *at_rungs], key) for key in ranges):
        return found
    place = len(found)
    words = "Each line is a trial, through its settings to its validation accuracy"
    found.append((words + (_AT_RUNGS if at_rungs else ""), _parallel([*trials, *at_rungs], ranges)))
    ranges = {key: range_ for key, range_ in ranges.items() if _settings(trials, key)}
    if len(trials) < ENOUGH or not ranges:
        return found
    shares = importances(trials, ranges)
    if shares:
        which = "each setting" if len(shares) == len(ranges) else "the settings that every trial has"
        words = f"Importance of {which} for validation accuracy (fANOVA, Optuna)"
        found.insert(place, (words, svg.importance({header(key): share for key, share in shares.items()})))
    numbers = [key for key in shares if not isinstance(ranges[key], CategoricalDistribution)]
    if len(numbers) > 1:
        first, second = numbers[:2]
        words = f"Validation accuracy over {header(first)} and {header(second)}"
        found.append((words, _contour(trials, first, second, ranges)))
    return found


def _settings(trials: Sequence[Trial], key: str) -> list[Any]:
    """Return the values of a key in the trials that have it."""
    return [row.params[key] for row in trials if row.params.get(key) is not None]


def _is_log(range_: BaseDistribution, settings: Iterable[float]) -> bool:
    return isinstance(range_, FloatDistribution | IntDistribution) and range_.log and min(settings) > 0


def _widened(range_: BaseDistribution, settings: Sequence[Any]) -> BaseDistribution:
    """Return the range, widened to contain the paper's points too."""
    if isinstance(range_, CategoricalDistribution):
        return CategoricalDistribution(list(dict.fromkeys([*range_.choices, *settings])))
    assert isinstance(range_, FloatDistribution | IntDistribution), "parameters are of these kinds"
    low, high = min(range_.low, *settings), max(range_.high, *settings)
    if isinstance(range_, IntDistribution):
        return IntDistribution(int(low), int(high), log=_is_log(range_, [low]))
    return FloatDistribution(low, high, log=_is_log(range_, [low]))


def study_of(trials: Sequence[Trial], ranges: Ranges) -> optuna.Study:
    """Return the trials as an Optuna study; ranges are widened to contain the paper's points."""
    wide = {key: _widened(range_, _settings(trials, key)) for key, range_ in ranges.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for row in trials:
        params = {key: row.params[key] for key in ranges}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict(wide), value=float(row.best_val_accuracy or 0.0)
            )
        )
    return study


def importances(trials: Sequence[Trial], ranges: Ranges) -> dict[str, float]:
    """Return the importance of each key that every trial has, as shares in descending order.

    It is empty if there are fewer than two such keys, or if all accuracies are equal.
    """
    shared = {key: range_ for key, range_ in ranges.items() if len(_settings(trials, key)) == len(trials)}
    if len({row.best_val_accuracy for row in trials}) < 2 or len(shared) < 2:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study_of(trials, shared), evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(before)


def _parallel(trials: Sequence[Trial], ranges: Ranges) -> str:
    ranges = {key: range_ for key, range_ in ranges.items() if _settings(trials, key)}
    axes: dict[str, list[float | None]] = {}
    labels: dict[str, list[tuple[float, str]]] = {}
    for key, range_ in ranges.items():
        place_of, labels[header(key)] = _axis(key, range_, _settings(trials, key))
        axes[header(key)] = [None if (of := row.params.get(key)) is None else place_of(of) for row in trials]
    heights = [validated(row) or 0.0 for row in trials]
    scale_, below = marks.colour_scale(heights)  # one collapsed trial must not squeeze the others together
    low, high = float(scale_.vmin or 0), max(heights)
    places = [max(height - low, 0.0) / ((high - low) or 1.0) for height in heights]
    axes["validation"] = list(places)
    labels["validation"] = [(0.0, f"{'≤ ' if below else ''}{low:.1f} %"), (1.0, f"{high:.1f} %")]
    faint = [row.at_rung for row in trials]
    rungs = listed(sorted({row.epoch for row in trials if row.at_rung}))
    return svg.parallel(axes, labels, places, faint, f"stopped at rung {rungs}" if rungs else "")


def _axis(
    key: str, range_: BaseDistribution, settings: Sequence[Any]
) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Return a map from a value to its place in [0, 1] on the axis of the key, and the labels of the axis.

    Choices keep their order; numbers lie between the smallest and the largest setting.
    """
    if isinstance(range_, CategoricalDistribution):
        names = [choice for choice in range_.choices if choice in settings]
        steps = max(len(names) - 1, 1)
        return lambda of: names.index(of) / steps, [(i / steps, value(key, name)) for i, name in enumerate(names)]
    low, high = min(settings), max(settings)
    scale = math.log if _is_log(range_, settings) else float
    span = (scale(high) - scale(low)) or 1.0
    return lambda of: (scale(of) - scale(low)) / span, [(0.0, value(key, low)), (1.0, value(key, high))]


@matplotlib.rc_context(marks.STYLE)
def _contour(trials: Sequence[Trial], first: str, second: str, ranges: Ranges) -> str:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    # in the units of the settings, and scaled as on the axes, so that neighbours are those that the eye sees
    places, even = [], []
    for key, set_scale in ((first, axes.set_xscale), (second, axes.set_yscale)):
        settings = np.array([float(row.params[key]) for row in trials])
        log = _is_log(ranges[key], settings)
        drawn = np.log(settings) if log else settings
        places.append(settings)
        even.append((drawn - drawn.min()) / (np.ptp(drawn) or 1.0))
        if log:
            set_scale("log")
    heights = np.array([validated(row) or 0.0 for row in trials])
    scale, below = marks.colour_scale(list(heights))
    try:
        triangles = Triangulation(*even).triangles
        levels = np.linspace(float(scale.vmin or 0), float(scale.vmax or 1), 13)
        plane = Triangulation(places[0], places[1], triangles)
        filled = axes.tricontourf(plane, heights, levels=levels, cmap="cividis", extend="min" if below else "neither")
        figure.colorbar(filled, ax=axes, label="best validation accuracy (%)", format="%.1f")
    except (RuntimeError, ValueError):  # all trials lie on one line, so that there is no plane to colour
        pass
    axes.scatter(places[0], places[1], s=24, facecolors="#fdfdfd", edgecolors="#333333", linewidths=1, clip_on=False)
    axes.set(xlabel=header(first), ylabel=header(second))
    with TemporaryDirectory() as folder:
        _, path = marks.save(figure, Path(folder), "contour")
        return inlined(path.read_text(), "contour")


def inlined(text: str, prefix: str) -> str:
    """Adapt matplotlib's SVG to a page: without prolog and addresses, with prefixed ids and the colours of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    view = re.search(r'viewBox="(\S+ \S+ (\S+) \S+)"', text)
    assert view is not None, "matplotlib writes one"
    head = f'<svg viewBox="{view[1]}" role="img" style="max-width:{1.3 * float(view[2]):.0f}px">'
    text = re.sub(r"<svg [^>]*>", head, text, count=1)
    text = text.replace("xlink:href", "href")
    for colour, name in (("#ffffff", "card"), ("#000000", "ink"), ("#595959", "muted")):
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name})", text)
    return text.strip()
