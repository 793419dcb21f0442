"""Adds figures of one's own to the page of a study: registered under a name, drawn from the table of its trials."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from inspect import getdoc
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from erat.errors import UserError, shown
from erat.registration import register_part
from erat.registry import BrokenPartError, Registry
from orchestration.study.results import results_of
from orchestration.study.trial import Trial
from orchestration.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    Drawing = Callable[[DataFrame], Figure | None]

FIGURES: Registry[Drawing] = Registry("figure", {})


class OwnFigure(NamedTuple):
    """A figure as the page shows it."""

    caption: str
    source: str  # the picture as a data URI, so that its styles and identifiers stay apart from those of the page


def register_figure(name: str, part: Any = None, *, replace: bool = False) -> Any:
    """Register a function that draws a figure for the page of every study.

    Args:
        name: the name: lower-case letters, digits, "_" and "-", beginning with a letter, at most 60 characters.
        part: a function (results) -> `matplotlib.figure.Figure`, or None where it has nothing to show. `results` is
            a copy of what `Study.results` returns; the first line of the docstring is the caption. It may be given
            as "module:attribute". None: a decorator is returned.
        replace: replace a figure of yours with this name, for instance when a notebook cell is run again.

    Returns:
        The part as it was given, or the decorator.

    Raises:
        UserError: the name is taken or malformed, or the part is no function.
    """
    return register_part(FIGURES, name, part, _check, replace)


def own_figures(trials: Sequence[Trial]) -> list[OwnFigure]:
    """Draw the registered figures; one that fails is left out, with a warning."""
    if not FIGURES.names():
        return []
    drawn = FIGURES.each(partial(_drawn, results_of(trials)))
    return [figure for figure in drawn if figure is not None]


def _check(name: str, part: Any) -> Any:
    if not callable(part):
        raise UserError(f"figure {name!r} must be a function of a study's results, got {shown(part)}")
    return part


def _drawn(results: DataFrame, name: str) -> OwnFigure | None:
    draw, picture = FIGURES[name], BytesIO()
    try:
        figure = draw(results.copy())
        if figure is None:
            return None
        figure.savefig(picture, format="svg", metadata={"Date": None})
    except Exception as error:  # code of others may raise anything, and the page is worth having without it
        raise BrokenPartError(f"figure {name!r} cannot be drawn: {type(error).__name__}: {one_line(error)}") from error
    caption = (getdoc(draw) or name).partition("\n")[0]
    return OwnFigure(caption, "data:image/svg+xml;base64," + b64encode(picture.getvalue()).decode())
