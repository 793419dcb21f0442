"""Writes a table for a page, with all text escaped, and provides what the templates of the pages share."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestration.report.assets import asset as asset
from orchestration.report.colours import colour
from orchestration.report.notation import number_of
from orchestration.report.table import Table
from orchestration.terminal import harmless, program


def html(table: Table, kind: str = "", name: str = "") -> Markup:
    """Return the table as an HTML element.

    Args:
        table: the table.
        kind: the class of the element.
        name: the id of the element.
    """
    macros: Any = _environment().get_template("table.html").module
    return Markup(macros.table(table, kind, name))


def page(template: str, **content: Any) -> str:
    """Return a page made from one of the templates in `assets`, which import their tables from table.html."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestration.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["program"] = program
    environment.filters |= {"colour": colour, "number": number_of}
    return environment


def _shown(value: Any) -> Any:
    """Write out the control characters of any text that is not markup."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value
