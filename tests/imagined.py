"""Studies on a simulated clock, with the project's own queue and ledger: only the trainings are imagined."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from erat.result import RunResult
from orchestration.search.observations import Observation, Sampler
from orchestration.search.queue import Queue
from orchestration.search.simulate import Course, simulate
from orchestration.study.ledger import Ledger
from orchestration.study.recorded import StudyRecord
from orchestration.study.registries import PRUNERS
from orchestration.study.spaces import SearchSpace
from orchestration.study.trial import Trial

ETA = "defense.eta"
NAME = "imagined"
Row = tuple[int, str, dict[str, Any], str, int, float | None]


class MemoryLedger(Ledger):
    """A ledger without a file."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))

    def append(self, event: str, **fields: Any) -> None:
        self._apply({"event": event, "time": 0.0, **fields})


class EveryWord:
    """A sampler whose values depend on everything that it was told before, and on the order of these calls.

    Args:
        values: number of different values that it proposes; few of them repeat each other.
    """

    def __init__(self, values: int = 10**6) -> None:
        self.values = values
        self.log: list[tuple[Any, ...]] = []
        self._digest = 0

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        self._note("given", number, dict(params))

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        drawn = {ETA: crc32(f"{self._digest} {number}".encode()) % self.values / self.values}
        params = dict(drawn if known is None else known)
        self._note("propose", number, params)
        return params

    def tell(self, number: int, observation: Observation) -> None:
        self._note("tell", number, replace(observation, cost=None))  # the cost is the only thing that a clock decides

    def _note(self, *entry: Any) -> None:
        self.log.append(entry)
        self._digest = crc32(repr(entry).encode(), self._digest)

    @property
    def told(self) -> list[tuple[int, str, int, float | None]]:
        """Return number, state, epochs and best accuracy of every observation."""
        entries = [(entry[1], entry[2]) for entry in self.log if entry[0] == "tell"]
        return [(number, seen.state, seen.epochs, seen.best_val_accuracy) for number, seen in entries]


class KilledError(Exception):
    """The driver was killed."""


