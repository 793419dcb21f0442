"""What an interrupted crafting goes on from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from erat.engine import checkpoint

SECONDS = 5.0  # between two saves: what a kill may cost


class Scratch:
    """One file of state, written atomically and not too often, and the one before it.

    Args:
        path: the file; none keeps nothing.
        seconds: that pass at least between two saves; none: `SECONDS`.
    """

    def __init__(self, path: Path | None = None, seconds: float | None = None) -> None:
        self.path, self._seconds = path, SECONDS if seconds is None else seconds
        self._saved = time.monotonic()

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state saved last, or if that is damaged the one before; none if there is none (it then begins anew).

        Raises:
            UserError: the file holds pickled code.
        """
        return None if self.path is None else checkpoint.load_newest(self.path, device)

    def save(self, state: dict[str, Any]) -> None:
        """Write the state if the last save is long enough ago."""
        if self.path is not None and time.monotonic() - self._saved >= self._seconds:
            self._write(self.path, state)
            self._saved = time.monotonic()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        checkpoint.save(path, state, keep_previous=True)
