"""The ledger: an append-only file of what was planned, what ran and how it ended. It alone knows what is left to do.

One JSON object per line. A line is written in one piece under a lock; a line torn by a crash is skipped when read.
What is finished is a property of a cell (the digest of a configuration), so that another sweep never runs it again.
What was stopped early is a property of a cell *in a sweep*, whose other trials it was compared with.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock


@dataclass
class Proposal:
    """Trial `number` of a sweep: which values were to be tried, and the cell that they make."""

    number: int
    params: dict[str, Any]
    source: str
    cell: str


@dataclass
class Outcome:
    """How a cell ended last: "done", "stopped" or "failed", with its result row or its error."""

    status: str
    result: dict[str, Any]
    error: str | None = None
    time: float | None = field(default=None, compare=False)  # of the record, in seconds since 1970


@dataclass
class Sweep:
    """A named piece of work: its specification, the trials proposed so far, those it stopped early."""

    name: str
    spec: dict[str, Any]
    trials: int = 0
    began: float | None = None  # seconds since 1970
    proposals: dict[int, Proposal] = field(default_factory=dict)
    stopped: dict[str, Outcome] = field(default_factory=dict)


class Ledger:
    """Read and append. Reading is incremental: `refresh` takes in what other processes have added.

    Args:
        path: the file; made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweeps: dict[str, Sweep] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._offset = 0
        self.refresh()

    def append(self, event: str, **fields: Any) -> None:
        """Write one event to the disk before returning."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END) and _last_byte(file) != b"\n":
                line = "\n" + line  # a crash tore the last line; ours must not become part of it
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.refresh()

    def refresh(self) -> None:
        """Take in the events written since the last look."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            self._apply(event)

    def outcome(self, cell: str, sweep: str | None = None) -> Outcome | None:
        """How a cell ended: done by anyone, or stopped in this sweep, or failed; none while it is to do."""
        outcome = self._outcomes.get(cell)
        if outcome is not None and outcome.status == "done":
            return outcome
        if sweep in self.sweeps and cell in self.sweeps[sweep].stopped:
            return self.sweeps[sweep].stopped[cell]
        return outcome

    def finish(
        self, cell: str, status: str, result: Mapping[str, Any], *, sweep: str | None, error: str | None
    ) -> None:
        """Record how a cell ended."""
        self.append(status, cell=cell, sweep=sweep, result=dict(result), error=error)

    def withdraw(self, sweep: str) -> None:
        """Free the name of a sweep under which nothing was tried."""
        if not self.sweeps[sweep].proposals:
            self.append("withdrawn", sweep=sweep)

    def _apply(self, event: dict[str, Any]) -> None:
        kind, sweep = event.get("event"), self.sweeps.get(event.get("sweep") or "")
        if kind == "sweep":
            new = Sweep(event["name"], event["spec"], began=event.get("time"))
            known = self.sweeps.setdefault(event["name"], new)
            known.trials = max(known.trials, event["trials"])
            known.spec = event["spec"]  # the same, but for where its images lie
        elif kind == "withdrawn" and sweep and not sweep.proposals:
            del self.sweeps[sweep.name]
        elif kind == "proposed" and sweep:
            proposal = Proposal(event["number"], event["params"], event["source"], event["cell"])
            sweep.proposals[proposal.number] = proposal
        elif kind == "stopped" and sweep:
            sweep.stopped[event["cell"]] = Outcome("stopped", event["result"], time=event.get("time"))
        elif kind in ("done", "failed"):
            self._outcomes[event["cell"]] = Outcome(kind, event["result"], event.get("error"), event.get("time"))
        elif kind == "retry":
            self._outcomes.pop(event["cell"], None)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
