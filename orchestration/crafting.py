"""Corrupted sets ahead of training: here or as Ray tasks, with a bar and the time left for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from erat.config import RunConfig, build, content_digest
from erat.corruption.pipeline import corrupted_set, crafted_already
from erat.corruption.store import Store
from erat.data.base import CorruptedSet
from orchestration.home import Home
from orchestration.report.notation import duration
from orchestration.trial import threads

QUIET_SECONDS = 5.0  # plain lines: at most one per set in this time


def distinct_sets(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """One configuration per corrupted set that these need, of which each may take another share."""
    whole = [(config.data, config.val, config.corruption.model_copy(update={"share": 1.0})) for config in configs]
    return list(dict(zip(whole, configs, strict=True)).values())


def missing_sets(configs: Sequence[RunConfig], home: Home) -> list[RunConfig]:
    """Of the sets that these need, those that the store lacks or has damaged (of which it warns)."""
    return [config for config in distinct_sets(configs) if not crafted_already(config, Store(home.crafted))]


def craft_here(config: RunConfig, home: Home) -> CorruptedSet:
    """The corrupted set of a configuration, crafted in this process if the store lacks it."""
    with craft_view() as view, threads(config):
        return corrupted_set(config, Store(home.crafted), partial(view.show, set_name(config)))


def craft_on_ray(configs: Sequence[RunConfig], home: Home) -> None:
    """Craft these sets as Ray tasks, side by side as far as the resources of the connected cluster go.

    Raises:
        UserError: from a task, as it was raised there.
    """
    from orchestration import cluster

    with craft_view() as view:
        cluster.craft_sets(configs, home, lambda index, *progress: view.show(set_name(configs[index]), *progress))


def craft_on_cluster(configs: Sequence[RunConfig], home: Home, address: str) -> None:
    """Craft what these need and the store lacks on the cluster at `address`. Raises as `craft_on_ray`."""
    from orchestration import cluster

    if missing := missing_sets(configs, home):
        with cluster.connection(address):
            craft_on_ray(missing, home)


def preview(configs: Sequence[RunConfig], home: Home) -> Path:
    """Craft these sets, of the same images, and draw a sheet of what was done to them; its path."""
    from orchestration.report.sheet import Band, preview_sheet

    shared = {k: v for k, v in configs[0].flat().items() if k.split(".")[0] in ("data", "val")}
    clean = build(configs[0].preset, shared | {"corruption.data": "none", "corruption.labels": "none"})
    images = craft_here(clean, home).train
    bands = [Band(set_name(config), images, craft_here(config, home)) for config in configs]
    digest = content_digest([config.identity() for config in configs])
    return preview_sheet(bands, home.report(f"preview-{digest[:6]}") / "preview.png")


def set_name(config: RunConfig) -> str:
    """What a person calls a corrupted set: "uhp l2 1.25", "up linf 0.1 seed 3"."""
    options = config.corruption
    if options.data == "none":
        return f"{options.labels} labels"
    seed = f" seed {options.seed}" if options.seed else ""
    return f"{options.data} {options.norm} {options.epsilon:.3g}{seed}"


class CraftView(Protocol):
    """Told how far each set is; nothing is shown of a set that was there already."""

    def show(self, name: str, what: str, done: int, total: int) -> None: ...


@contextmanager
def craft_view(stream: IO[str] | None = None, doing: str = "crafting") -> Iterator[CraftView]:
    """A bar per set on a terminal, plain lines elsewhere; on standard error if no stream is given."""
    console = Console(file=stream, stderr=stream is None)
    if not console.is_terminal:
        yield _Lines(sys.stderr if stream is None else stream, doing)
        return
    columns = (
        TextColumn(f"{doing} {{task.description}}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar per set and stage of it: a source network, then the perturbations."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def show(self, name: str, what: str, done: int, total: int) -> None:
        key = (name, total)
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(name, total=total, completed=done - 1)
        finished = done >= total
        self._progress.update(
            self._tasks[key], completed=done, description=f"{name}: {what}", visible=not finished or total == 1
        )


class _Lines:
    """At most one line per set in some seconds; the first and the last of each stage always."""

    def __init__(self, stream: IO[str], doing: str) -> None:
        self._stream, self._doing = stream, doing
        self._began: dict[tuple[str, int], tuple[float, int]] = {}  # set and stage -> when, and where it stood then
        self._told: dict[str, float] = {}
        self._last: dict[str, tuple[str, int, int]] = {}

    def show(self, name: str, what: str, done: int, total: int) -> None:
        if self._last.get(name) == (what, done, total):
            return  # a Ray task's last word is read at every look until it has ended
        self._last[name] = (what, done, total)
        now = time.monotonic()
        new = (name, total) not in self._began
        began, first = self._began.setdefault((name, total), (now, done))
        if not new and done < total and now - self._told.get(name, now) < QUIET_SECONDS:
            return
        self._told[name] = now
        left = (now - began) / (done - first) * (total - done) if done > first else None
        ending = f", {duration(left)} left" if left is not None and done < total else ""
        self._stream.write(f"{self._doing} {name}: {what} {done}/{total}{ending}\n")
        self._stream.flush()
