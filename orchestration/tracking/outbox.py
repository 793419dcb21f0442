"""Calls to a server that may be away for a while: kept in order, on disk if need be, made once each."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from erat.config import content_digest
from erat.records import append_line, read_rows

# After a failure that took t seconds (a server that hangs), the next attempt waits this many times t: a sick server
# then costs at most a tenth of the driver's time. One that refuses at once is asked again at the very next call.
_REST = 9.0

Entry = tuple[str, list[Any]]  # the name of a call, and its arguments
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
MOST_SPOOL = 2**30  # bytes of a file of calls


class Outbox:
    """A queue of calls by name. The first that fails stops the queue, so that what is sent arrives in order.

    Args:
        call: makes one.
        hopeless: told the error of a call and how often that call has failed; true gives the call up.
        spool: keeps what waits until it is sent, beyond this process's end; none: in memory alone.
    """

    def __init__(
        self, call: Callable[[str, list[Any]], None], hopeless: Callable[[Exception, int], bool], spool: Spool | None
    ) -> None:
        self._call, self._hopeless, self._spool = call, hopeless, spool
        self._waiting: deque[Entry] = deque(spool.adopt() if spool else [])
        self._failures = 0  # of the first call in the queue
        self._away = False
        self._said: set[str] = set()
        self._not_before = 0.0

    def put(self, name: str, *arguments: Any) -> None:
        """Make a call after those that wait. It must be harmless to repeat: an answer may have been lost on its way."""
        entry = (name, list(arguments))
        self._waiting.append(entry)
        if time.monotonic() >= self._not_before:
            self.flush()
        if self._spool is not None and self._waiting:
            self._spool.append(entry)

    def flush(self) -> int:
        """Make the calls that wait. Returns how many still do."""
        while self._waiting:
            name, arguments = self._waiting[0]
            begun = time.monotonic()
            try:
                self._call(name, arguments)
            except Exception as error:
                self._failures += 1
                if not self._hopeless(error, self._failures):
                    self._not_before = time.monotonic() + _REST * (time.monotonic() - begun)
                    self._warn_away(error)
                    break
                self._warn_refused(name, error)
            else:
                self._away = False
            self._failures = 0
            self._waiting.popleft()
        if self._spool is not None and not self._waiting:
            self._spool.clear()
        return len(self._waiting)

    def _warn_away(self, error: Exception) -> None:
        """One warning per outage, not one per epoch."""
        if not self._away:
            _log().warning("MLflow does not answer (%s): entries are kept, and sent when it does", one_line(error))
        self._away = True

    def _warn_refused(self, name: str, error: Exception) -> None:
        """One warning per reason: a run deleted on MLflow's page refuses every epoch to come."""
        if (said := f"{name.strip('_').replace('_', ' ')}: {one_line(error)}") not in self._said:
            _log().warning("MLflow refused to %s; training goes on without it", said)
        self._said.add(said)


class Spool:
    """Calls that wait for one server, as lines of a file. It is gone once all of them are made.

    A process holds the file that it writes; the files of processes that have ended are adopted by the next one. All
    lines since the queue was last empty are there, those that were sent in between too: they are harmless to repeat.

    Args:
        folder: of all such files, in a workspace. What the calls name inside that workspace is found again when it
            was moved.
        server: whose calls these are.
        once: what the same server was called before.
    """

    def __init__(self, folder: Path, server: str, once: str | None = None) -> None:
        self._folder, self._server = folder, content_digest(server)
        self._once = self._server if once is None else content_digest(once)
        self._path = folder / f"{self._server}-{uuid.uuid4().hex}.jsonl"
        self._lock = FileLock(f"{self._path}.lock", timeout=0)

    def append(self, entry: Entry) -> None:
        """Keep a call, on the disk before this returns."""
        if not self._lock.is_locked:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        append_line(self._path, json.dumps(entry, default=self._plain).encode())

    def clear(self) -> None:
        """All calls are made."""
        if self._lock.is_locked:
            self._path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def adopt(self) -> list[Entry]:
        """The calls that ended processes left, oldest file first; they are this one's from now on."""
        adopted = []
        files = {path for server in (self._server, self._once) for path in self._folder.glob(f"{server}-*.jsonl")}
        for path in sorted(files, key=lambda path: path.lstat().st_mtime):
            lock = FileLock(f"{path}.lock", timeout=0)
            try:
                with lock:
                    entries, whole = self._read(path)
                    for entry in entries:
                        self.append(entry)
                    adopted += entries
                    if whole:
                        path.unlink(missing_ok=True)
                    else:
                        path.replace(path.with_suffix(".damaged"))  # for a person to look at
                    Path(lock.lock_file).unlink(missing_ok=True)
            except Timeout:
                continue  # its process lives
            except OSError as error:
                _log().warning(
                    "%s cannot be taken over now, and is not sent to MLflow: %s", path, error.strerror or error
                )
        return adopted

    def _read(self, path: Path) -> tuple[list[Entry], bool]:
        """Return the calls in a file, and whether these are all that it holds."""
        rows, damage = read_rows(path, ENTRY, MOST_SPOOL)
        if damage is not None:
            _log().warning("%s: what is not understood is not sent to MLflow (%s)", path, damage)
        # What follows the last whole line was torn by a crash: a call that nobody was told of.
        whole = damage is None or damage.startswith(f"line {len(rows) + 1}:")
        return [(name, [self._place(value) for value in arguments]) for name, arguments in rows], whole

    def _plain(self, value: Any) -> Any:
        if not isinstance(value, Path):
            return str(value)
        workspace = self._folder.parent.absolute()
        return {"path": str(value.relative_to(workspace) if value.is_relative_to(workspace) else value)}

    def _place(self, value: Any) -> Any:
        """A path again: inside this workspace if it was inside the workspace when it lay elsewhere."""
        if not (isinstance(value, dict) and value.keys() == {"path"} and isinstance(value["path"], str)):
            return value
        workspace, path = self._folder.parent, Path(value["path"])
        inside = [Path(*path.parts[place:]) for place, name in enumerate(path.parts) if name in ("cells", "reports")]
        moved = [workspace / part for part in inside if (workspace / part).is_dir()]
        return moved[-1] if moved else workspace / path


def one_line(error: BaseException) -> str:
    """What went wrong, at most 300 characters; for a refused connection, wrapped four times over, the innermost."""
    inner = error
    while cause := inner.__cause__ or inner.__context__:
        inner = cause
    lines = str(inner if isinstance(inner, OSError) else error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
