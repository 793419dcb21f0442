"""Lock files: held while something is written, waited for with patience, and probed without a trace.

A lock is the kernel's, so it ends with the process that holds it: a file that is left behind locks nobody out.
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

PATIENCE = 60.0  # seconds for what takes moments
SAY_SECONDS = 10.0  # of waiting, until it is said for whom


class StillHeldError(UserError):
    """Another process holds the lock for longer than one waits for it."""


@contextmanager
def held(path: Path, patience: float | None = PATIENCE) -> Iterator[None]:
    """Hold a lock file while the block runs, after waiting for whoever holds it now.

    Args:
        patience: seconds to wait; none: as long as the holder is at work, which may be hours.

    Raises:
        StillHeldError: another process holds it for longer, or is suspended while it does.
        UserError: it cannot be locked.
        OSError: its folder is full, read-only or closed.
    """
    lock = take(path, patience)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether some process of this machine holds a lock file. Nothing is made or changed."""
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
    """Hold a lock file until what this returns is released; as `held`."""
    lock, began, said = FileLock(path), time.monotonic(), False
    while True:
        waited = time.monotonic() - began
        left = SAY_SECONDS if patience is None else max(0.0, patience - waited)
        try:
            lock.acquire(timeout=min(SAY_SECONDS, left))
            return lock
        except Timeout:
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
    """Return the process that holds a lock file, where the kernel tells."""
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
    """Return a process as a person knows it."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        command = ""
    if process is None:
        return "another process"
    return f"process {process}" + (f" ({shown(command, 60)[1:-1]})" if command else "")


def _is_stopped(process: int) -> bool:
    """Whether a process is suspended (Ctrl-Z, SIGSTOP), and so will not let go by itself."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
