"""Everything that a run needs to go on to the same bits, written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from erat.errors import UserError

FULL_BYTES = 2**20  # a disk with less than this free is full


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` in one move: a reader, or a crash, never sees half of it."""
    with _replacing(path) as file:
        file.write(data)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, in one move as well."""
    try:
        with _replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:
        # What torch says of a write that fails does not tell that the disk is full.
        if shutil.disk_usage(path.parent).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole and on the disk; a failure leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this thread alone: a driver may fetch the same file in two.
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote. Weights only: no code in the file is run.

    Raises:
        UserError: the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}): delete it to start this run anew") from error
    return state
