"""How far a crafting on a cluster is: a file, since a task calls nobody back, where every node sees it."""

from __future__ import annotations

import json
import math
import time

from erat.config import RunConfig, content_digest
from erat.files import write_atomic
from erat.records import MOST_WORDS, DamagedError, parse, read_bytes
from orchestration.storage.forms import PROGRESS
from orchestration.storage.workspace import Workspace

SECONDS = 0.5
STORAGE_SECONDS = 5.0  # a storage is asked less often than a disk


class CraftProgress:
    """Written by the task and read by the driver.

    Args:
        config: of the first set that the task crafts.
        workspace: of the driver or of the task's node, with the storage that they share, if any.
    """

    def __init__(self, config: RunConfig, workspace: Workspace) -> None:
        name = f"{content_digest(config.corruption.model_dump(mode='json'))}.progress"
        self._file, self._name = workspace.crafted / f".{name}", f"crafting/{name}"
        self._storage = workspace.storage
        self._pause = SECONDS if self._storage is None else STORAGE_SECONDS
        self._last = -math.inf

    def write(self, what: str, done: int, total: int) -> None:
        """From the task, as often as it likes."""
        if self._is_time() or done == total:
            content = json.dumps([what, done, total]).encode()
            if self._storage is None:
                write_atomic(self._file, content)
            else:
                self._storage.write(self._name, content)

    def read(self) -> tuple[str, int, int] | None:
        """By the driver, as often as it likes; none if there is nothing new to be had."""
        if self._storage is not None and not self._is_time():
            return None
        try:
            content = read_bytes(self._file, MOST_WORDS) if self._storage is None else self._storage.read(self._name)
            return parse(content or b"", PROGRESS)
        except (OSError, DamagedError):
            return None

    def remove(self) -> None:
        """Once the task is over."""
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
