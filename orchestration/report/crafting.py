"""Shows the progress of sets that are crafted: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from orchestration.report.notation import duration
from orchestration.terminal import Terminal, one_line

QUIET_SECONDS = 5.0  # plain lines: at most one per set in this time


class CraftView(Protocol):
    """A view of the progress of sets; a set that was in the store already is not shown.

    `left` says how much time is left, if the caller knows it better than the speed of the present stage tells.
    """

    def show(self, name: str, what: str, done: int, total: int, left: str = "") -> None: ...


@contextmanager
def craft_view(stream: IO[str] | None = None, doing: str = "crafting") -> Iterator[CraftView]:
    """Provide a view: a bar per set on a terminal, plain lines elsewhere.

    Args:
        stream: where to print; None: standard error.
        doing: the word for what is done, at the beginning of each line.
    """
    console = Terminal(file=stream, stderr=stream is None)
    if not console.is_terminal:
        yield CraftLines(sys.stderr if stream is None else stream, doing)
        return
    bars = CraftBars(console, doing)
    with bars.progress:
        yield bars


class CraftBars:
    """A view with one bar per set and stage (a source network, then the perturbations); any thread may call it.

    Args:
        console: where `progress` redraws itself, if it is started.
        doing: the word for what is done, at the beginning of each line.
    """

    def __init__(self, console: Console, doing: str = "crafting") -> None:
        columns = (
            TextColumn(f"{doing} {{task.description}}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def show(self, name: str, what: str, done: int, total: int, left: str = "") -> None:
        """Move a bar; hide the bar of a stage that has ended."""
        key = (name, total)
        if key not in self._tasks:
            self._tasks[key] = self.progress.add_task(name, total=total, completed=done - 1)
        finished = done >= total
        words = f"{name}: {what}, {left}" if left else f"{name}: {what}"
        self.progress.update(self._tasks[key], completed=done, description=words, visible=not finished or total == 1)

    def lines(self) -> list[RenderableType]:
        """Return the bars of stages that have not ended, one line each, for a display that redraws itself."""
        moving = [task for task in self.progress.tasks if task.visible and not task.finished]
        return [self.progress.make_tasks_table([task]) for task in moving]


class CraftLines:
    """A view with at most one line per set in `QUIET_SECONDS`, and always the first and the last line of each stage."""

    def __init__(self, stream: IO[str], doing: str = "crafting") -> None:
        self._stream, self._doing = stream, doing
        self._began: dict[tuple[str, int], tuple[float, int]] = {}  # set and stage -> (start, steps done then)
        self._told: dict[str, float] = {}
        self._last: dict[str, tuple[str, int, int]] = {}

    def show(self, name: str, what: str, done: int, total: int, left: str = "") -> None:
        """Write a line, if one is due."""
        if self._last.get(name) == (what, done, total):
            return  # the last report of a Ray task is read again and again until the task has ended
        self._last[name] = (what, done, total)
        now = time.monotonic()
        new = (name, total) not in self._began
        began, first = self._began.setdefault((name, total), (now, done))
        if not new and done < total and now - self._told.get(name, now) < QUIET_SECONDS:
            return
        self._told[name] = now
        seconds = (now - began) / (done - first) * (total - done) if done > first else None
        own = f", {duration(seconds)} left" if seconds is not None and done < total else ""
        ending = f", {left}" if left else own
        self._stream.write(one_line(f"{self._doing} {name}: {what} {done}/{total}{ending}") + "\n")
        self._stream.flush()
