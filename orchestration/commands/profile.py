"""Implements `train --profile`: measures where the time of a step goes, as a table and as a trace for a viewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from erat.config import RunConfig, build
from erat.defenses.base import Clock
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.files import write_atomic
from erat.training import threads
from orchestration.crafting.jobs import craft_here
from orchestration.report.crafting import craft_view
from orchestration.report.render.markdown import markdown
from orchestration.report.table import Row, Table
from orchestration.storage.workspace import Workspace

WARM_STEPS, STEPS = 2, 5
# The parts that the trainer and the defenses mark; "loss" includes all of LOSS_PARTS.
STEP_PARTS = ("batch", "loss", "backward", "update")
LOSS_PARTS = ("pseudo-labels", "perturb", "strong views", "student")


@dataclass(frozen=True)
class Profile:
    """The profile of a step.

    Attributes:
        step: milliseconds of a step.
        parts: milliseconds of each part of a step.
        loss_parts: milliseconds of each part of the loss.
        files: the files that were written.
    """

    step: float
    parts: dict[str, float]
    loss_parts: dict[str, float]
    files: list[Path]

    def rows(self) -> list[tuple[str, float, float]]:
        """Return (part, milliseconds, share of the step) for each part, those of the loss indented below it."""
        named: list[tuple[str, float]] = []
        for part, spent in self.parts.items():
            named.append((part, spent))
            if part == "loss":
                named += [(f"  {name}", value) for name, value in self.loss_parts.items()]
                rest = spent - sum(self.loss_parts.values())
                named += [("  rest of the loss", rest)] if self.loss_parts else []
        return [(name, spent, spent / self.step) for name, spent in named]


def run_profile(config: RunConfig, workspace: Workspace) -> Profile:
    """Profile some steps of the phase after warm-up with torch's profiler, and write the files.

    The network is newly initialised, which does not change the time of a step; the image set is that of the run.

    Raises:
        UserError: the set makes too few steps.
    """
    keys = {"defense.warmup_epochs": 0} if "defense.warmup_epochs" in config.flat() else {}
    config = build(config.preset, config.flat() | keys, quiet=True)
    with craft_view() as view:
        data = craft_here(config, workspace, view.show)
    activities = [ProfilerActivity.CPU]
    with threads(config):
        trainer = Trainer(config, data)
        if trainer.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        steps = _steps(trainer, config.train.epochs)
        for _ in islice(steps, WARM_STEPS):
            pass
        with profile(activities=activities) as profiler:
            made = sum(1 for _ in islice(steps, STEPS))
    if not made:
        raise UserError(
            f"--profile needs more than {WARM_STEPS} steps, got {len(data.train)} images of which "
            f"train.batch_size={config.train.batch_size} makes fewer in {config.train.epochs} epochs"
        )
    return _summary(profiler, made, workspace.report(f"profile-{config.digest()[:6]}"))


def _steps(trainer: Trainer, epochs: int) -> Iterator[Any]:
    """Yield the steps of one epoch after another, because one epoch of a small set has too few."""
    for epoch in range(epochs):
        clock = Clock(epoch)
        yield from trainer.steps(trainer.plan(clock), clock)


def _summary(profiler: Any, steps: int, folder: Path) -> Profile:
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = {event.key: event for event in profiler.key_averages()}

    def spent(name: str) -> float:
        event = events.get(name)
        return 0.0 if event is None else max(event.cpu_time_total, event.device_time_total) / 1000 / max(steps, 1)

    parts = {name: spent(name) for name in STEP_PARTS}
    loss_parts = {name: spent(name) for name in LOSS_PARTS if name in events}
    result = Profile(sum(parts.values()), parts, loss_parts, [trace, folder / "profile.md"])
    table = markdown(_table(result, "part", "ms a step", "share"))
    operators = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
    write_atomic(folder / "profile.md", f"{table}\n\n```\n{operators}\n```\n".encode())
    return result


def profile_table(result: Profile) -> Table:
    """Return the parts of a step, and the whole step below them."""
    table = _table(result, "part of a step", "ms", "share")
    return replace(table, rows=(*table.rows, Row(("a step", f"{result.step:.2f}", "100.0%"), chosen=True)))


def _table(result: Profile, *headings: str) -> Table:
    return Table.of(headings, ((name, f"{spent:.2f}", f"{share:.1%}") for name, spent, share in result.rows()))
