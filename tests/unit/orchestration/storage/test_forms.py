"""Tests that stored files are read with suspicion: any content gives a value of the form or a one-line error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from erat.records import DamagedError, read_bytes, read_json, read_rows, read_words
from orchestration.storage.forms import EPOCH_ROW, EVENTS, PROGRESS, RESULT

NUMBERS = TypeAdapter(dict[str, float])
FOREIGN = [
    b"",
    b"5",
    b"null",
    b"[]",
    b"{}",
    b'"words"',
    b'{"event": "sweep"}',
    b"NaN",
    b"1e999",
    b"1" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff\xfe\x00",
    "é".encode("latin-1"),
    b"\0" * 100,
    b"\xef\xbb\xbf{",
    b'{"event": "sweep", "name": "../out", "spec": {}, "trials": 1}',
]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("form", [EVENTS, RESULT, EPOCH_ROW, PROGRESS], ids=["event", "result", "epoch", "progress"])
def test_a_foreign_value_is_refused_in_one_line(content: bytes, form: TypeAdapter[Any], tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    if content == b"{}" and form is RESULT:
        pytest.skip("a result of whose fields none is there yet")
    if form is RESULT and content.startswith(b'{"event"'):
        pytest.skip("fields of later versions stay")
    with pytest.raises(DamagedError) as caught:
        read_json(file, form)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_windows_line_ends_are_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}\r\n')
    assert read_rows(file, NUMBERS) == ([{"a": 1.0}, {"a": 2.0}], None)


def test_the_first_damaged_line_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(b'{"a": 1}\n5\n{"a": "x"}\n{"a": 2}')
    rows, damage = read_rows(file, NUMBERS)
    assert rows == [{"a": 1.0}, {"a": 2.0}]
    assert damage == "line 2: input should be an object, got 5"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DamagedError, match="not a regular file"):
            read_bytes(path)
    with pytest.raises(OSError, match="symbolic links"):
        read_bytes(tmp_path / "loop")
    assert read_words(tmp_path / "pipe") is None
    assert read_words(tmp_path / "loop") is None


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    with file.open("wb") as opened:
        opened.truncate(2**36)  # a sparse file
    with pytest.raises(DamagedError, match="larger than 1,000 bytes"):
        read_json(file, NUMBERS, most=1000)
    assert read_words(file, most=10) == "\0" * 10


def test_the_end_of_a_text_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_bytes(b"x" * 100_000 + b"\xff end")
    words = read_words(file)
    assert words is not None
    assert words.endswith("x\ufffd end")
    assert len(words) <= 2**16


def test_numbers_out_of_range_are_refused() -> None:
    row = {"epoch": 1, "val_accuracy": 0.5, "test_accuracy": 0.5, "epoch_seconds": 1.0}
    EPOCH_ROW.validate_json(json.dumps(row))
    for key, value in [("val_accuracy", 1.5), ("test_accuracy", float("nan")), ("epoch", 0), ("epoch", True)]:
        with pytest.raises(ValueError, match=key):
            EPOCH_ROW.validate_json(json.dumps(row | {key: value}))
