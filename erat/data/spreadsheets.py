"""Writes CSV that no spreadsheet executes: a cell such as `=HYPERLINK(...)` gets an apostrophe, which readers drop.

This is OWASP's advice against "CSV injection". Reading restores every text that was written, apostrophes included.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# First characters, in ASCII and in full width, that make a spreadsheet read a cell as a formula unless it is a number.
_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def guarded(value: Any) -> Any:
    """Return what to write for `value`: an apostrophe before a text that would be a formula, else `value` unchanged.

    A text that begins with an apostrophe gets another one if `unguarded` would otherwise remove the first.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if _FORMULA.match(value) or _doubtful(value) else value


def unguarded(text: str) -> str:
    """Return the text from which `guarded` made `text`."""
    return text[1:] if _doubtful(text) else text


def _doubtful(text: str) -> bool:
    return text[:1] == "'" and bool(_FORMULA.match(text, 1) or text[1:2] == "'")


def csv_text(rows: Iterable[Sequence[Any]], line_end: str = "\r\n") -> str:
    """Return rows as CSV, each cell guarded."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows([guarded(cell) for cell in row] for row in rows)
    return text.getvalue()
