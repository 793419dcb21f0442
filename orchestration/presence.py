"""One driver at a time per sweep, and how another process asks it to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from erat.engine.checkpoint import write_atomic
from erat.errors import UserError
from orchestration.home import Home

LOOK_SECONDS = 1.0


@contextmanager
def driving(home: Home, name: str) -> Iterator[None]:
    """Hold a sweep while the block runs. Asked to stop, the process is interrupted as by Ctrl-C.

    A killed driver's hold ends with it.

    Raises:
        UserError: another process drives it.
        KeyboardInterrupt: it was asked to stop.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(_lock(home, name), timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"{name} is running already: status {name} --watch shows it, cancel {name} stops it") from None
    over, wish = threading.Event(), _wish(home, name)
    wish.unlink(missing_ok=True)

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            if wish.exists():
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
        wish.unlink(missing_ok=True)
        lock.release()


def is_driven(home: Home, name: str) -> bool:
    """Whether some process drives this sweep now."""
    try:
        with FileLock(_lock(home, name), timeout=0):
            return False
    except Timeout:
        return True


def ask_to_stop(home: Home, name: str) -> None:
    """Ask the driver of a sweep to stop as if by Ctrl-C.

    Raises:
        UserError: nobody drives it.
    """
    if not is_driven(home, name):
        raise UserError(f"nothing runs under {name!r}; status {name} says how it stands")
    write_atomic(_wish(home, name), b"")


def _lock(home: Home, name: str) -> Path:
    return home.root / f".{name}.driver"


def _wish(home: Home, name: str) -> Path:
    return home.root / f".{name}.stop"
