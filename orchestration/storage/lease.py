"""Leases on a storage: one worker at a time writes the files of a run there, and each such attempt has a number.

A lease is the file `leases/RUN/NUMBER`. Whoever creates it holds the run until a higher number is there: it renews the
file every few seconds, and looks for a higher number before it writes anything else. A run is taken over, under the
next number, if its holder has ended, if its holder was not heard of for `LOST_SECONDS`, or if the session asks that
had begun the run and believes its worker dead. What was cut off from the storage meanwhile then finds that it has lost
the run, and stops. Nobody compares clocks to take a run over.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from erat.records import DamagedError, parse
from orchestration.storage.forms import LEASE, LeaseRecord

if TYPE_CHECKING:
    from orchestration.storage.shared import Storage

BEAT_SECONDS = 5.0
LOST_SECONDS = 30.0  # a holder that has not renewed its lease for so long has lost it to the first one that asks
POLL_SECONDS = 1.0
SILENT_SECONDS = 120.0  # so long, because here the clocks of the storage and of this machine are compared


class LeaseLostError(RuntimeError):
    """Another worker holds the run now: this one must write nothing more, and stops."""


class Lease:
    """A worker's right to write the files of one run; `leased` takes it, renews it and gives it back.

    Args:
        storage: the storage.
        run: the name of the run, its digest.
        session: who has the run executed, in words that only this one uses; "": nobody else may ask in its name.

    Attributes:
        attempt: the number of this attempt, from 1; 0 while the run is not held.
    """

    def __init__(self, storage: Storage, run: str, session: str = "") -> None:
        self._storage, self._folder, self._session = storage, f"leases/{run}", session
        self._token, self._beats = uuid.uuid4().hex, 0
        self._lost: str | None = None
        self.attempt = 0

    @property
    def lost(self) -> bool:
        """Return whether another worker is known to hold the run; `check` finds out whether that is so."""
        return self._lost is not None

    def take(self) -> None:
        """Hold the run, as soon as nobody else does; a warning says who is waited for.

        Raises:
            StorageError: the storage cannot be read or written.
        """
        seen: tuple[int, bytes | None] | None = None
        since, said = time.monotonic(), False
        while not self.attempt:
            number, content = found = self._latest()
            if found != seen:
                seen, since = found, time.monotonic()
            record = _record(content)
            if number == 0 or self._is_free(record) or time.monotonic() - since >= LOST_SECONDS:
                if self._storage.create(self._file(number + 1), self._content(number + 1)):
                    self.attempt = number + 1
                continue
            if not said:
                whom = f"{_holder(record)}, which holds this run (attempt {number})"
                warnings.warn(f"waiting for {whom} in {self._storage.place}", stacklevel=2)
                said = True
            time.sleep(POLL_SECONDS)
        for name in self._storage.names(self._folder):
            if name.isdigit() and int(name) < self.attempt:
                self._storage.remove(f"{self._folder}/{name}")

    def check(self) -> None:
        """Find out whether this worker still holds the run.

        Raises:
            LeaseLostError: another one holds it; the message says which.
            StorageError: the storage cannot be read.
        """
        if self._lost is None:
            number, content = self._latest()
            record = _record(content)
            # With the same number, another one has written where no write is conditional.
            if number > self.attempt or (number == self.attempt and record and record["token"] != self._token):
                now = f"{_holder(record)} holds this run now (attempt {number})"
                self._lost = f"{now}; this worker (attempt {self.attempt}) stops"
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def renew(self, *, over: bool = False) -> None:
        """Say that this worker is at work, or that it has ended. Raises as `check`."""
        self.check()
        self._beats += 1
        self._storage.write(self._file(self.attempt), self._content(self.attempt, over=over))

    def _is_free(self, record: LeaseRecord | None) -> bool:
        if record is None:  # it is being written, or damaged, which time will tell
            return False
        mine = bool(self._session) and record["session"] == self._session
        return record["over"] or mine or (record["machine"] == _machine() and not _lives(record))

    def _latest(self) -> tuple[int, bytes | None]:
        """Return the highest number, 0 if there is none, and the content of its file."""
        number = max((int(name) for name in self._storage.names(self._folder) if name.isdigit()), default=0)
        return number, self._storage.read(self._file(number)) if number else None

    def _file(self, number: int) -> str:
        return f"{self._folder}/{number:06d}"

    def _content(self, number: int, *, over: bool = False) -> bytes:
        record = {
            "attempt": number,
            "token": self._token,
            "session": self._session,
            "host": platform.node(),
            "process": os.getpid(),
            "machine": _machine(),
            "started": psutil.Process().create_time(),
            "beats": self._beats,
            "over": over,
        }
        return json.dumps(record).encode()


@contextmanager
def leased(storage: Storage, run: str, session: str = "") -> Iterator[Lease]:
    """Hold the lease of a run while the block runs, and renew it every `BEAT_SECONDS` seconds.

    Args:
        storage, run, session: as for `Lease`.

    Raises:
        StorageError: the storage cannot be read or written.
    """
    lease, over = Lease(storage, run, session), threading.Event()
    lease.take()

    def go_on() -> None:
        while not over.wait(BEAT_SECONDS):
            try:
                lease.renew()
            except LeaseLostError:
                return
            except OSError:  # the storage may come back; until then nothing can be written there, by nobody here
                continue

    beat = threading.Thread(target=go_on, name="lease", daemon=True)
    beat.start()
    try:
        yield lease
    finally:
        over.set()
        beat.join()
        with suppress(OSError, LeaseLostError):
            lease.renew(over=True)


def latest(storage: Storage, run: str) -> LeaseRecord | None:
    """Return what the newest lease of a run says; None if it was never held, or what it says cannot be read.

    Raises:
        StorageError: the storage cannot be read.
    """
    return _record(Lease(storage, run)._latest()[1])


def is_leased(storage: Storage, run: str) -> bool:
    """Return whether a worker has taken a run, and neither has said that it ended nor is known to be dead.

    It is known of the processes of this machine, and of others whose lease was not renewed for `SILENT_SECONDS`.

    Raises:
        StorageError: the storage cannot be read.
    """
    lease = Lease(storage, run)
    number, content = lease._latest()
    record = _record(content)
    if record is None or record["over"] or (record["machine"] == _machine() and not _lives(record)):
        return False
    age = storage.age(lease._file(number))
    return age is None or age < SILENT_SECONDS


def session_words(who: str, root: Path) -> str:
    """Return words for the sessions of `Lease` that only this session uses, with its workspace at `root`."""
    return f"{who}, {platform.node()}:{root}, session {uuid.uuid4().hex[:8]}"


def _record(content: bytes | None) -> LeaseRecord | None:
    try:
        return None if content is None else parse(content, LEASE)
    except DamagedError:
        return None


def _holder(record: LeaseRecord | None) -> str:
    """Return as words for a person who holds a run."""
    if record is None:
        return "another worker"
    return f"process {record['process']} on {record['host']}" + (f" ({record['session']})" if record["session"] else "")


def _machine() -> str:
    """Return a name of the processes that this one can see: those of one start of the machine, and of one container."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return _NOWHERE


_NOWHERE = uuid.uuid4().hex


def _lives(record: LeaseRecord) -> bool:
    """Return whether the process that holds a lease, one of this machine, is there and no corpse."""
    try:
        process = psutil.Process(record["process"])
        same = abs(process.create_time() - record["started"]) < 2  # the machine's start is known to a second only
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
