"""Reads stored files without trusting them: a file must be regular, of bounded size, UTF-8, and of the expected form.

The caller states what a file must hold by a pydantic `TypeAdapter`; anything else is a `DamagedError` of one line.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from erat.errors import shown

MOST_BYTES = 64 * 2**20  # bytes of one JSON file or of a file of lines
MOST_WORDS = 2**16  # bytes of a text for a person
_FLAGS = {"rb": os.O_RDONLY, "a+b": os.O_RDWR | os.O_CREAT | os.O_APPEND}
T = TypeVar("T")


class DamagedError(ValueError):
    """A stored file does not hold what it must; the message gives the reason, without the name of the file."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        DamagedError: the file is a folder, a pipe or a device, or is too large.
        OSError: the file is missing or cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DamagedError(f"it is larger than {most:,} bytes")
    return content


def open_regular(path: Path, mode: str = "rb") -> BinaryIO:
    """Open a regular file for bytes; refuse devices, and pipes, which would wait for their other end.

    Args:
        mode: "rb" to read, "a+b" to read and append.

    Raises:
        DamagedError: it is no regular file.
        OSError: the file is missing or cannot be opened.
    """
    try:
        descriptor = os.open(path, _FLAGS[mode] | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except IsADirectoryError:  # a folder opened for writing; one opened for reading is refused below
        raise DamagedError("it is not a regular file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError("it is not a regular file")
    return cast(BinaryIO, os.fdopen(descriptor, mode))


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file; it is on the disk when this returns. If the disk is full, no part of the line is left.

    If a crash has left an incomplete last line, a line end comes first, so that the new line is not appended to it.

    Raises:
        DamagedError: it is no regular file.
        OSError: the line cannot be written; the error has the name of the file.
    """
    with open_regular(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        rest = memoryview(line + b"\n")
        try:
            while rest:  # written directly, because the file object's buffer would try once more when it is closed
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
        except OSError as error:
            os.ftruncate(file.fileno(), end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def read_json(path: Path, form: TypeAdapter[T], most: int = MOST_BYTES) -> T:
    """Read one JSON value of the given form.

    Raises:
        DamagedError: the file holds something else; the message gives the reason.
        OSError: the file is missing or cannot be read.
    """
    return parse(read_bytes(path, most), form)


def read_rows(path: Path, form: TypeAdapter[T], most: int = MOST_BYTES) -> tuple[list[T], str | None]:
    """Read the lines of a file that are JSON values of the given form; other lines are skipped.

    Returns:
        (the values, what is wrong with the first other line or none).

    Raises:
        OSError: the file is missing or cannot be read.
    """
    rows: list[T] = []
    damage = None
    try:
        lines = read_bytes(path, most).split(b"\n")
    except DamagedError as error:
        return rows, str(error)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(parse(line, form))
            except DamagedError as error:
                damage = damage or f"line {number}: {error}"
    return rows, damage


def parse(content: bytes, form: TypeAdapter[T]) -> T:
    """Return the JSON value in `content`, which must be of the given form.

    Raises:
        DamagedError: it is something else; the message gives the reason in one line.
    """
    try:
        return form.validate_json(content)
    except ValidationError as error:
        raise DamagedError(why(error)) from None


def why(error: ValidationError) -> str:
    """Return the first thing that is wrong as one line: its place, what is expected, and what is there."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))[:80]
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"].startswith("union_tag"):
        message = f"{first['ctx']['discriminator']} is none that is known"
    got = "" if first["type"] in ("json_invalid", "missing") else f", got {shown(first['input'], 60)}"
    return f"{place}: {message}{got}" if place else f"{message}{got}"


def read_words(path: Path, most: int = MOST_WORDS) -> str | None:
    """Return the end of a text for a person, at most `most` bytes; bytes that are not UTF-8 become replacement marks.

    The result is None if the file is missing or cannot be read.
    """
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return str(file.read(most).decode("utf-8", "replace"))
    except (OSError, DamagedError):
        return None
