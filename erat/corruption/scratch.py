"""Keep the state from which an interrupted crafting resumes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from erat.engine import checkpoint

SECONDS = 5.0  # between two saves: the time that a kill may cost


class Scratch:
    """One file of state, written atomically and not too often, and its previous version.

    Args:
        path: the file; None: nothing is kept.
        seconds: the least number of seconds between two saves; None: `SECONDS`.
    """

    def __init__(self, path: Path | None = None, seconds: float | None = None) -> None:
        self.path, self._seconds = path, SECONDS if seconds is None else seconds
        self._saved = time.monotonic()

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the state that was saved last or, if that is damaged, the previous one.

        Returns None if there is neither; the crafting then starts from the beginning.

        Raises:
            UserError: the file holds pickled code.
        """
        return None if self.path is None else checkpoint.load_newest(self.path, device)

    def save(self, state: dict[str, Any]) -> None:
        """Write the state if enough time has passed since the last save."""
        if self.path is not None and time.monotonic() - self._saved >= self._seconds:
            self._write(self.path, state)
            self._saved = time.monotonic()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        checkpoint.save(path, state, keep_previous=True)
