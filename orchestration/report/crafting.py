"""How far each set is while it is crafted: a bar on a terminal, a line now and then elsewhere."""

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
    """Told how far each set is; nothing is shown of a set that was there already.

    `left` says how much time is left, where the caller knows better than what this stage's own pace tells.
    """

    def show(self, name: str, what: str, done: int, total: int, left: str = "") -> None: ...


@contextmanager
def craft_view(stream: IO[str] | None = None, doing: str = "crafting") -> Iterator[CraftView]:
    """A bar per set on a terminal, plain lines elsewhere; on standard error if no stream is given."""
    console = Terminal(file=stream, stderr=stream is None)
    if not console.is_terminal:
        yield CraftLines(sys.stderr if stream is None else stream, doing)
        return
    bars = CraftBars(console, doing)
    with bars.progress:
        yield bars


class CraftBars:
    """One bar per set and stage of it: a source network, then the perturbations. May be told from any thread.

    Args:
        console: where `progress` redraws itself, if it is started.
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
        """Move a bar; a stage that is over takes its bar away."""
        key = (name, total)
        if key not in self._tasks:
            self._tasks[key] = self.progress.add_task(name, total=total, completed=done - 1)
        finished = done >= total
        words = f"{name}: {what}, {left}" if left else f"{name}: {what}"
        self.progress.update(self._tasks[key], completed=done, description=words, visible=not finished or total == 1)

    def lines(self) -> list[RenderableType]:
        """The bars of what is not over, one line each, for a display that redraws itself."""
        moving = [task for task in self.progress.tasks if task.visible and not task.finished]
        return [self.progress.make_tasks_table([task]) for task in moving]


class CraftLines:
    """At most one line per set in some seconds; the first and the last of each stage always."""

    def __init__(self, stream: IO[str], doing: str = "crafting") -> None:
        self._stream, self._doing = stream, doing
        self._began: dict[tuple[str, int], tuple[float, int]] = {}  # set and stage -> when, and where it stood then
        self._told: dict[str, float] = {}
        self._last: dict[str, tuple[str, int, int]] = {}

    def show(self, name: str, what: str, done: int, total: int, left: str = "") -> None:
        """Write a line, if one is due."""
        if self._last.get(name) == (what, done, total):
            return  # a Ray task's last word is read at every look until it has ended
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
