"""`train --profile`: where a step's time goes, as a table on one screen and a trace for a viewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from erat.config import RunConfig, build
from erat.defenses.base import Clock
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.files import write_atomic
from erat.training import threads
from orchestration.crafting.jobs import craft_here
from orchestration.storage.workspace import Workspace

WARM_STEPS, STEPS = 2, 5
# What the trainer and the defenses mark, outermost first; "loss" holds those under it.
STEP_PARTS = ("batch", "loss", "backward", "update")
LOSS_PARTS = ("pseudo-labels", "perturb", "strong views", "student")


@dataclass(frozen=True)
class Profile:
    """Milliseconds of a step by part, of the loss's own parts among them; the files."""

    step: float
    parts: dict[str, float]
    loss_parts: dict[str, float]
    files: list[Path]

    def rows(self) -> list[tuple[str, float, float]]:
        """(part, milliseconds, share of the step)."""
        named: list[tuple[str, float]] = []
        for part, spent in self.parts.items():
            named.append((part, spent))
            if part == "loss":
                named += [(f"  {name}", value) for name, value in self.loss_parts.items()]
                rest = spent - sum(self.loss_parts.values())
                named += [("  rest of the loss", rest)] if self.loss_parts else []
        return [(name, spent, spent / self.step) for name, spent in named]


def run_profile(config: RunConfig, workspace: Workspace) -> Profile:
    """Some steps of the phase after warm-up, under torch's profiler.

    The network is fresh, which no step's time depends on; the set is the run's own.
    """
    keys = {"defense.warmup_epochs": 0} if "defense.warmup_epochs" in config.flat() else {}
    config = build(config.preset, config.flat() | keys, quiet=True)
    data = craft_here(config, workspace)
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
    """The steps of one epoch after another: of a small set one epoch has too few."""
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
    lines = ["| part | ms a step | share |", "|:--|--:|--:|"]
    lines += [f"| {name.strip()} | {value:.2f} | {share:.1%} |" for name, value, share in result.rows()]
    operators = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
    write_atomic(folder / "profile.md", ("\n".join(lines) + f"\n\n```\n{operators}\n```\n").encode())
    return result


def profile_table(result: Profile) -> Table:
    """For the terminal."""
    table = Table("part of a step", "ms", "share", box=None)
    for name, value, share in result.rows():
        table.add_row(name, f"{value:.2f}", f"{share:.1%}")
    table.add_row("a step", f"{result.step:.2f}", "100.0%", style="bold")
    return table
