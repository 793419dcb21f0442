"""The state, in addition to the networks, from which a run that is interrupted inside an epoch resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from erat.defenses.base import EpochPlan, LossTerms, Phase, Update


class Interrupted(SystemExit):
    """Raised when training was told to leave and its checkpoint is written.

    It is not an error, so code that catches `Exception` does not catch it.
    """


@dataclass
class Underway:
    """An epoch under way: its plan, its progress, and the sums of the figures of its batches.

    Attributes:
        plan: the plan of the epoch.
        phase: the index of the present phase in the plan.
        batches: the number of batches of this phase that are done.
        order: the state of the random stream of the samples' order before the order of this phase is drawn; a
            checkpoint stores it as the state of that stream.
        sums: the sum of each loss term's figures and of each number that the defense noted, by name.
        times: the number of updates that had this figure or number, by name.
        noted: the names of those that are numbers of the defense.
        images: the number of images that this worker has processed.
        seconds: the seconds spent before an interruption.
    """

    plan: EpochPlan
    phase: int = 0
    batches: int = 0
    order: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)  # an update may lack some of the terms
    noted: set[str] = field(default_factory=set)
    images: int = 0
    seconds: float = 0.0

    def add(self, terms: LossTerms) -> None:
        """Add the figures of an update to the sums."""
        figures = terms.figures()
        for name, value in (figures | terms.numbers).items():
            if name not in self.sums:  # on the device of the loss, even if the number is on the CPU
                self.sums[name] = torch.zeros_like(figures["total"])
            self.sums[name] = self.sums[name] + value
            self.times[name] += 1
        self.noted |= terms.numbers.keys()

    def put(self, phase: Phase) -> None:
        """Replace the phase that is next by `phase`."""
        phases = list(self.plan.phases)
        phases[self.phase] = phase
        self.plan = replace(self.plan, phases=tuple(phases))

    def state(self, defense: nn.Module) -> dict[str, Any]:
        """Return the content for a checkpoint.

        It includes the non-persistent buffers of the defense, which are valid for one epoch and not in its state
        dictionary.
        """
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
        """Return the epoch under way that `state` described, and restore the buffers of the defense."""
        for name, buffer in defense.named_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
        plan = state["plan"]
        phases = tuple(Phase(**_on_cpu(phase) | {"turns": _turns(phase["turns"])}) for phase in plan["phases"])
        return cls(
            EpochPlan(**_on_cpu(plan) | {"phases": phases}),
            times=Counter(state["times"]),
            noted=set(state.get("noted", ())),  # absent in a checkpoint of an earlier version
            **{name: state[name] for name in _PLAIN},
        )


_PLAIN = ("phase", "batches", "sums", "images", "seconds")


def _turns(turns: Any) -> tuple[tuple[Update, ...], ...]:
    return tuple(tuple(Update(update["name"], tuple(update["networks"])) for update in turn) for turn in turns)


def _on_cpu(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in row.items()}
