"""Reports the progress of a crafting on a cluster through a file that every node sees, as tasks have no callbacks."""

from __future__ import annotations

import json
import math
import time

from erat.config import RunConfig, content_digest
from erat.files import write_atomic
from erat.records import MOST_WORDS, DamagedError, parse, read_bytes
from orchestration.storage.forms import PROGRESS
from orchestration.storage.workspace import Workspace

SECONDS = 0.5  # least time between two writes of the file
STORAGE_SECONDS = 5.0  # the same for a storage, which is written and read less often than a disk


class CraftProgress:
    """The progress of one task, which the task writes and the driver reads.

    Args:
        config: the configuration of the first set that the task crafts.
        workspace: the workspace of the driver or of the task's node, with the storage that they share, if any.
    """

    def __init__(self, config: RunConfig, workspace: Workspace) -> None:
        name = f"{content_digest(config.corruption.model_dump(mode='json'))}.progress"
        self._file, self._name = workspace.crafted / f".{name}", f"crafting/{name}"
        self._storage = workspace.storage
        self._pause = SECONDS if self._storage is None else STORAGE_SECONDS
        self._last = -math.inf

    def write(self, what: str, done: int, total: int) -> None:
        """Write the progress; the task may call this as often as it likes.

        Args:
            what: what is done.
            done, total: steps done, and steps in all.
        """
        if self._is_time() or done == total:
            content = json.dumps([what, done, total]).encode()
            if self._storage is None:
                write_atomic(self._file, content)
            else:
                self._storage.write(self._name, content)

    def read(self) -> tuple[str, int, int] | None:
        """Read (what, done, total); the driver may call this as often as it likes. None if there is nothing to read."""
        if self._storage is not None and not self._is_time():
            return None
        try:
            content = read_bytes(self._file, MOST_WORDS) if self._storage is None else self._storage.read(self._name)
            return parse(content or b"", PROGRESS)
        except (OSError, DamagedError):
            return None

    def remove(self) -> None:
        """Delete the file, once the task is over."""
        if self._storage is None:
            self._file.unlink(missing_ok=True)
        else:
            self._storage.remove(self._name)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._pause:
            return False
        self._last = now
        return True
