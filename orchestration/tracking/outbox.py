"""A queue of calls to a server that may be unreachable for a while.

The calls are made in order, and removed once they have succeeded. Those that wait are kept on disk if need be.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from erat.config import content_digest
from erat.records import append_line, read_rows
from orchestration.storage.background import Background

# After an attempt that failed after t seconds, the next one waits this many times t. A server that hangs then costs at
# most a tenth of the driver's time, and one that refuses immediately is tried again at the very next call.
_REST = 9.0
# In the background, calls that come within this time, in seconds, are made together.
_GATHER = 0.5
_CHUNK = 1000  # calls that are put together at a time

Entry = tuple[str, list[Any]]  # the name of a call, and its arguments
ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
MOST_SPOOL = 2**30  # bytes in a file of calls


class Outbox:
    """A queue of calls by name. The first call that fails blocks those after it, so that they arrive in order.

    The first argument of a call names the run that it is about. Calls about one run stay in order; of different runs,
    some overtake others where several are made as one.

    Args:
        call: makes the call of this name with these arguments.
        hopeless: whether to give a call up, given its error and the number of times that it has failed.
        spool: file that keeps the waiting calls even if this process ends. None: they are kept in memory only.
        merged: name of a call -> name of a call that does the work of several, whose arguments are the lists of theirs.
        lasting: returns a call in the form that is kept on disk, which another process can make.
    """

    def __init__(
        self,
        call: Callable[[str, list[Any]], None],
        hopeless: Callable[[Exception, int], bool],
        spool: Spool | None,
        merged: Mapping[str, str] | None = None,
        lasting: Callable[[Entry], Entry] = lambda entry: entry,
    ) -> None:
        self._call, self._hopeless, self._spool, self._merged = call, hopeless, spool, merged or {}
        self._lasting = lasting
        self._waiting: deque[Entry] = deque(spool.adopt() if spool else [])
        self._put: list[Entry] = []  # calls that were put and not tried yet
        self._then: list[Callable[[], None]] = []
        self._failures = 0  # how often the first call in the queue has failed
        self._away = False
        self._said: set[str] = set()
        self._not_before = 0.0
        self._background: Background | None = None
        self._before: Callable[[], None] | None = None
        self._incoming = threading.Lock()  # held while `_put` and `_then` change
        self._sending = threading.RLock()  # held while calls are made

    @property
    def waiting(self) -> list[Entry]:
        """Return the calls that were tried and wait, or were adopted from an ended process, in order."""
        return list(self._waiting)

    @contextmanager
    def in_background(self, before: Callable[[], None] | None = None) -> Iterator[None]:
        """Make the calls in a thread during the block; at its end, all of them have been tried.

        Args:
            before: called before calls are made.

        Raises:
            OSError: The calls that wait cannot be kept on disk.
        """
        self._before = before
        self._background = Background("tracker", self._deliver, gather=_GATHER)
        try:
            yield
        finally:
            thread, self._background = self._background, None
            thread.close()
            self._deliver()
            self._before = None

    def put(self, name: str, *arguments: Any) -> None:
        """Make a call after those that wait, or let it wait too if the server does not answer.

        The call must be harmless to repeat, because it is repeated if only the server's answer was lost.

        Raises:
            OSError: The call cannot be kept on disk. `in_background`, this may be the error of an earlier call.
        """
        self._take(self._put, (name, list(arguments)))

    def then(self, call: Callable[[], None]) -> None:
        """Call a function when every call that was put before has been made, or is kept on disk.

        Raises:
            OSError: As for `put`.
        """
        self._take(self._then, call)

    def _take(self, into: list[Any], what: Any) -> None:
        background = self._background
        if background is not None:
            background.check()
        with self._incoming:
            into.append(what)
        if background is not None:
            background.wake()
        else:
            self._deliver()

    def _deliver(self) -> None:
        """Try the calls that were put, keep on disk those that still wait, and call what waited for that."""
        with self._sending:
            with self._incoming:
                put, then = self._put, self._then
                self._put, self._then = [], []
            try:
                if self._before is not None and (put or then):
                    self._before()
                self._waiting.extend(put)
                if put and time.monotonic() >= self._not_before:
                    self._send()
                # What waits is a suffix of what was put, apart from calls that were made as one: harmless to repeat.
                if self._spool is not None and self._waiting and put:
                    self._spool.append(*map(self._lasting, put))
                put = []
                while then:
                    then[0]()
                    del then[0]
            finally:
                if put or then:
                    with self._incoming:
                        self._put, self._then = put + self._put, then + self._then

    def flush(self) -> int:
        """Make the calls that wait, and return the number of those that still wait."""
        with self._sending:
            self._deliver()
            self._send()
            return len(self._waiting)

    def _send(self) -> None:
        while self._waiting:
            groups = self._grouped([self._waiting.popleft() for _ in range(min(_CHUNK, len(self._waiting)))])
            made = 0
            try:
                for group in groups:
                    if not self._made(group):
                        return
                    made += 1
            finally:
                self._waiting.extendleft(reversed([entry for group in groups[made:] for entry in group]))
        if self._spool is not None:
            self._spool.clear()

    def _grouped(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        """Put calls that can be made as one together, without changing the order of the calls about one run."""
        groups: list[list[Entry]] = []
        open_groups: dict[str, list[Entry]] = {}  # run -> its last group, if more can be added
        for entry in entries:
            name, run = entry[0], str(entry[1][:1])
            if name in self._merged and run in open_groups and open_groups[run][0][0] == name:
                open_groups[run].append(entry)
                continue
            groups.append([entry])
            open_groups[run] = groups[-1]
        return groups

    def _made(self, group: list[Entry]) -> bool:
        """Make a call, or several as one. Return False if they are to wait, and True if they were made or given up."""
        name, arguments = group[0]
        if len(group) > 1:
            name, arguments = self._merged[name], [arguments for _, arguments in group]
        begun = time.monotonic()
        try:
            self._call(name, arguments)
        except Exception as error:
            self._failures += 1
            if not self._hopeless(error, self._failures):
                self._not_before = time.monotonic() + _REST * (time.monotonic() - begun)
                self._warn_away(error)
                return False
            self._failures = 0
            if len(group) > 1:  # one of them may be the reason
                return all(self._made([entry]) for entry in group)
            self._warn_refused(name, error)
            return True
        self._away, self._failures = False, 0
        return True

    def _warn_away(self, error: Exception) -> None:
        """Warn that the server does not answer: once per outage, not once per epoch."""
        if not self._away:
            _log().warning("MLflow does not answer (%s): entries are kept, and sent when it does", one_line(error))
        self._away = True

    def _warn_refused(self, name: str, error: Exception) -> None:
        """Warn that a call was refused: once per reason, as every later epoch of a run deleted in MLflow is refused."""
        if (said := f"{name.strip('_').replace('_', ' ')}: {one_line(error)}") not in self._said:
            _log().warning("MLflow refused to %s; training goes on without it", said)
        self._said.add(said)


class Spool:
    """Calls that wait for one server, as lines of a file, which is deleted once all of them are made.

    A process holds the lock of the file that it writes; the next process adopts the files of processes that have ended.
    The file has all calls since the queue was last empty, including those made since then: they are harmless to repeat.

    Args:
        folder: folder of all such files, in a workspace. Paths in the workspace that calls have as arguments stay valid
            when the workspace is moved.
        server: name or address of the server that the calls are for.
        once: earlier name or address of the same server, whose files are adopted too.
    """

    def __init__(self, folder: Path, server: str, once: str | None = None) -> None:
        self._folder, self._server = folder, content_digest(server)
        self._once = self._server if once is None else content_digest(once)
        self._path = folder / f"{self._server}-{uuid.uuid4().hex}.jsonl"
        self._lock = FileLock(f"{self._path}.lock", timeout=0, thread_local=False)  # of the process, not of a thread

    def append(self, *entries: Entry) -> None:
        """Append calls to the file, and return when they are on the disk, all after one wait for it."""
        if not entries:
            return
        if not self._lock.is_locked:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        append_line(self._path, "\n".join(json.dumps(entry, default=self._plain) for entry in entries).encode())

    def clear(self) -> None:
        """Delete the file, because all calls have been made."""
        if self._lock.is_locked:
            self._path.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def adopt(self) -> list[Entry]:
        """Move the calls that ended processes left to this process's file, and return them, oldest file first."""
        adopted = []
        files = {path for server in (self._server, self._once) for path in self._folder.glob(f"{server}-*.jsonl")}
        for path in sorted(files, key=lambda path: path.lstat().st_mtime):
            lock = FileLock(f"{path}.lock", timeout=0)
            try:
                with lock:
                    entries, whole = self._read(path)
                    self.append(*entries)
                    adopted += entries
                    if whole:
                        path.unlink(missing_ok=True)
                    else:
                        path.replace(path.with_suffix(".damaged"))  # kept so that the user can inspect it
                    Path(lock.lock_file).unlink(missing_ok=True)
            except Timeout:
                continue  # the process that writes this file is alive
            except OSError as error:
                _log().warning(
                    "%s cannot be taken over now, and is not sent to MLflow: %s", path, error.strerror or error
                )
        return adopted

    def _read(self, path: Path) -> tuple[list[Entry], bool]:
        """Return the calls in a file, and whether the file holds nothing else."""
        rows, damage = read_rows(path, ENTRY, MOST_SPOOL)
        if damage is not None:
            _log().warning("%s: what is not understood is not sent to MLflow (%s)", path, damage)
        # A damaged last line was cut off by a crash. Its call was never confirmed to the caller, so nothing is lost.
        whole = damage is None or damage.startswith(f"line {len(rows) + 1}:")
        return [(name, [self._place(value) for value in arguments]) for name, arguments in rows], whole

    def _plain(self, value: Any) -> Any:
        """Return a form that JSON can hold: of a path, relative to the workspace if it is inside; of the rest, text."""
        if not isinstance(value, Path):
            return str(value)
        workspace = self._folder.parent.absolute()
        return {"path": str(value.relative_to(workspace) if value.is_relative_to(workspace) else value)}

    def _place(self, value: Any) -> Any:
        """Turn what `_plain` made of a path into a path again; return any other value unchanged.

        A path that was inside this workspace before the workspace was moved is returned as a path inside it now.
        """
        if not (isinstance(value, dict) and value.keys() == {"path"} and isinstance(value["path"], str)):
            return value
        workspace, path = self._folder.parent, Path(value["path"])
        inside = [Path(*path.parts[place:]) for place, name in enumerate(path.parts) if name in ("cells", "reports")]
        moved = [workspace / part for part in inside if (workspace / part).is_dir()]
        return moved[-1] if moved else workspace / path


def one_line(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters.

    If the innermost cause is an `OSError`, such as a refused connection that was wrapped four times, that one is used.
    """
    inner = error
    while cause := inner.__cause__ or inner.__context__:
        inner = cause
    lines = str(inner if isinstance(inner, OSError) else error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
