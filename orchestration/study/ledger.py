"""The ledger: an append-only file of what was planned, what ran and how it ended. It alone decides what is left to do.

Each line is one JSON object, an event of a schema in `orchestration.storage.forms`. A line is written in one piece
under a lock. When the file is read, lines torn by a crash and events of a later version are ignored; any other line
that is not a known event is ignored with a warning.

While a study runs, a thread writes what waits in one piece, with one wait for the disk (`Ledger.in_background`). Every
entry counts in this process at once, and is on the disk some moments later. That suffices, because a driver that is
killed in between can make each entry that is lost once more, from what is on the disk by then:

- "sweep" does not lag: it is written before the thread begins, with the window and all else that decides the trials.
- "proposed" and "promoted" follow from the results of the trials before the window, so that the same values and the
  same decisions are made again. A run that had begun meanwhile has the same cell, and goes on from its checkpoint.
- "done", "stopped", "failed" and "paused" repeat what is in the directory of the run, which is written first. They also
  wait until the tracker has sent or kept all of that run, because nobody would complete an ended run in MLflow. What
  only the entry makes superfluous (a stop request, the checkpoints of a run that was stopped at a rung) is deleted when
  the entry is on the disk.
- "tracked" saves a search in MLflow. A proposal that was on the disk, and whose MLflow run is not, is searched for; so
  the tracker sends nothing before the entries made until then are on the disk.

That a run is done holds for its cell, the digest of its configuration, so that no other study executes it again. That
a run was stopped early holds for its cell *in one study*, because it was compared with the trials of that study.

A long ledger is not read from its beginning each time: `orchestration.study.snapshot` keeps beside it what its first
part says, study by study, so that whoever opens a study takes in that one alone. It may be deleted at any time, and
nothing is lost with it. All studies of a workspace have one ledger, because a run that is done counts in each of them.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import threading
import time
import warnings
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erat.errors import UserError
from erat.locks import held
from erat.records import DamagedError, append_line, open_regular, why
from erat.result import RunResult
from orchestration.storage.background import Background
from orchestration.storage.forms import EVENTS, lacks
from orchestration.study import snapshot
from orchestration.study.recorded import RecordedResult, StudyRecord
from orchestration.study.snapshot import Records
from orchestration.study.trial import NO_CONFIG, Trial

MOST_LINE = 2**26  # bytes; the line that enters a study of 10,000 runs has two million
_READ = 2**23  # bytes that are read at a time
_TORN = b'{"event": "'  # the beginning of every line that this program writes


class Ledger:
    """The content of a ledger file, and the means to append to it.

    Reading is incremental: `refresh` reads the lines that other processes have added. Any thread may append.

    Args:
        path: path of the file, which is created with the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.studies: Records[StudyRecord] = Records()
        self._outcomes: Records[RecordedResult] = Records()
        self._offset = self._lines = 0
        self._within = False  # whether the last chunk ended inside a line that is too long
        self._foreign, self._first_foreign, self._warned = 0, "", 0
        self._background: Background | None = None
        self._waiting: list[tuple[bytes, Callable[[], None] | None]] = []  # lines to write, and what to call then
        self._memory = threading.RLock()  # held while the content or the list of waiting lines changes
        self._writing = threading.RLock()  # held while this process writes to the file
        self._digest: Any = hashlib.sha256()  # of the bytes before `_offset`, until the file was read once
        self._open()

    def _open(self) -> None:
        """Read the file, as far as possible from its snapshot, and renew the snapshot if much has come since."""
        with _collector_paused(snapshot.is_there(self.path)):
            kept = snapshot.read(self.path)
        if kept is not None:
            self.studies, self._outcomes, self._digest = kept.studies, kept.outcomes, kept.digest
            self._offset, self._lines, self._foreign, self._first_foreign = kept.place
            self.studies.anew = self._outcomes.anew = self._read_anew
        before = self._offset
        self.refresh()
        if not self._within and snapshot.is_due(before, self._offset):
            place = (self._offset, self._lines, self._foreign, self._first_foreign)
            snapshot.write(self.path, snapshot.Snapshot(self.studies, self._outcomes, self._digest, place))
        self._digest = None

    def _read_anew(self) -> None:
        """Read the file from its beginning, because the snapshot has something that no ledger has."""
        with self._memory:
            self.studies.anew = self._outcomes.anew = None
            self.studies.clear()
            self._outcomes.clear()
            self._offset = self._lines = self._foreign = 0
            self._within, self._first_foreign = False, ""
            self._refresh()

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Write in a thread during the block; see the module. At its end, everything is on the disk.

        All of the snapshot is read before, because what this process knows first could not be read anew.

        Raises:
            OSError, UserError: The rest cannot be written; as for `append`.
        """
        for records in (self.studies, self._outcomes):
            records.load()
        self._background = Background("ledger", self.flush)
        try:
            yield
        finally:
            thread, self._background = self._background, None
            thread.close()
            self.flush()

    def append(self, event: str, *, then: Callable[[], None] | None = None, noted: bool = False, **fields: Any) -> None:
        """Append one event. It is on the disk on return, or soon `in_background`.

        If the disk is full, no part of the event remains.

        Args:
            event: kind of the event.
            then: called when the event is on the disk.
            noted: whether `note` has been called for this event.
            fields: its fields; see `orchestration.storage.forms`.

        Raises:
            UserError: Another process holds the ledger's lock, or the path is not a regular file.
            OSError: The file cannot be written. `in_background`, this may be the error of an earlier event.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str).encode()
        if (background := self._background) is None:
            with self._writing:
                self.flush()
                self._write([line], noted=False)
            if then is not None:
                then()
            return
        background.check()
        with self._memory:
            if not noted:
                self._read(line)
            self._waiting.append((line, then))
        background.wake()

    def check(self) -> None:
        """Raise the error because of which nothing can be written `in_background` any more, if there is one."""
        if self._background is not None:
            self._background.check()

    def flush(self) -> None:
        """Write the events that wait, and return when they are on the disk.

        Raises:
            OSError, UserError: As for `append`. What could not be written goes on waiting.
        """
        with self._writing:
            with self._memory:
                waiting = list(self._waiting)
            if waiting:
                self._write([line for line, _ in waiting], noted=True)
                with self._memory:
                    del self._waiting[: len(waiting)]
        for _, then in waiting:
            if then is not None:
                then()

    def _write(self, lines: Sequence[bytes], *, noted: bool) -> None:
        """Append lines in one piece and take them in, unless they are noted already."""
        content = b"\n".join(lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with held(self.path.with_name(f"{self.path.name}.lock")):
            if noted:
                self.refresh()  # what others have written, so that nothing but these lines follows
            try:
                append_line(self.path, content)
            except DamagedError as error:
                raise self._unusable(error) from error
            with self._memory:
                after = self._offset + len(content) + 1
                if noted and self.path.stat().st_size == after:  # else, the line before was torn
                    self._offset, self._lines = after, self._lines + len(lines)
        self.refresh()

    def refresh(self) -> None:
        """Read the events that were appended since the last call, and warn about lines that are not events.

        Raises:
            UserError: The ledger is not a regular file, or cannot be read.
        """
        with self._memory:
            self._refresh()

    def _refresh(self) -> None:
        if not self.path.is_symlink() and not self.path.exists():
            return
        try:
            file = open_regular(self.path)
        except (DamagedError, OSError) as error:
            raise self._unusable(error) from error
        with file, _collector_paused(os.fstat(file.fileno()).st_size - self._offset > _READ):
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(_READ):
                rest = self._take_in(rest + chunk)
        if self._foreign > self._warned:
            self._warned = self._foreign
            lines = "1 line was" if self._foreign == 1 else f"{self._foreign} lines were"
            warnings.warn(f"{self.path}: {lines} not understood and passed over ({self._first_foreign})", stacklevel=4)

    def _unusable(self, error: DamagedError | OSError) -> UserError:
        reason = error.strerror if isinstance(error, OSError) else error
        return UserError(f"the ledger {self.path} cannot be read: {reason}; move it away to begin anew")

    def _take_in(self, content: bytes) -> bytes:
        """Apply the complete lines of `content`, and return the rest, which begins a line that is not complete yet."""
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
        taken = len(content) - len(rest)
        if self._digest is not None:
            self._digest.update(memoryview(content)[:taken])
        self._offset += taken
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
        """Return how a run ended, or None if it is still to be done.

        A run that is done counts in every study, and one that was stopped early only in the study that stopped it.

        Args:
            cell: digest of the run's configuration.
            sweep: name of the study; None for a run outside any study.
        """
        outcome = self._outcomes.get(cell)
        if outcome is not None and outcome.status == "done":
            return outcome
        study = self.studies.get(sweep or "")
        return outcome if study is None else study.stopped.get(cell, outcome)

    def done(self) -> dict[str, RecordedResult]:
        """Return digest of a run -> its result, for all runs that are done, in whatever study or outside any."""
        return {cell: outcome for cell, outcome in self._outcomes.items() if outcome.status == "done"}

    def with_outcome(self, trial: Trial, sweep: str | None = None) -> Trial:
        """Return the trial with the result of its run, or unchanged if the run has not ended; see `outcome`.

        A trial that waits at a rung has the result that it had there, with the status "paused", or "queued" once it has
        been promoted. A listed run or a confirmation with the configuration of such a trial is neither stopped
        nor paused.
        """
        searched, study = trial.source not in ("baseline", "confirm"), self.studies.get(sweep or "")
        if study is not None and (rung := study.promoted.get(trial.number, 0)):
            trial = replace(trial, promoted=rung)
        ended = self.outcome(trial.cell, sweep if searched else None)
        if ended is None and searched and study is not None:
            ended = study.paused.get(trial.cell)
            if ended is not None and trial.promoted >= ended.epochs:
                ended = replace(ended, status="queued")
        if ended is None:
            return trial
        run_id = ended.mlflow_run_id
        if sweep is not None and ended.sweep == sweep:  # the run may have been made, or made anew, after its end
            run_id = self.studies[sweep].tracked.get(trial.cell, run_id)
        return replace(trial, result=ended, mlflow_run_id=run_id)

    def note(self, result: RunResult, *, sweep: str | None, mlflow_run_id: str | None = None) -> None:
        """Let a result count in this process from now on; `finish` has it written, with `noted=True`.

        Args:
            result: the result of a run.
            sweep: name of the study; None for a run outside any study.
            mlflow_run_id: id of the run in MLflow; None if it is not known yet.
        """
        content = asdict(result) | {"mlflow_run_id": mlflow_run_id}
        event = {"event": result.status, "cell": result.cell, "sweep": sweep, "result": content}
        with self._memory:
            self._apply(event | {"time": round(time.time(), 3)})

    def is_wanted(self, cell: str, but: str) -> bool:
        """Return whether a run waits at a rung, or is to go on from there, in another study than `but`."""
        others = [study for name, study in self.studies.items() if name != but]
        return any(cell in study.paused and cell not in study.stopped for study in others)

    def finish(
        self,
        result: RunResult,
        *,
        sweep: str | None,
        mlflow_run_id: str | None = None,
        then: Callable[[], None] | None = None,
        noted: bool = False,
    ) -> None:
        """Record how a run ended, or that it waits at a rung.

        Args:
            result: the result of the run.
            sweep: name of the study; None for a run outside any study.
            mlflow_run_id: id of the run in MLflow.
            then: called when the result is on the disk.
            noted: whether `note` has been called with this result.
        """
        content = asdict(result) | {"mlflow_run_id": mlflow_run_id}
        fields = {"cell": result.cell, "sweep": sweep, "result": content, "error": result.error}
        self.append(result.status, then=then, noted=noted, **fields)

    def withdraw(self, sweep: str) -> None:
        """Remove a study from which no trial was proposed, so that its name is free again. Do nothing otherwise."""
        if not self.studies[sweep].proposals:
            self.append("withdrawn", sweep=sweep)

    def _apply(self, event: dict[str, Any]) -> None:
        kind, sweep = event["event"], self.studies.get(event.get("sweep") or "")
        if kind == "sweep":
            new = StudyRecord(event["name"], event["spec"], began=event.get("time"))
            known = self.studies.setdefault(event["name"], new)
            if event["trials"] > known.trials or not known.totals:
                known.totals.append(event["trials"])
                if "window" in event:
                    known.windows[event["trials"]] = event["window"]
            known.trials = max(known.trials, event["trials"])
            if all(event["spec"].get(key) == known.spec.get(key) for key in ("space", "base")):
                known.spec = event["spec"]  # the same specification, except that the images may be elsewhere now
        elif kind == "withdrawn" and sweep and not sweep.proposals:
            del self.studies[sweep.name]
        elif kind == "proposed" and sweep:
            trial = Trial(event["number"], event["cell"], event["params"], event["source"], NO_CONFIG)
            sweep.proposals[trial.number] = trial
        elif kind == "stopped" and sweep:
            sweep.stopped[event["cell"]] = _result(event)
        elif kind == "paused" and sweep:
            sweep.paused[event["cell"]] = _result(event)
        elif kind == "promoted" and sweep:
            sweep.promoted[event["number"]] = event["epoch"]
        elif kind == "tracked" and sweep:
            sweep.tracked[event["cell"]] = event["mlflow_run_id"]
        elif kind == "place" and sweep:
            sweep.out.pop(event["where"], None)
            if event["out"] is not None:
                sweep.out[event["where"]] = event["out"]
        elif kind in ("done", "failed"):
            self._outcomes[event["cell"]] = _result(event)
        elif kind == "retry":
            self._outcomes.pop(event["cell"], None)


@contextmanager
def _collector_paused(pause: bool) -> Iterator[None]:
    """Pause Python's collector of circular references during the block, if `pause`.

    While hundreds of thousands of events are read, it would look at all of them again and again, and free none.
    """
    pause = pause and gc.isenabled()
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()


def _result(event: dict[str, Any]) -> RecordedResult:
    known = {"cell": event["cell"], "status": event["event"], "time": event.get("time"), "sweep": event.get("sweep")}
    return RecordedResult.of({"error": event.get("error")} | event["result"] | known)


def _of_no_concern(line: bytes, error: ValidationError) -> bool:
    """Return whether a line can be ignored: an event of a later version, or an event that a crash cut off."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_invalid":
        return isinstance(first["input"].get("event"), str)
    return first["type"] == "json_invalid" and line.startswith(_TORN) and "EOF while" in first["msg"]
