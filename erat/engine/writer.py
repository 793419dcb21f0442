"""Writes the checkpoints of a run in a thread, at an interval, while the training goes on."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from erat.engine import checkpoint
from erat.options import interval


class CheckpointWriter:
    """The checkpoints of one run: when the next one is due, and the thread that writes it.

    At most one is written at a time: if the next one is due before that, the training waits. The last one overtakes the
    one that is under way: whoever has little time left need not wait until both are sent. An error of the thread is
    raised by the next call of `check`, `write` or `wait`, and again by each later one.

    Args:
        path: the file; the one before is kept beside it.
        every: the interval between two checkpoints, as `train.checkpoint_every` has it.
        kept: called in the thread after each write; the checkpoint counts as written when it returns.
    """

    def __init__(self, path: Path, every: str, kept: Callable[[], object]) -> None:
        self._path, self._kept = path, kept
        self._epochs, self._seconds = interval(every)
        self._last = 0, time.monotonic()  # the epochs in the last checkpoint, and when its state was taken
        self._writing: Future[None] | None = None
        self.overtaken = False  # whether the last checkpoint waits, so that `kept` may give up the one before it

    @property
    def epochs(self) -> int:
        """Return the number of epochs in the last checkpoint."""
        return self._last[0]

    def found(self, epochs: int) -> None:
        """Take note that the run goes on from a checkpoint with so many epochs."""
        self._last = epochs, time.monotonic()

    def is_due(self, epochs: int) -> bool:
        """Return whether a checkpoint is due after so many epochs."""
        before, then = self._last
        return time.monotonic() - then >= self._seconds if self._epochs is None else epochs - before >= self._epochs

    def write(self, epochs: int, state: dict[str, Any], *, last: bool = False) -> None:
        """Have the thread write a copy of `state`, in which so many epochs are done, after what it writes now.

        Args:
            last: whether it is the last one, on which somebody will wait.

        Raises:
            OSError: the checkpoint before could not be written, or what `kept` has raised.
        """
        self.overtaken = last
        try:
            self.wait()
        finally:
            self.overtaken = False
        state = _copied(state)
        self._last = epochs, time.monotonic()
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(self._write, state)
        pool.shutdown(wait=False)  # the thread ends when it has written

    def check(self) -> None:
        """Raise the error of the last write, if it has ended with one."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Wait until the last checkpoint is written. Raises as `write`."""
        if self._writing is not None:
            self._writing.result()

    def settle(self) -> None:
        """Wait as `wait` does, where another error is on its way already: that of the write is not raised."""
        with suppress(Exception):
            self.wait()

    def _write(self, state: dict[str, Any]) -> None:
        checkpoint.save(self._path, state, keep_previous=True)
        self._kept()


def _copied(value: Any) -> Any:
    """Return a copy of a state that the training does not change: tensors on the CPU, all else as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        made = copy.copy(value)  # of the same class and with its attributes, such as the versions in a state dictionary
        made.update((key, _copied(inner)) for key, inner in value.items())
        return made
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value
