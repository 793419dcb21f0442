"""Files written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` in one move: a reader, or a crash, never sees half of it."""
    with _replacing(path) as file:
        file.write(data)


def previous(path: Path) -> Path:
    """Where `save` keeps what was at `path` before."""
    return path.with_name(f"previous-{path.name}")


@contextmanager
def _replacing(path: Path, keep_previous: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole and on the disk; a failure leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this thread alone: a driver may fetch the same file in two.
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous(path))  # a crash after this line leaves the one before, which is found
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
