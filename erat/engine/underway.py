"""What a run that is interrupted inside an epoch needs, beside its networks, to go on from there."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from erat.defenses.base import EpochPlan, LossTerms, Phase, Update


class Interrupted(SystemExit):
    """Training was told to leave, and its checkpoint is written. No error: it passes what catches those."""


@dataclass
class Underway:
    """An epoch under way: its plan, how far it is, and what its batches have come to.

    Attributes:
        phase, batches: where it is: so many batches of this phase are done.
        order: state of the stream that this phase's order is drawn from, before it is; a checkpoint has it as its own.
        sums, times: of the loss terms' figures and of the numbers that a defense noted, and how many updates had each.
        noted: which of these names are such numbers.
        images: seen by this worker.
        seconds: spent before an interruption.
    """

    plan: EpochPlan
    phase: int = 0
    batches: int = 0
    order: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)  # an update need not have every term
    noted: set[str] = field(default_factory=set)
    images: int = 0
    seconds: float = 0.0

    def add(self, terms: LossTerms) -> None:
        """Count an update's figures."""
        figures = terms.figures()
        for name, value in (figures | terms.numbers).items():
            if name not in self.sums:  # on the device of the loss: a number may lie on the CPU
                self.sums[name] = torch.zeros_like(figures["total"])
            self.sums[name] = self.sums[name] + value
            self.times[name] += 1
        self.noted |= terms.numbers.keys()

    def put(self, phase: Phase) -> None:
        """Let this phase take the place of the one that is next."""
        phases = list(self.plan.phases)
        phases[self.phase] = phase
        self.plan = replace(self.plan, phases=tuple(phases))

    def state(self, defense: nn.Module) -> dict[str, Any]:
        """For a checkpoint, with the buffers of the defense that hold for one epoch and are not part of its state."""
        kept = defense.state_dict()
        passing = {name: value for name, value in defense.named_buffers() if name not in kept}
        return {name: getattr(self, name) for name in _PLAIN} | {
            "plan": asdict(self.plan) | {"numbers": {name: float(value) for name, value in self.plan.numbers.items()}},
            "times": dict(self.times),
            "noted": sorted(self.noted),
            "buffers": passing,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], defense: nn.Module) -> Underway:
        """What `state` gave."""
        for name, buffer in defense.named_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
        plan = state["plan"]
        phases = tuple(Phase(**_on_cpu(phase) | {"turns": _turns(phase["turns"])}) for phase in plan["phases"])
        return cls(
            EpochPlan(**_on_cpu(plan) | {"phases": phases}),
            times=Counter(state["times"]),
            noted=set(state.get("noted", ())),  # none in a checkpoint of an earlier version
            **{name: state[name] for name in _PLAIN},
        )


_PLAIN = ("phase", "batches", "sums", "images", "seconds")


def _turns(turns: Any) -> tuple[tuple[Update, ...], ...]:
    return tuple(tuple(Update(update["name"], tuple(update["networks"])) for update in turn) for turn in turns)


def _on_cpu(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in row.items()}
