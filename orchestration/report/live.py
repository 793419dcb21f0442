"""Shows a study while it runs: a live table on a terminal, plain lines elsewhere, both on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from math import inf
from types import TracebackType
from typing import IO, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from orchestration.report.crafting import CraftBars, CraftLines, CraftView
from orchestration.report.notation import (
    MISSING,
    accuracy,
    baseline_name,
    duration,
    header,
    number_of,
    origin,
    settings_number,
    state,
    value,
    with_spread,
)
from orchestration.report.progress import Change, Progress
from orchestration.report.render.terminal import STATUS_STYLES, terminal
from orchestration.report.summary import best, status_cell
from orchestration.report.table import Cell, Column, Mark, Part, Row, Table
from orchestration.study.confirmations import winner
from orchestration.study.trial import Trial
from orchestration.terminal import Terminal, one_line

QUIET_SECONDS = 5.0  # plain lines: at most one line about an epoch per trial in this time
_BAR = 8  # characters of a bar
_FRAME = 8  # lines that are not trials: title, header with three rules, number of hidden trials, footer, one to spare


class LiveView:
    """Shows a study while it runs; a context manager.

    Args:
        title: one line that names the study.
        columns: the searched dotted keys.
        total: number of trials of the study.
        stream: where to print; None: standard error. If it is no terminal, or NO_COLOR or CI is set: plain lines.
        clock: returns seconds that never decrease.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[str],
        total: int,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = sys.stderr if stream is None else stream
        self._progress = Progress(total, clock)
        self._view = (_Terminal if takes_a_table(stream) else _PlainLines)(
            title, columns, self._progress, stream, clock
        )

    def __enter__(self) -> LiveView:
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After a normal end the summary table follows and says the same; after an interruption nothing else follows.
        self._view.stop(keep=kind is not None)
        ended, counts = self._progress.ended_of_total(), self._progress.counts()
        self._view.note(f"{ended} in {duration(self._progress.elapsed)}: {counts}")

    def update(self, rows: Sequence[Trial]) -> None:
        """Take note of trials that are new or have changed; must be called on every event, from one thread.

        A table is drawn by another thread, twice a second.
        """
        self._view.show(self._progress.update(rows))

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._view.note(text)

    @property
    def crafting(self) -> CraftView:
        """Return the view that shows the progress of sets that are crafted meanwhile; any thread may call it."""
        return self._view.crafting


def takes_a_table(stream: IO[str]) -> bool:
    """Return whether a stream can show a table that redraws itself and contains the paper's symbols."""
    if os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty() and "utf" in (getattr(stream, "encoding", None) or "utf-8").lower()


