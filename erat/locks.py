"""Provides lock files, which are held while something is written and can be tested without changing them.

The kernel manages a lock, so the lock ends with the process that holds it: a file that is left behind locks nobody out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from erat.errors import UserError, is_storage_fault, shown

PATIENCE = 60.0  # seconds to wait for a lock that is usually held for moments
SAY_SECONDS = 10.0  # seconds of waiting before a warning names the process that holds the lock
LOOKED_AT_SECONDS = 10.0  # more patience with processes that only look whether a lock is held, which takes moments


class StillHeldError(UserError):
    """Another process has held the lock for longer than the caller waits, or is suspended while it holds it."""


@contextmanager
def held(path: Path, patience: float | None = PATIENCE) -> Iterator[None]:
    """Hold a lock file while the block runs, after waiting for any process that holds it now.

    Args:
        patience: seconds to wait; none: as long as the other process works, which may be hours.

    Raises:
        StillHeldError: another process holds it for longer, or is suspended while it holds it.
        UserError: the file cannot be locked.
        OSError: its folder is full, read-only or closed.
    """
    lock = take(path, patience)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether a process on this machine holds a lock file, without creating or changing anything."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(file)
    return False


def take(path: Path, patience: float | None = PATIENCE) -> BaseFileLock:
    """Take a lock file and return the lock, which the caller must release; see `held` for arguments and errors."""
    lock, began, said = FileLock(path), time.monotonic(), False
    while True:
        waited = time.monotonic() - began
        left = SAY_SECONDS if patience is None else max(0.0, patience - waited)
        try:
            lock.acquire(timeout=min(SAY_SECONDS, left))
            return lock
        except Timeout:
            # `is_held` shares a lock for a moment, for which nobody must be refused, however short the patience.
            if waited < (patience or 0.0) + LOOKED_AT_SECONDS and not is_held(path):
                time.sleep(0.001)
                continue
            holder = _holder(path)
            if left <= SAY_SECONDS and patience is not None:
                raise StillHeldError(
                    f"{_named(holder)} has held {path} for {patience:g} s: end it, or try later"
                ) from None
            if holder is not None and _is_stopped(holder):
                raise StillHeldError(
                    f"{_named(holder)} holds {path} and is suspended: let it go on, or end it"
                ) from None
            if not said:
                warnings.warn(f"waiting for {_named(holder)}, which holds {path}", stacklevel=3)
            said = True
        except OSError as error:
            if is_storage_fault(error):
                raise
            raise UserError(f"the lock {path} cannot be taken: {error.strerror or error}") from error


def _holder(path: Path) -> int | None:
    """Return the id of the process that holds a lock file, or none if the kernel does not tell."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    for words in map(str.split, locks.splitlines()):
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].endswith(f":{inode}") and words[4].isdigit():
            return int(words[4])
    return None


def _named(process: int | None) -> str:
    """Return a process's id and command line as text for a person."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        command = ""
    if process is None:
        return "another process"
    return f"process {process}" + (f" ({shown(command, 60)[1:-1]})" if command else "")


def _is_stopped(process: int) -> bool:
    """Return whether a process is suspended (Ctrl-Z, SIGSTOP), and so will not release a lock by itself."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
