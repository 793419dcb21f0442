"""Reads the figures of a page: their layers, their data, and the scales of their encodings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestration.report.plots.figure import Figure


def marks(figure: Figure) -> list[dict[str, Any]]:
    """Return all layers that draw something, in their order, each with its own data or that of the figure."""
    return list(_marks(dict(figure.spec), figure.spec.get("data")))


def _marks(part: dict[str, Any], data: Any) -> Iterator[dict[str, Any]]:
    data = part.get("data", data)
    if "mark" in part:
        yield part | {"data": data}
    for inner in part.get("layer", ()):
        yield from _marks(inner, data)


def rows_of(figure: Figure, mark: str) -> list[dict[str, Any]]:
    """Return the data of all layers with this kind of mark, one after another."""
    return [row for part in marks(figure) if part["mark"]["type"] == mark for row in part["data"]["values"]]


def scale(figure: Figure, mark: str, channel: str) -> dict[str, Any]:
    """Return the scale of a channel of the first layer with this kind of mark."""
    part = next(part for part in marks(figure) if part["mark"]["type"] == mark and channel in part["encoding"])
    found: dict[str, Any] = part["encoding"][channel]["scale"]
    return found
