"""Who is at work: one driver at a time per sweep, which another process can ask to stop, and one run at a cell."""

from __future__ import annotations

import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erat.errors import UserError
from erat.files import write_atomic
from erat.locks import StillHeldError, held, is_held, take
from erat.records import read_words
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace, move_aside

LOOK_SECONDS = 1.0
BEAT_SECONDS = 5.0
LOST_SECONDS = 30.0  # after so long a run on another machine counts as dead


@contextmanager
def driving(workspace: Workspace, name: str) -> Iterator[None]:
    """Hold a sweep while the block runs. Asked to stop, the process is interrupted as by Ctrl-C.

    A killed driver's hold ends with it.

    Raises:
        UserError: another process drives it.
        KeyboardInterrupt: it was asked to stop.
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
                # What a shell starts in the background ignores Ctrl-C's signal, but not this one.
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
    """Whether some process drives this sweep now."""
    return is_held(_lock(workspace, name))


def ask_to_stop(workspace: Workspace, name: str) -> None:
    """Ask the driver of a sweep to stop as if by Ctrl-C.

    Raises:
        UserError: nobody drives it.
    """
    if not is_driven(workspace, name):
        raise UserError(f"nothing runs under {name!r}; status {name} says how it stands")
    write_atomic(_stop_request_file(workspace, name), b"")


@contextmanager
def at_work(run: RunDirectory) -> Iterator[None]:
    """Hold a run's folder, which another process waits for, and say every few seconds that this one is alive."""
    with held(run.lock, patience=None):
        over, beat = threading.Event(), run.heartbeat
        write_atomic(beat, platform.node().encode())

        def go_on() -> None:
            while not over.wait(BEAT_SECONDS):
                with suppress(OSError):
                    beat.touch()

        heart = threading.Thread(target=go_on, daemon=True)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()
            beat.unlink(missing_ok=True)


def is_running(run: RunDirectory) -> bool:
    """Whether some process is at this run now: it holds the folder, or says so from another machine."""
    if is_held(run.lock):
        return True
    # Where a folder is shared between machines its lock need not be.
    age = heard(run)
    return age is not None and age < LOST_SECONDS and read_words(run.heartbeat) not in (None, platform.node())


def heard(run: RunDirectory) -> float | None:
    """Seconds since the process at this run last said that it is alive; none where it never did, or has ended."""
    try:
        age = time.time() - run.heartbeat.stat().st_mtime
    except OSError:
        return None
    return max(0.0, age) if age > -LOST_SECONDS else None  # of a time to come, beyond what clocks differ by


def _lock(workspace: Workspace, name: str) -> Path:
    return workspace.root / f".{name}.driver"


def _stop_request_file(workspace: Workspace, name: str) -> Path:
    return workspace.root / f".{name}.stop"
