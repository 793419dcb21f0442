"""Locks, heartbeats and leases: at most one process drives a study, and at most one executes a run.

A driver can be asked to stop by another process.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from erat.errors import UserError
from erat.files import write_atomic
from erat.locks import StillHeldError, held, is_held, take
from erat.records import read_words
from orchestration.run.directory import RunDirectory
from orchestration.storage.lease import is_leased, leased
from orchestration.storage.workspace import Workspace, move_aside

LOOK_SECONDS = 1.0
BEAT_SECONDS = 5.0
LOST_SECONDS = 30.0  # a run on another machine counts as dead after this long without a heartbeat


@contextmanager
def driving(workspace: Workspace, name: str) -> Iterator[None]:
    """Hold the lock of a study while the block runs, and interrupt this process as by Ctrl-C on a stop request.

    The lock of a driver that is killed is released by the operating system.

    Args:
        workspace: the workspace of the study.
        name: name of the study.

    Raises:
        UserError: Another process drives the study.
        KeyboardInterrupt: The driver was asked to stop.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    try:
        lock = take(_lock(workspace, name), patience=0)
    except StillHeldError:
        raise UserError(f"{name} is running already: status {name} --watch shows it, cancel {name} stops it") from None
    over, stop_request = threading.Event(), _stop_request_file(workspace, name)
    move_aside(stop_request, folder=False)
    stop_request.unlink(missing_ok=True)

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            if stop_request.exists():
                # A process that a shell starts in the background ignores SIGINT, the signal of Ctrl-C, but not SIGTERM.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        stop_request.unlink(missing_ok=True)
        lock.release()


def is_driven(workspace: Workspace, name: str) -> bool:
    """Return whether a process drives the study of this name now."""
    return is_held(_lock(workspace, name))


def ask_to_stop(workspace: Workspace, name: str) -> None:
    """Ask the driver of a study to stop as if by Ctrl-C.

    Raises:
        UserError: No process drives the study.
    """
    if not is_driven(workspace, name):
        raise UserError(f"nothing runs under {name!r}; status {name} says how it stands")
    write_atomic(_stop_request_file(workspace, name), b"")


@contextmanager
def at_work(run: RunDirectory, session: str = "") -> Iterator[RunDirectory]:
    """Hold a run while the block runs, and yield its directory as its holder writes it.

    The lock of its folder is held, and its heartbeat file touched every `BEAT_SECONDS` seconds; if the workspace has a
    storage, the lease of the run is held there too. If another process holds one of them, wait until it is released.

    Args:
        run: the directory of the run.
        session: as for `orchestration.storage.lease.Lease`.

    Raises:
        StillHeldError: The process that holds the lock is suspended, or gives no sign of life.
        StorageError: The storage cannot be read or written.
    """
    with held(run.lock, patience=None, sign=run.heartbeat, beat=BEAT_SECONDS):
        if run.workspace.storage is None:
            yield run
            return
        with leased(run.workspace.storage, run.cell, session) as lease:
            yield replace(run, lease=lease)


def is_running(run: RunDirectory) -> bool:
    """Return whether a process executes this run: its lock is held, or another machine sent a heartbeat recently.

    Over a storage, it counts that a worker has taken the run there, and is not known to have ended; see `is_leased`.
    """
    if is_held(run.lock):
        return True
    if run.workspace.storage is not None and is_leased(run.workspace.storage, run.cell):
        return True
    # A network file system may share files between machines but not their locks.
    age = heard(run)
    host = (read_words(run.heartbeat) or "").partition(" ")[0]
    return age is not None and age < LOST_SECONDS and host not in ("", platform.node())


def heard(run: RunDirectory) -> float | None:
    """Return the seconds since the last heartbeat of this run; None if there was none or the process has ended."""
    try:
        age = time.time() - run.heartbeat.stat().st_mtime
    except OSError:
        return None
    return max(0.0, age) if age > -LOST_SECONDS else None  # further in the future than clocks of machines differ


def _lock(workspace: Workspace, name: str) -> Path:
    return workspace.root / f".{name}.driver"


def _stop_request_file(workspace: Workspace, name: str) -> Path:
    return workspace.root / f".{name}.stop"
