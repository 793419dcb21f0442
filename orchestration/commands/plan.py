"""Prints what would run, how long it takes and what it needs; each function also returns what `--json` prints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from erat.config import RunConfig
from erat.errors import UserError
from erat.variants import defense_name
from orchestration.report.notation import duration
from orchestration.run.resources import needs
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.recorded import RecordedResult
from orchestration.study.settings import setting_values, setting_words, settled, warn_if_narrow
from orchestration.study.spec import StudySpec
from orchestration.study.trial import FINISHED

if TYPE_CHECKING:
    from orchestration.search.plan import Foreseen


@dataclass(frozen=True)
class Room:
    """Where the runs of a plan are to be.

    Attributes:
        slots: number of runs at a time.
        words: where this number is from, for a person.
    """

    slots: int
    words: str


def find_room(
    config: RunConfig, address: str | None, slots: int | None, at_most: int | None, *, workers: int | None = None
) -> Room:
    """Return how many runs like this one the cluster at `address`, or else this machine, can hold; start nothing there.

    Args:
        config: configuration of the runs.
        address: address of a Ray cluster. None: this machine.
        slots: number of slots to plan for, whatever there is; it goes without `address`.
        at_most: largest number of runs at a time. None: as many as fit.
        workers: number of workers of each, where it is not that of the configuration, as in crafting.

    Raises:
        UserError: Both `address` and `slots` are given, no cluster answers, or not even one run fits on it.
    """
    if address is not None and slots is not None:
        raise UserError("--slots plans for a cluster that is not there, and --address asks one that is: give one")
    if slots is not None:
        room = Room(slots, "as --slots says")
    elif address is not None:
        # Imported here because only this plan needs Ray, which takes long to load.
        from orchestration.cluster import session
        from orchestration.search.launch import slots_ahead

        resources = needs(config)
        with session.connection(address):
            fewest = None if workers else config.resources.min_workers
            every = workers or config.train.workers
            if session.grows():
                fit = session.fitting(resources, every, fewest)
                room = Room(
                    slots_ahead(fit, at_most), f"as planned for on the growing cluster at {address}, {fit} fit now"
                )
            else:
                room = Room(session.slots(resources, every, fewest), f"as many as fit on the cluster at {address}")
    else:
        import torch

        from orchestration.study import estimate

        lacking = needs(config)["GPU"] > 0 and not torch.cuda.is_available()
        words = "as many as this machine has room for"
        if lacking:
            words = "by this machine's cores: it lacks the GPU they ask for, resources.device=cpu goes without"
        room = Room(estimate.local_slots(config), words)
    if at_most is None or at_most >= room.slots:
        return room
    return Room(at_most, "as --max-concurrent says")


def plan_sweep(
    name: str, spec: StudySpec, trials: int, workspace: Workspace, ledger: Ledger, console: Console, room: Room
) -> dict[str, Any]:
    """Print and return what a sweep would run in this room."""
    # Imported here, as in all plans, because it loads torch, which `status` does not need.
    from orchestration.search.plan import foresee
    from orchestration.study import estimate

    spec, windows = settled(ledger, name, spec, room.slots, trials)
    warn_if_narrow(spec, room.slots, windows)
    ahead = [params for _, params in spec.known_ahead(trials)]
    known = spec.proposals(ledger.studies[name]) if name in ledger.studies else {}
    ahead += [known[number].params for number in sorted(known) if len(ahead) <= number < spec.size(trials)]
    to_propose = max(0, spec.size(trials) - len(ahead))
    configs = [spec.config(params) for params in ahead]
    console.print(f"sweep {name}: {spec.space.about} · preset {spec.preset}", markup=False)
    if spec.search is not None:
        console.print(f"  {setting_words(spec.space, windows)}", markup=False)
    history = estimate.History(ledger, {name: spec})
    least, most = foresee(name, spec, trials, ledger, room.slots, history.seconds, windows)
    content = {"name": name} | _plan(
        configs,
        [ledger.outcome(spec.digest(params), name) for params in ahead],
        [spec.base] * to_propose,
        (least, most),
        room,
        workspace,
        console,
        timed_here=history.timed_here,
    )
    if spec.search is not None:
        content["settings"] = setting_values(spec.space)
        content["window"] = windows[max(windows)]
        if most.training:
            _say_assumed(spec, least != most, console)
    return content


def plan(
    configs: Sequence[RunConfig], workspace: Workspace, ledger: Ledger, console: Console, *, on_ray: bool = False
) -> dict[str, Any]:
    """Print and return what these runs would cost, one after another, outside any study."""
    from orchestration.search.plan import Foreseen
    from orchestration.study import estimate

    outcomes = [ledger.outcome(config.digest()) for config in configs]
    history, by_defense, runs = estimate.History(ledger, on_ray=on_ray), dict[str, float](), 0
    for config, outcome in zip(configs, outcomes, strict=True):
        if outcome is None:
            defense = defense_name(config.flat())
            by_defense[defense] = by_defense.get(defense, 0.0) + history.seconds(config)
            runs += 1
    seconds = sum(by_defense.values())
    found = Foreseen(seconds, seconds, runs, by_defense, 0)
    room = Room(1, "one after another")
    return _plan(configs, outcomes, [], (found, found), room, workspace, console, timed_here=history.timed_here)


def _plan(
    configs: Sequence[RunConfig],
    outcomes: Sequence[RecordedResult | None],
    imagined: Sequence[RunConfig],
    foreseen: tuple[Foreseen, Foreseen],
    room: Room,
    workspace: Workspace,
    console: Console,
    *,
    timed_here: bool,
) -> dict[str, Any]:
    """Print and return what runs would cost.

    Args:
        configs: the configurations that are known.
        outcomes: how each of them ended, or None.
        imagined: a configuration like that of each run that is yet to be proposed.
        foreseen: how it goes, at least and at most.
        room: where the runs are.
        workspace: the workspace.
        console: where to print.
        timed_here: whether an epoch was timed on this machine.
    """
    from orchestration.crafting.sets import missing_sets

    least, most = foreseen
    todo = [config for config, outcome in zip(configs, outcomes, strict=True) if outcome is None] + list(imagined)
    missing = missing_sets(todo, workspace)
    sets = plan_sets([*configs, *imagined[:1]], missing, console)
    content: dict[str, Any] = {
        "cells": len(configs) + len(imagined),
        "done": sum(outcome is not None and outcome.status in FINISHED for outcome in outcomes),
        "failed": sum(outcome is not None and outcome.status == "failed" for outcome in outcomes),
        "to_do": len(todo),
        "to_be_proposed": len(imagined),
        "confirmations": most.confirmations,
    } | sets
    workers = max((config.train.workers for config in todo), default=1)
    content |= {
        "slots": room.slots,
        "seconds": [least.seconds, most.seconds],
        "trainings": [least.trainings, most.trainings],
        "wall_seconds": most.seconds,
        "device_hours": most.training * workers / 3600,
        "device_hours_by_defense": {name: part * workers / 3600 for name, part in most.by_defense.items()},
    }
    content["memory_mb"], memory_words = _memory(todo)
    content["disk_needed_gb"] = _disk([*todo, *todo[-1:] * most.confirmations], missing)
    content["disk_free_gb"] = shutil.disk_usage(workspace.root).free / 1e9
    repeated = f", then {most.confirmations} confirmations" if most.confirmations else ""
    console.print(
        f"  cells: {content['cells']} ({content['done']} done, {content['failed']} failed, {len(todo)} to do, "
        f"{len(imagined)} of these yet to be proposed){repeated}"
    )
    hours = _span(least.training * workers / 3600, most.training * workers / 3600, "{:.2f}".format)
    work = _span(least.trainings, most.trainings, lambda number: f"{number:.1f}".removesuffix(".0"))
    by = "a few steps on this machine" if timed_here else "finished runs like these"
    crafting = " and crafting" if missing else ""
    console.print(
        f"  estimate: {_span(least.seconds, most.seconds, duration)} with {room.slots} at a time, {room.words}; "
        f"{hours} device hours, the work of {work} full training{'s' * (work != '1')}",
        markup=False,
    )
    if todo or most.confirmations:
        console.print(f"  without start-up{crafting}; epochs are timed by {by}", markup=False)
    if len(most.by_defense) > 1:
        parts = ", ".join(f"{name} {part:.2f}" for name, part in content["device_hours_by_defense"].items())
        console.print(f"  device hours by defense: {parts}", markup=False)
    console.print(f"  memory: {memory_words}", markup=False)
    needed = "not known" if content["disk_needed_gb"] is None else f"about {content['disk_needed_gb']:.3g} GB"
    short = " TOO LITTLE:" if (content["disk_needed_gb"] or 0) > content["disk_free_gb"] else ""
    console.print(
        f"  disk:{short} {needed} needed, {content['disk_free_gb']:.1f} GB free at {workspace.root}", markup=False
    )
    return content


def _span(low: float, high: float, form: Callable[[float], str]) -> str:
    """Return a range for a person, or one figure if both ends look alike."""
    return " to ".join(dict.fromkeys(map(form, (low, high))))


def _say_assumed(spec: StudySpec, ranges: bool, console: Console) -> None:
    space = spec.space
    if ranges:
        first = max(1, round(space.grace * spec.base.train.epochs))
        console.print(
            f"  what {space.pruner} will stop is not known ahead: the range is from every second proposal, after epoch "
            f"{first}, to none"
        )
    elif space.pruner == "halving" and space.rungs:
        rungs = ", ".join(map(str, space.rungs))
        console.print(
            f"  of each block of {space.block} proposals the best third goes on from each rung, after epoch {rungs}"
        )


def _disk(configs: Sequence[RunConfig], sets: Sequence[RunConfig]) -> float | None:
    """Return the disk space needed in GB, or None if it is not known, which must not keep anyone from running."""
    from orchestration.study import estimate

    try:
        return estimate.disk(configs, sets) / 1e9
    except Exception:
        return None


def _memory(configs: Sequence[RunConfig]) -> tuple[float | None, str]:
    """Return the memory in MB of the run that needs most, and the words for it.

    It is None if it is not known, which must not keep anyone from running.
    """
    from erat.engine.memory import MB
    from orchestration.study import estimate

    if not configs:
        return None, "none, nothing is left to do"
    try:
        distinct = {id(config): config for config in configs}.values()
        most = max((estimate.memory(config) for config in distinct), key=lambda memory: memory.total)
    except Exception as error:
        reason = str(error).splitlines() or [type(error).__name__]
        return None, f"not known ({reason[0]})"
    unit, name, digits = (1024 * MB, "GB", 1) if most.total >= 1024 * MB else (MB, "MB", 0)
    network, data, working, total = (
        f"{size / unit:.{digits}f}" for size in (most.network, most.data, most.working, most.total)
    )
    what = "a step" if most.working == most.step else "scoring"
    words = (
        f"about {total} {name} of tensors per worker (network and optimizer {network}, data {data}, {what} {working})"
    )
    return most.megabytes, words


def plan_sets(configs: Sequence[RunConfig], lacking: Sequence[RunConfig], console: Console) -> dict[str, Any]:
    """Print and return how many crafted sets these runs need, and which of them the store lacks."""
    from orchestration.crafting.sets import distinct_sets, set_name

    needed, missing = len(distinct_sets(configs)), [set_name(config) for config in lacking]
    shown = f" ({', '.join(missing)})" if 0 < len(missing) <= 8 else ""
    console.print(f"  crafted sets: {needed} needed, {len(missing)} to craft{shown}", markup=False)
    return {"crafted_sets": needed, "crafted_sets_missing": len(missing)}