@dataclass
class Imagined:
    """A study with imagined trainings.

    Attributes:
        pruner: name of its pruner.
        total: number of trials of the search.
        epochs: number of epochs of a trial.
        rungs: epochs of the rungs, for "halving".
        window: the window.
        block: size of a block.
        grace: see `SearchSpace`.
        points: values of the given points.
        runs: number of listed runs.
        listed: values of further listed runs, which the search may propose too.
        confirm: number of the best trials that are confirmed, and of seeds of each.
        fails: numbers of the trials that fail -> number of epochs that they do before.
        sampler: makes the sampler of each start of the driver.
        ledger: what is left when the driver is killed.
        offered: number of the moments at which the driver could have been killed.
    """

    pruner: str = "halving"
    total: int = 12
    epochs: int = 6
    rungs: Sequence[int] = (2, 4)
    window: int = 4
    block: int = 4
    grace: float = 0.3
    points: Sequence[float] = ()
    runs: int = 0
    listed: Sequence[float] = ()
    confirm: tuple[int, int] = (0, 1)
    fails: Mapping[int, int] = field(default_factory=dict)
    sampler: Callable[[], Sampler] = EveryWord
    ledger: Ledger = field(default_factory=MemoryLedger)
    offered: int = 0
    last: Any = None

    def __post_init__(self) -> None:
        self.ledger.append("sweep", name=NAME, spec={}, trials=self.total)

    @property
    def record(self) -> StudyRecord:
        return self.ledger.studies[NAME]

    def extended(self, total: int) -> Imagined:
        """Extend the study, and return it."""
        self.total = total
        self.ledger.append("sweep", name=NAME, spec={}, trials=total)
        return self

    def trial(self, number: int, source: str, params: dict[str, Any]) -> Trial:
        config = {"train.epochs": self.epochs, "train.seed": 0, **params}
        trial = Trial(number, f"{crc32(repr(sorted(config.items())).encode()):08x}", params, source, config)
        return self.ledger.with_outcome(trial, NAME)

    def queue(self, **more: Any) -> Queue:
        """Return the queue of the study as it stands in the ledger."""
        self.last = self.sampler()
        settings = {"rungs": list(self.rungs), "grace": self.grace, "pruner": self.pruner}
        space = SearchSpace(name=NAME, about="x", parameters={ETA: {"low": 0, "high": 1}}, **settings)  # type: ignore[arg-type, dict-item]
        options: dict[str, Any] = {
            "runs": [{"defense.lambda_u": float(n)} for n in range(self.runs)]
            + [{ETA: value} for value in self.listed],
            "points": [{ETA: value} for value in self.points],
            "total": self.total,
            "window": self.window,
            "sampler": self.last,
            "pruner": PRUNERS[self.pruner](space, self.epochs),
            "block": self.block,
            "known": dict(self.record.proposals),
            "trial_of": self.trial,
            "on_proposed": self._proposed,
            "epochs": self.epochs,
            "totals": self.record.totals,
            "promoted": dict(self.record.promoted),
            "on_promoted": lambda trial, epoch: self._write("promoted", number=trial.number, epoch=epoch),
            "on_stopped": lambda trial: self._finish(trial.so_far),
            "confirm_top": self.confirm[0],
            "confirm_seeds": self.confirm[1],
        }
        return Queue(**options | more)

    def curve(self, trial: Trial) -> list[float]:
        """Return the accuracies of a trial, as a function of its settings alone; fewer if it fails."""
        draw = random.Random(trial.cell)
        top = 0.9 - 0.3 * (trial.params.get(ETA, 0.5) - 0.3) ** 2
        curve = [round(top * (1 - 0.5**epoch) + draw.uniform(-0.1, 0.1), 6) for epoch in range(1, self.epochs + 1)]
        return curve[: self.fails.get(trial.number, self.epochs)]

    def run(self, slots: int, lengths: int = 0, *, kill_at: int | None = None) -> Course:
        """Run the study to its end.

        Args:
            slots: number of trials that run at a time.
            lengths: seed of the lengths of the trials, whose mean is 1 for all their epochs.
            kill_at: number of moments, among those at which the driver can be killed, after which it is.

        Raises:
            KilledError: It was killed; another call goes on.
        """
        self.offered, self._kill_at = 0, kill_at
        queue = self.queue()
        record = queue.record

        def recording(number: int, result: RunResult, mlflow_run_id: str | None = None) -> Trial:
            self._may_die()
            made = record(number, result, mlflow_run_id)
            if made.ended or made.status == "paused":
                self._finish(result)
            return made

        queue.record = recording  # type: ignore[method-assign]
        draw = random.Random(lengths)
        length = [max(0.3, draw.gauss(1, 0.2)) / self.epochs for _ in range(97)]
        return simulate(queue, slots, lambda trial: length[trial.number % 97], self.curve)

    def killed(self, kills: Sequence[int], slots: Sequence[int], lengths: Sequence[int]) -> Course:
        """Run the study to its end, with a kill after each of these numbers of moments, and return the last course.

        Args:
            kills: the numbers.
            slots: number of trials that run at a time, for each start in turn.
            lengths: seeds of the lengths, for each start in turn.
        """
        for start, kill in enumerate(kills):
            try:
                return self.run(slots[start % len(slots)], lengths[start % len(lengths)], kill_at=kill)
            except KilledError:
                continue
        return self.run(slots[-1], lengths[-1])

    def _proposed(self, trial: Trial) -> None:
        if trial.number not in self.record.proposals:
            fields = {"number": trial.number, "params": trial.params, "source": trial.source, "cell": trial.cell}
            self._write("proposed", **fields)

    def _finish(self, result: RunResult) -> None:
        self._may_die()
        self.ledger.finish(result, sweep=NAME)
        self._may_die()

    def _write(self, event: str, **fields: Any) -> None:
        self._may_die()
        self.ledger.append(event, sweep=NAME, **fields)
        self._may_die()

    def _may_die(self) -> None:
        self.offered += 1
        if self._kill_at is not None and self.offered > self._kill_at:
            raise KilledError

    _kill_at: int | None = None


def table(course: Course) -> list[Row]:
    """Return number, source, values, status, epochs and best accuracy of each trial."""
    return [(t.number, t.source, t.params, t.status, t.epoch, t.best_val_accuracy) for t in course.trials]
