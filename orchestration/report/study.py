"""Chooses the figures of a search, and says which ones its trials do not carry."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.distributions import CategoricalDistribution

from orchestration.report import marks
from orchestration.report.importance import Importance, Ranges, spread
from orchestration.report.notation import validated
from orchestration.report.plots import budgets, confirmations, search, settings
from orchestration.report.plots.figure import Figure
from orchestration.study.trial import Trial

ENOUGH = 6  # number of trials from which lines through all settings say more than the table


def search_figures(rows: Sequence[Trial], ranges: Ranges, pareto: bool = False) -> tuple[list[Figure], list[str]]:
    """Return the figures of a search, and a sentence about each one that is left out because it would not hold.

    Args:
        rows: the trials.
        ranges: dotted key -> Optuna's distribution.
        pareto: whether the search has two objectives.
    """
    keys = list(ranges)
    drawn = [
        search.pareto(rows, keys) if pareto else None,
        confirmations.confirmations(rows),
        search.history(rows, keys),
        search.curves(rows),
        search.promotions(rows),
    ]
    figures, left_out = [figure for figure in drawn if figure is not None], []
    if not figures:
        return [], []
    figures += budgets.budgets(rows, ranges)
    full = [row for row in marks.finished(rows) if row.status == "done" and validated(row) is not None]
    found = spread(full, ranges)
    if isinstance(found, Importance):
        figures.append(settings.importance(found))
    else:
        left_out.append(found)
    figures += settings.slices(rows, ranges)
    if len(search.searched(rows)) >= ENOUGH and len(ranges) > 1:
        figures += filter(None, [settings.parallel(rows, ranges)])
    numbers = [
        key
        for key in (found.mean if isinstance(found, Importance) else ranges)
        if not isinstance(ranges[key], CategoricalDistribution) and len(settings.settings(full, key)) == len(full)
    ]
    if len(numbers) > 1 and full:
        plane = settings.surface(full, numbers[0], numbers[1], ranges)
        if isinstance(plane, Figure):
            figures.append(plane)
        else:
            left_out.append(plane)
    return figures, left_out