class _PlainLines:
    """A view that prints one line per event, in ASCII, for logs and pipes."""

    def __init__(
        self, title: str, columns: Sequence[str], progress: Progress, stream: IO[str], clock: Callable[[], float]
    ) -> None:
        self._title, self._columns, self._progress, self._stream, self._clock = title, columns, progress, stream, clock
        self.crafting: CraftView = CraftLines(stream)
        self._told: dict[int, float] = {}  # trial -> when its last epoch line was written

    def start(self) -> None:
        self.note(self._title)

    def stop(self, keep: bool) -> None:
        """Do nothing, because printed lines stay."""

    def note(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(one_line(text).encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()

    def show(self, changes: Sequence[Change]) -> None:
        for old, row in changes:
            if row.status != (old.status if old else "queued"):
                self._line(row, self._status(row))
            if row.status == "running" and row.epoch > (old.epoch if old else 0) and self._due(row.number):
                left = self._progress.trial_left(row)
                ending = "" if left is None else f" left {duration(left)}"
                self._line(row, f"epoch {row.epoch}/{row.epochs} val {accuracy(row.val_accuracy)}{ending}")

    def _due(self, number: int) -> bool:
        now = self._clock()
        if now - self._told.get(number, -inf) < QUIET_SECONDS:
            return False
        self._told[number] = now
        return True

    def _line(self, row: Trial, text: str) -> None:
        self.note(f"[{self._progress.ended}/{self._progress.total}] trial {number_of(row)} {text}")

    def _status(self, row: Trial) -> str:
        if row.status == "queued":
            return "queued again" if state(row) == "queued" else state(row)
        if row.status == "running":
            return f"running {self._settings(row)} ({row.source})"
        if row.status == "failed":
            return f"failed after {duration(row.seconds)}: {last_line(row)}"
        if row.status == "paused":
            return f"{state(row)}/{row.epochs} best val {accuracy(row.best_val_accuracy)} in {duration(row.seconds)}"
        rung = "rung " * row.at_rung
        at = f" at {rung or 'epoch '}{row.epoch}/{row.epochs}" if row.status == "stopped" else ""
        measured = f"best val {accuracy(row.best_val_accuracy)} test {accuracy(row.final_test_accuracy)}"
        left = self._progress.left()
        ending = f", sweep left {duration(left)}" if left else ""
        return f"{row.status}{at} {measured} in {duration(row.seconds)}{ending}"

    def _settings(self, row: Trial) -> str:
        if not any(key in row.params for key in self._columns):
            return baseline_name(row)
        pairs = ((header(key, ascii_only=True), value(key, row.params.get(key))) for key in self._columns)
        return " ".join(f"{name}={setting}" for name, setting in pairs)


def last_line(row: Trial) -> str:
    """Return the last line of a trial's error, in which Python says what went wrong."""
    lines = (row.error or "").strip().splitlines()
    return lines[-1] if lines else "no message"


class _Terminal:
    """A view with a table that redraws itself in place and is never taller than the terminal."""

    def __init__(
        self, title: str, columns: Sequence[str], progress: Progress, stream: IO[str], clock: Callable[[], float]
    ) -> None:
        self._title, self._columns, self._progress = title, columns, progress
        self._console = Terminal(file=stream, force_terminal=True)
        self._bars = CraftBars(self._console)
        self.crafting: CraftView = self._bars
        self._live = Live(
            get_renderable=self._frame,
            console=self._console,
            refresh_per_second=2,  # because elapsed time and time left change between events
            vertical_overflow="crop",
            # Other output on this terminal would break the table. Standard output is not redirected if it is not this
            # terminal, because it then holds results.
            redirect_stdout=sys.stdout.isatty(),
        )

    def start(self) -> None:
        self._live.start(refresh=True)

    def stop(self, keep: bool) -> None:
        self._live.transient = not keep
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(Text(text))

    def show(self, changes: Sequence[Change]) -> None:
        for old, row in changes:
            if row.status == "failed" and (old is None or old.status != "failed"):
                self._console.print(Text(f"trial {number_of(row)} failed: {last_line(row)}", style="red"))

    def _frame(self) -> Group:
        bars = self._bars.lines()
        rows = visible(self._progress, max(1, self._console.height - _FRAME - len(bars)))
        shown = {row.number for row in rows}
        hidden = [row for row in self._progress.rows if row.number not in shown]
        lines: list[Any] = [_one_line(f" {self._title}", "bold"), *bars, self._fitting_table(rows)]
        if hidden:
            counts = [(sum(row.status == status for row in hidden), status) for status in STATUS_STYLES]
            words = ", ".join(f"{number} {status}" for number, status in counts if number)
            lines.append(_one_line(f" … not shown: {words}", "dim"))
        lines.append(_one_line(" " + self._footer(), "bold"))
        return Group(*lines)

    def _footer(self) -> str:
        left = self._progress.left()
        parts = ["time left not known yet" if left is None else f"{duration(left)} left"]
        rows = self._progress.rows
        leader, over = best(rows), winner(rows)
        if over is not None:
            parts.append(f"best val {with_spread(over.val)} (trial {over.trial.number}, {over.val.n} seeds)")
        elif leader is not None:
            parts.append(f"best val {accuracy(leader.best_val_accuracy)} (trial {leader.number})")
        return " · ".join([self._progress.ended_of_total(), *parts, self._progress.counts()])

    def _fitting_table(self, rows: Sequence[Trial]) -> RenderableType:
        """Return the widest table that fits the terminal; the bar is dropped first, the searched values last."""
        without: set[str] = set()
        for drop in ("", "bar", "source", "time", "best", "settings"):
            without.add(drop)
            table = terminal(self._table(rows, without), wrap=False)
            # Measured with hardly any limit to its width, since a table's own measure stops at that of the terminal.
            wanted = self._console.measure(table, options=self._console.options.update(max_width=1000)).maximum
            if wanted <= self._console.width:
                break
        return table

    def _table(self, rows: Sequence[Trial], without: set[str]) -> Table:
        names = [name for name in ("#", "source", "status") if name not in without]
        names += [header(key) for key in self._columns if "settings" not in without]
        names += [name for name in ("epoch", "val", "best", "time", "left") if name not in without]
        leader = best(self._progress.rows)
        return Table.of(
            (Column(name, "left" if name in ("source", "status", "epoch") else "right") for name in names),
            (
                Row(self._cells(row, row is leader, without), state="queued" if row.status == "queued" else "")
                for row in rows
            ),
        )

    def _cells(self, row: Trial, leads: bool, without: set[str]) -> tuple[Cell | str, ...]:
        age = self._progress.age(row)
        running, mark = row.status == "running", Mark.BEST if leads else None
        settings = {key: value(key, row.params.get(key)) for key in self._columns}
        epoch = f"{row.epoch:>{len(str(row.epochs))}}/{row.epochs}" if row.epochs else MISSING
        cells: dict[str, Cell | str] = {
            "#": Cell(f"★ {row.number}" if leads else str(settings_number(row)), mark),
            "source": origin(row),
            "status": status_cell(row),
            **({} if "settings" in without else settings),
            "epoch": Cell(epoch, tail=() if "bar" in without else _bar(row)),
            "val": accuracy(row.val_accuracy),
            "best": Cell(accuracy(row.best_val_accuracy), mark),
            "time": duration(row.seconds + age) if row.seconds or running else MISSING,
            "left": duration(self._progress.trial_left(row)) if running else "",
        }
        return tuple(cell for name, cell in cells.items() if name not in without)


def visible(progress: Progress, room: int) -> list[Trial]:
    """Return the rows to show if not all fit.

    They are those that run, the best one, the newest that ended, the next queued ones, and those that pause.

    Args:
        room: the number of rows that fit.
    """
    rows = {row.number: row for row in progress.rows}
    leader = best(list(rows.values()))
    order = [number for number, row in rows.items() if row.status == "running"]
    order += [leader.number] if leader else []
    order += progress.newest_ended()
    order += [number for status in ("queued", "paused") for number, row in rows.items() if row.status == status]
    return [rows[number] for number in sorted(list(dict.fromkeys(order))[:room])]


def _bar(row: Trial) -> tuple[Part, Part]:
    done = round(_BAR * min(1.0, row.epoch / row.epochs)) if row.epochs else 0
    return Part(" " + "━" * done, row.status), Part("╌" * (_BAR - done), "queued")


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
