"""What a search says about its settings: importance, parallel coordinates, contours; from the rows alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from optuna.distributions import FloatDistribution

from orchestration.report import marks, svg
from orchestration.report.figures import sweep_figure
from orchestration.report.notation import header, validated, value
from orchestration.study.trial import Trial

ENOUGH = 6  # trials from which on the figures say more than the table
Ranges = Mapping[str, FloatDistribution]


def search_figures(name: str, rows: Sequence[Trial], ranges: Ranges) -> list[tuple[str, str]]:
    """(caption, SVG) of every figure that the finished trials are enough for."""
    found = []
    searched, baselines = ([row for row in rows if (row.source == "baseline") is kind] for kind in (False, True))
    with TemporaryDirectory() as folder:
        for path in sweep_figure(name, searched, baselines, Path(folder)):
            if path.suffix == ".svg":
                found.append(("Accuracy over the searched settings", inlined(path.read_text(), "sweep")))
    trials = [row for row in searched if row.status == "done" and validated(row) is not None]
    trials = [row for row in trials if all(row.params.get(key) is not None for key in ranges)]
    if len(trials) < ENOUGH or not ranges:
        return found
    found.append(("Each line is a trial, through its settings to its validation accuracy", _parallel(trials, ranges)))
    if len(ranges) > 1:
        shares = importances(trials, ranges)
        if shares:
            words = "Importance of each setting for validation accuracy (fANOVA, Optuna)"
            found.insert(1, (words, svg.importance({header(key): share for key, share in shares.items()})))
            first, second = list(shares)[:2]
            found.append(
                (
                    f"Validation accuracy over {header(first)} and {header(second)}",
                    _contour(trials, first, second, ranges),
                )
            )
    return found


def study_of(trials: Sequence[Trial], ranges: Ranges) -> optuna.Study:
    """The trials as Optuna's own; a range is widened to hold the paper's points."""
    wide = {}
    for key, range_ in ranges.items():
        settings = [float(row.params[key]) for row in trials]
        log = range_.log and min(settings) > 0
        wide[key] = FloatDistribution(min(range_.low, *settings), max(range_.high, *settings), log=log)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for row in trials:
        params = {key: float(row.params[key]) for key in ranges}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict(wide), value=float(row.best_val_accuracy or 0.0)
            )
        )
    return study


def importances(trials: Sequence[Trial], ranges: Ranges) -> dict[str, float]:
    """Key -> share, largest first; empty where all accuracies are alike."""
    if len({row.best_val_accuracy for row in trials}) < 2:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study_of(trials, ranges), evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(before)


def _parallel(trials: Sequence[Trial], ranges: Ranges) -> str:
    axes: dict[str, list[float]] = {}
    labels: dict[str, tuple[str, str]] = {}
    for key, range_ in ranges.items():
        settings = [float(row.params[key]) for row in trials]
        low, high = min(settings), max(settings)
        scale = math.log if range_.log and low > 0 else float
        span = (scale(high) - scale(low)) or 1.0
        axes[header(key)] = [(scale(setting) - scale(low)) / span for setting in settings]
        labels[header(key)] = (value(key, low), value(key, high))
    heights = [validated(row) or 0.0 for row in trials]
    scale_, below = marks.colour_scale(heights)  # one collapsed trial must not press the others together
    low, high = float(scale_.vmin or 0), max(heights)
    places = [max(height - low, 0.0) / ((high - low) or 1.0) for height in heights]
    axes["validation"], labels["validation"] = places, (f"{'≤ ' if below else ''}{low:.1f} %", f"{high:.1f} %")
    return svg.parallel(axes, labels, places)


@matplotlib.rc_context(marks.STYLE)
def _contour(trials: Sequence[Trial], first: str, second: str, ranges: Ranges) -> str:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    places, even = [], []  # in the settings' units, and as they lie on the axes: neighbours are neighbours to the eye
    for key, set_scale in ((first, axes.set_xscale), (second, axes.set_yscale)):
        settings = np.array([float(row.params[key]) for row in trials])
        log = ranges[key].log and bool(settings.min() > 0)
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
    except (RuntimeError, ValueError):  # all trials on one line: there is no plane to colour
        pass
    axes.scatter(places[0], places[1], s=24, facecolors="#fdfdfd", edgecolors="#333333", linewidths=1, clip_on=False)
    axes.set(xlabel=header(first), ylabel=header(second))
    with TemporaryDirectory() as folder:
        _, path = marks.save(figure, Path(folder), "contour")
        return inlined(path.read_text(), "contour")


def inlined(text: str, prefix: str) -> str:
    """matplotlib's SVG for a page: no prolog and no addresses, ids of its own, the page's ink and ground."""
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
