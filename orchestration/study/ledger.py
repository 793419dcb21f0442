"""The ledger: an append-only file of what was planned, what ran and how it ended. It alone knows what is left to do.

One JSON object per line, of a form that `records` fixes. A line is written in one piece under a lock. When the file is
read, a line torn by a crash and an event of a later version are passed over; any other line that is none of these
events is passed over with a warning.
What is finished is a property of a cell (the digest of a configuration), so that another sweep never runs it again.
What was stopped early is a property of a cell *in a sweep*, whose other trials it was compared with.
"""

from __future__ import annotations

import json
import time
import warnings
from codecs import BOM_UTF8
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erat.errors import UserError
from erat.locks import held
from erat.records import DamagedError, append_line, open_regular, why
from erat.result import RunResult
from orchestration.storage.forms import EVENTS, lacks
from orchestration.study.trial import Trial

MOST_LINE = 2**26  # bytes; a sweep of 10,000 cells is entered in a line of two million
_READ = 2**23  # bytes at once
_TORN = b'{"event": "'  # how each of our own lines begins


@dataclass(frozen=True, slots=True)
class RecordedResult(RunResult):
    """How a cell ended last, as the ledger has it.

    Attributes:
        mlflow_run_id: the run in MLflow that was told of it.
        time: of the record, in seconds since 1970.
    """

    mlflow_run_id: str | None = None
    time: float | None = None


@dataclass
class StudyRecord:
    """A named piece of work: its specification, the trials proposed so far, how those ended that it stopped early."""

    name: str
    spec: dict[str, Any]
    trials: int = 0
    began: float | None = None  # seconds since 1970
    proposals: dict[int, Trial] = field(default_factory=dict)
    stopped: dict[str, RecordedResult] = field(default_factory=dict)


class Ledger:
    """Read and append. Reading is incremental: `refresh` takes in what other processes have added.

    Args:
        path: the file; made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.studies: dict[str, StudyRecord] = {}
        self._outcomes: dict[str, RecordedResult] = {}
        self._offset = self._lines = 0
        self._within = False  # a line that is too long to be read
        self._foreign, self._first_foreign = 0, ""
        self.refresh()

    def append(self, event: str, **fields: Any) -> None:
        """Write one event to the disk before returning; of one that does not fit on it nothing stays.

        Raises:
            UserError: another process holds the ledger, or it is no file.
            OSError: it cannot be written.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with held(self.path.with_name(f"{self.path.name}.lock")):
            try:
                append_line(self.path, line.encode())
            except DamagedError as error:
                raise self._unusable(error) from error
        self.refresh()

    def refresh(self) -> None:
        """Take in the events written since the last look; warn of lines that are no events.

        Raises:
            UserError: the ledger is no file, or cannot be read.
        """
        if not self.path.is_symlink() and not self.path.exists():
            return
        before = self._foreign
        try:
            file = open_regular(self.path)
        except (DamagedError, OSError) as error:
            raise self._unusable(error) from error
        with file:
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(_READ):
                rest = self._take_in(rest + chunk)
        if self._foreign > before:
            lines = "1 line was" if self._foreign == 1 else f"{self._foreign} lines were"
            warnings.warn(f"{self.path}: {lines} not understood and passed over ({self._first_foreign})", stacklevel=3)

    def _unusable(self, error: DamagedError | OSError) -> UserError:
        reason = error.strerror if isinstance(error, OSError) else error
        return UserError(f"the ledger {self.path} cannot be read: {reason}; move it away to begin anew")

    def _take_in(self, content: bytes) -> bytes:
        """Apply the whole lines of `content`; what is left of it belongs to a line that is not whole yet."""
        *lines, rest = content.split(b"\n")
        for line in lines:
            self._lines += 1
            if self._within or len(line) > MOST_LINE:
                self._pass_over(f"longer than {MOST_LINE:,} bytes")
                self._within = False
            else:
                self._read(line)
        if len(rest) > MOST_LINE or self._within:
            self._within, rest = True, b""
        self._offset += len(content) - len(rest)
        return rest

    def _read(self, line: bytes) -> None:
        try:
            event = EVENTS.validate_json(line.removeprefix(BOM_UTF8) if self._lines == 1 else line)
        except ValidationError as error:
            if line.strip() and not _of_no_concern(line, error):
                self._pass_over(why(error))
            return
        if event["event"] in ("done", "stopped", "failed") and (lack := lacks(event["result"], event["event"])):
            self._pass_over(lack)
        else:
            self._apply(event)

    def _pass_over(self, reason: str) -> None:
        self._first_foreign = self._first_foreign or f"line {self._lines}: {reason}"
        self._foreign += 1

    def outcome(self, cell: str, sweep: str | None = None) -> RecordedResult | None:
        """How a cell ended: done by anyone, or stopped in this sweep, or failed; none while it is to do."""
        outcome = self._outcomes.get(cell)
        if outcome is not None and outcome.status == "done":
            return outcome
        if sweep in self.studies and cell in self.studies[sweep].stopped:
            return self.studies[sweep].stopped[cell]
        return outcome

    def with_outcome(self, trial: Trial, sweep: str | None = None) -> Trial:
        """The trial with its result, if it has ended; see `outcome`."""
        ended = self.outcome(trial.cell, sweep)
        return trial if ended is None else replace(trial, result=ended, mlflow_run_id=ended.mlflow_run_id)

    def finish(self, result: RunResult, *, sweep: str | None, mlflow_run_id: str | None = None) -> None:
        """Record how a cell ended."""
        content = asdict(result) | {"mlflow_run_id": mlflow_run_id}
        self.append(result.status, cell=result.cell, sweep=sweep, result=content, error=result.error)

    def withdraw(self, sweep: str) -> None:
        """Free the name of a sweep under which nothing was tried."""
        if not self.studies[sweep].proposals:
            self.append("withdrawn", sweep=sweep)

    def _apply(self, event: dict[str, Any]) -> None:
        kind, sweep = event["event"], self.studies.get(event.get("sweep") or "")
        if kind == "sweep":
            new = StudyRecord(event["name"], event["spec"], began=event.get("time"))
            known = self.studies.setdefault(event["name"], new)
            known.trials = max(known.trials, event["trials"])
            if all(event["spec"].get(key) == known.spec.get(key) for key in ("space", "base")):
                known.spec = event["spec"]  # the same, but for where its images lie
        elif kind == "withdrawn" and sweep and not sweep.proposals:
            del self.studies[sweep.name]
        elif kind == "proposed" and sweep:
            trial = Trial(event["number"], event["cell"], event["params"], event["source"])
            sweep.proposals[trial.number] = trial
        elif kind == "stopped" and sweep:
            sweep.stopped[event["cell"]] = _result(event)
        elif kind in ("done", "failed"):
            self._outcomes[event["cell"]] = _result(event)
        elif kind == "retry":
            self._outcomes.pop(event["cell"], None)


def _result(event: dict[str, Any]) -> RecordedResult:
    known = {"cell": event["cell"], "status": event["event"], "time": event.get("time")}
    return RecordedResult.of({"error": event.get("error")} | event["result"] | known)


def _of_no_concern(line: bytes, error: ValidationError) -> bool:
    """Whether a line is an event of a later version, or the beginning of one of ours that a crash tore."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_invalid":
        return isinstance(first["input"].get("event"), str)
    return first["type"] == "json_invalid" and line.startswith(_TORN) and "EOF while" in first["msg"]
