"""Represents a table by its content, without a format; `orchestration.report.render` has one writer per format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal


class Mark(IntEnum):
    """The rank of a figure in its column; ties share a rank."""

    BEST = 0
    SECOND = 1


@dataclass(frozen=True, slots=True)
class Part:
    """Words that belong to a cell beside its value: a spread, a count, a second figure.

    Attributes:
        text: the words on a page.
        kind: the meaning ("spread", "n", "best", "paper", "why", "error"), or the status of a trial; sets the style.
        short: the words in a line of text; None: `text`; empty: nothing.
        after: words behind the footnotes, only on a page.
        title: an explanation that a page shows when the pointer rests on the words.
        notes: numbers of the footnotes, only on a page.
    """

    text: str
    kind: str = ""
    short: str | None = None
    after: str = ""
    title: str = ""
    notes: tuple[int, ...] = ()

    @property
    def line(self) -> str:
        """Return the words for a line of text."""
        return self.text if self.short is None else self.short


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell. A format leaves out what it cannot show: footnotes, links and shades appear only on a page.

    Attributes:
        value: a text or a number; None is an empty cell. CSV has the value itself, all other formats its text.
        mark: whether it is the best or the second best of its column.
        tail: parts that follow the value without a gap; each contains the space that it needs.
        beside: other figures, which stand below the value on a page and after it in a line.
        state: the status of a trial, if the cell shows it; sets the colour.
        notes: numbers of footnotes.
        runs: digests of the runs that the cell opens on a page.
        shade: a share in [0, 1] that a page shows as the colour of the cell.
    """

    value: object = None
    mark: Mark | None = None
    tail: tuple[Part, ...] = ()
    beside: tuple[Part, ...] = ()
    state: str = ""
    notes: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    shade: float | None = None

    @property
    def text(self) -> str:
        """Return the value as text, without its tail."""
        return "" if self.value is None else str(self.value)

    @property
    def figure(self) -> str:
        """Return the value with its tail."""
        return self.text + "".join(part.line for part in self.tail)

    @property
    def others(self) -> str:
        """Return the words for a line of text that stand beside the value."""
        return " ".join(part.line for part in self.beside if part.line)

    @property
    def line(self) -> str:
        """Return everything that a line of text shows of the cell."""
        return " ".join(words for words in (self.figure, self.others) if words)


@dataclass(frozen=True, slots=True)
class Column:
    """A column; the `kind` "mean" sets it apart from the others on a page."""

    heading: str
    align: Literal["left", "right"] = "right"
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of cells, or of plain values if nothing stands beside them.

    Attributes:
        values: the cells or plain values.
        chosen: whether the row is set in bold, as the best trial or a total is.
        state: the status of a trial, which sets the style of the whole row.
    """

    values: tuple[object, ...]
    chosen: bool = False
    state: str = ""

    @property
    def cells(self) -> list[Cell]:
        """Return the values as cells."""
        return [value if isinstance(value, Cell) else Cell(value) for value in self.values]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; every row has as many values as there are columns.

    Attributes:
        title: the name of the table.
        caption: how to read the table, in full sentences.
        notes: numbers of the title's footnotes.
        dense: whether the table has many columns of short words; a terminal then sets it close and breaks the headings
            into lines.

    Raises:
        ValueError: a row has another length.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str = ""
    caption: str = ""
    notes: tuple[int, ...] = ()
    dense: bool = False

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {number} must have {len(self.columns)} values, got {len(row.values)}")

    @classmethod
    def of(
        cls,
        headings: Iterable[str | Column],
        lines: Iterable[Row | Sequence[object]],
        *,
        title: str = "",
        caption: str = "",
        notes: Sequence[int] = (),
        dense: bool = False,
    ) -> Table:
        """Return the table of these lines; of columns given by name, the first is aligned left, the others right."""
        columns = (
            name if isinstance(name, Column) else Column(name, "right" if place else "left")
            for place, name in enumerate(headings)
        )
        rows = (line if isinstance(line, Row) else Row(tuple(line)) for line in lines)
        return cls(tuple(columns), tuple(rows), title, caption, tuple(notes), dense)

    def with_column(self, heading: str, value: object) -> Table:
        """Return the table with one more column, which has this value in every row."""
        rows = tuple(replace(row, values=(*row.values, value)) for row in self.rows)
        return replace(self, columns=(*self.columns, Column(heading)), rows=rows)
