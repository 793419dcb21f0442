"""Tests that cells which a spreadsheet would execute are written as text, and are read back unchanged."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erat.data.listing import list_images
from erat.data.spreadsheets import csv_text, guarded, unguarded


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_a_formula_is_text(start: str) -> None:
    assert guarded(f'{start}HYPERLINK("http://x")').startswith("'")


@pytest.mark.parametrize("value", ["cat", "'tis", "'", "", "a=b", "-0.5", "+3", "1e-9", -0.5, 3, None, " =x"])
def test_all_else_is_left_alone(value: object) -> None:
    assert guarded(value) == value


@given(st.text())
@example("'=x")
@example("''=x")
@example("'")
@example("''")
@example("'-5")
@example("\r\n=1")
def test_every_text_comes_back(text: str) -> None:
    assert unguarded(guarded(text)) == text
    text = text.replace("\0", "")  # the csv module of Python 3.11 reads this character, older ones do not
    assert [unguarded(row[0]) for row in csv.reader(io.StringIO(csv_text([[text, "x"]]), newline=""))] == [text]


words = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(str.strip).filter(bool)
)


@given(names=st.lists(words, min_size=2, max_size=5, unique=True), label=words)
@example(names=["=a", "'=a"], label='=HYPERLINK("http://x")')
def test_our_lists_are_read_back_as_they_were(names: list[str], label: str) -> None:
    rows = [["path", "label", "part"], *([name, f"{label}{k % 2}", ""] for k, name in enumerate(names))]
    with TemporaryDirectory() as folder:
        table = Path(folder) / "cleaned.csv"
        table.write_bytes(csv_text(rows).encode())
        items = list_images(table).items
    assert [(item.name, item.label) for item in items] == [(row[0], row[1]) for row in rows[1:]]
