"""Writes files atomically: a crash leaves the old file or the new one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically: no reader sees a part of it, and no crash leaves one."""
    with _replacing(path) as file:
        file.write(data)


def previous(path: Path) -> Path:
    """Return the path at which a writer that keeps previous files puts the old file of `path`."""
    return path.with_name(f"previous-{path.name}")


@contextmanager
def _replacing(path: Path, keep_previous: bool = False) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` once it is complete and on the disk; after a failure, `path` is unchanged.

    Args:
        keep_previous: whether to keep the old file (see `previous`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name includes the thread, because a driver may fetch the same file in two threads.
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous(path))  # a crash after this line leaves the previous file, which is found
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
