"""The directory of a run: the names of its files, how they are read and written, and which go to the shared storage.

The files are `config.json`, `checkpoint.pt` and (until the run ends) the previous checkpoint, `metrics.jsonl` (one row
per epoch), `result.json`, `error.txt`, `left.txt` (how far a preempted run was) and the folder `artifacts/`. While a
run is at work there is also `heartbeat`, and maybe a stop request. A run resumes from these files, and by them the
driver learns how it ended. The figures of an epoch also travel in a trial's report, so that none waits for a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import TypeAdapter

from erat.errors import UserError
from erat.files import previous, write_atomic
from erat.records import DamagedError, read_json, read_rows, read_words
from erat.result import RunResult
from orchestration.storage.forms import (
    CONFUSION,
    ENVIRONMENT,
    EPOCH_ROW,
    RESULT,
    SELECTION,
    Confusion,
    Environment,
    Selection,
    lacks,
    warn_damaged,
)
from orchestration.storage.workspace import Workspace, move_aside

if TYPE_CHECKING:
    from erat.config import RunConfig
    from erat.engine.report import EpochReport
    from orchestration.storage.lease import Lease

T = TypeVar("T")
CONFIG, CHECKPOINT, METRICS = "config.json", "checkpoint.pt", "metrics.jsonl"
RESULT_FILE, ERROR, LEFT = "result.json", "error.txt", "left.txt"
# STATE is what a run resumes from, ENDS says how a run ended.
STATE, ENDS = (CHECKPOINT, METRICS, previous(Path(CHECKPOINT)).name), (RESULT_FILE, ERROR, LEFT)


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run, in a workspace and, if the workspace has a storage, also there.

    Attributes:
        workspace: the workspace that contains the directory.
        cell: digest of the run's configuration, which is the directory's name.
        lease: the right of the worker that executes the run to write to the storage. None: this process does not
            execute it, or there is no storage.
    """

    workspace: Workspace
    cell: str
    lease: Lease | None = None

    @property
    def path(self) -> Path:
        """Return the folder of the run in the workspace."""
        return self.workspace.run_directory(self.cell)

    @property
    def artifacts(self) -> Path:
        """Return the folder of the files that a finished run leaves for the tracker and for reports."""
        return self.path / "artifacts"

    @property
    def log(self) -> Path:
        """Return the file that says why the run failed or could not begin."""
        return self.path / ERROR

    @property
    def heartbeat(self) -> Path:
        """Return the heartbeat file, which the process that executes this run touches every few seconds."""
        return self.path / "heartbeat"

    @property
    def lock(self) -> Path:
        """Return the file that a process keeps locked while it executes this run."""
        return self.path / ".lock"

    # -- copies on the shared storage -------------------------------------------------------------------------------

    def fetch(self, *names: str) -> None:
        """Download files from the storage, and delete local files that it lacks. Do nothing without a storage.

        Args:
            names: paths of files, relative to the run's folder.
        """
        storage = self.workspace.storage
        if storage is not None:
            for name in names:
                storage.fetch(f"cells/{self.cell}/{name}", self.path / name)

    def send(self, *names: str, overtaken: Callable[[], bool] = lambda: False) -> None:
        """Upload files to the storage, and delete there those that do not exist here. Do nothing without a storage.

        When a checkpoint is uploaded, the storage itself keeps the previous one, so that no second file is sent.

        Args:
            names: paths of files, relative to the run's folder.
            overtaken: returns whether newer ones will be sent in a moment; see `Storage.write`.

        Raises:
            LeaseLostError: This worker does not hold the run any more; nothing was uploaded.
        """
        storage = self.workspace.storage
        if storage is not None:
            if self.lease is not None:
                self.lease.check()
            for name in names:
                file = self.path / name
                if file.exists():
                    where, keep = f"cells/{self.cell}/{name}", name == CHECKPOINT
                    storage.send(file, where, keep_previous=keep, overtaken=overtaken)
                else:
                    storage.remove(f"cells/{self.cell}/{name}")

    def fetch_artifacts(self) -> None:
        """Download all artifacts that the storage has of this run. Do nothing without a storage."""
        storage = self.workspace.storage
        if storage is not None:
            self.fetch(*(f"artifacts/{name}" for name in storage.names(f"cells/{self.cell}/artifacts")))

    # -- the course of a run ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the folder of a run that is about to begin.

        Whatever has the name of one of the run's files but is not a file (or not a folder, for `artifacts/`) is
        renamed, with a warning.
        """
        move_aside(self.path, folder=True)
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, *STATE, *ENDS, self.heartbeat.name):
            move_aside(self.path / name, folder=False)
        move_aside(self.artifacts, folder=True)

    def begin(self, config: RunConfig) -> None:
        """Write the configuration, and delete the files that say how an earlier attempt ended."""
        self._remove(*ENDS)
        write_atomic(self.path / CONFIG, config.model_dump_json(indent=2).encode())
        self.send(CONFIG, *ENDS)

    def forget(self) -> None:
        """Delete checkpoints, metrics and result, here and on the storage, so that the run begins from the start."""
        self._remove(*STATE, *ENDS)
        self.send(*STATE, *ENDS)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints, here and on the storage."""
        self._remove(CHECKPOINT, STATE[-1])
        self.send(CHECKPOINT, STATE[-1])

    def write_metrics(self, history: Sequence[EpochReport]) -> None:
        """Rewrite the whole file of metrics, so that after a resume it has exactly the epochs of the checkpoint.

        Args:
            history: one report per epoch, from the first.
        """
        lines = "".join(json.dumps(asdict(report)) + "\n" for report in history)
        write_atomic(self.path / METRICS, lines.encode())

    def copy_metrics(self, rows: Sequence[Mapping[str, Any]], *, anew: bool) -> None:
        """Keep figures that came in reports where the run itself writes elsewhere; a resume does not read them.

        Args:
            rows: one row per epoch, from the first.
            anew: whether to write all of them; otherwise only the last one is new.
        """
        file = self.path / METRICS
        if anew or len(rows) == 1 or not file.exists():
            write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
            return
        with file.open("a") as copy:
            copy.write(json.dumps(rows[-1]) + "\n")

    def refuse(self, reason: str) -> None:
        """Record in `error.txt` why the run could not begin."""
        write_atomic(self.log, reason.encode())
        self.send(ERROR)

    def leave(self, reason: str) -> None:
        """Record how far the run was when its worker was preempted; its checkpoint is on the storage already."""
        write_atomic(self.path / LEFT, reason.encode())
        self.send(METRICS, LEFT)

    def keep_result(self, result: RunResult) -> None:
        """Record how the run ended, and delete the previous checkpoint of a run that is done.

        A run that was stopped or paused keeps both checkpoints, and may go on from them.

        If the workspace has a storage, the files are moved there; the checkpoints are there already, since each is
        uploaded when it is written. The result is uploaded last, so that a run with a result has all its other files.
        """
        attempt = {} if self.lease is None else {"attempt": self.lease.attempt}
        write_atomic(self.path / RESULT_FILE, json.dumps(asdict(result) | attempt, indent=2).encode())
        if self.workspace.place is not None:
            kept = sorted(f"artifacts/{file.name}" for file in self.artifacts.glob("*"))
            self.send(*kept, *(name for name in (METRICS, ERROR) if (self.path / name).exists()))
            self.send(RESULT_FILE)
            self._remove(*kept, *STATE, *ENDS)
        if result.status == "done":
            self._remove(STATE[-1])
            self.send(STATE[-1])

    def _remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    # -- reading ----------------------------------------------------------------------------------------------------

    def read_result(self) -> RunResult | None:
        """Return the result, or None if there is none. Warn and return None if it is damaged or of another run.

        Raises:
            OSError: The file exists and cannot be read.
        """
        file = self.path / RESULT_FILE
        try:
            found = read_json(file, RESULT)
            if missing := [key for key in ("cell", "status") if key not in found]:
                raise DamagedError(f"{missing[0]} is missing")
            if found["cell"] != self.cell:
                raise DamagedError(f"it is of another cell, {found['cell']}")
            if lack := lacks(found, found["status"]):
                raise DamagedError(lack)
        except DamagedError as error:
            warn_damaged(file, str(error), "the cell counts as not finished")
            return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        return RunResult.of(found)

    def attempt_of_result(self) -> int | None:
        """Return the number of the attempt that left the result; None if it has none, or there is no result."""
        try:
            return read_json(self.path / RESULT_FILE, RESULT).get("attempt")
        except (OSError, DamagedError):
            return None

    def read_config(self) -> RunConfig | None:
        """Return the configuration; None if it cannot be read, or this version makes another run of it."""
        from pydantic import ValidationError

        from erat.config import RunConfig

        try:
            config = RunConfig.model_validate_json((self.path / CONFIG).read_bytes())
        except (OSError, ValidationError, UserError):
            return None
        return config if config.digest() == self.cell else None

    def read_error(self) -> str | None:
        """Return why the run failed or could not begin, or None if no reason is recorded."""
        return read_words(self.log)

    def read_departure(self) -> str | None:
        """Return how far the run was when its worker was preempted; None if it was not since it last began."""
        return read_words(self.path / LEFT)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return one row per epoch so far, from epoch 1.

        If the file is damaged, warn and return only the rows before the damage.
        """
        file = self.path / METRICS
        try:
            rows, damage = read_rows(file, EPOCH_ROW)
        except OSError:
            return []
        whole = next((done for done, row in enumerate(rows) if row["epoch"] != done + 1), len(rows))
        if whole < len(rows):
            damage = damage or f"line {whole + 1}: epoch must be {whole + 1}, got {rows[whole]['epoch']}"
        if damage is not None:
            warn_damaged(file, damage, f"{whole} epochs of it count")
        return cast("list[dict[str, Any]]", rows[:whole])

    def read_environment(self) -> Environment | None:
        """Return the code versions and the machine of a finished run; None if the file is missing or damaged."""
        return self._artifact("environment.json", ENVIRONMENT)

    def read_selection(self) -> Selection | None:
        """Return how many images of each class a finished run selected in each epoch; None as `read_environment`."""
        return self._artifact("selection.json", SELECTION)

    def read_confusion(self) -> Confusion | None:
        """Return the confusion matrix of a finished run on the test images; None as `read_environment`."""
        return self._artifact("confusion.json", CONFUSION)

    def _artifact(self, name: str, form: TypeAdapter[T]) -> T | None:
        """Return the content of an artifact. Return None if it cannot be read, and warn if it is damaged."""
        try:
            return read_json(self.artifacts / name, form)
        except DamagedError as error:
            warn_damaged(self.artifacts / name, str(error), "it is left out")
        except OSError:
            pass
        return None

    # -- stop requests ----------------------------------------------------------------------------------------------

    def ask_to_stop(self, request: str, epoch: int | None = None) -> None:
        """Leave a stop request for the run, here and on the storage, unless there is one of this name already.

        Args:
            request: name of the request's file; see `stop_request`.
            epoch: the last epoch that counts; later ones are discarded. None: the run stops after the epoch in progress
                and all its epochs count.
        """
        if not (self.path / request).exists():
            write_atomic(self.path / request, b"" if epoch is None else str(epoch).encode())
            self.send(request)

    def asked_to_stop(self, request: str) -> bool:
        """Return whether there is a stop request of this name, on the storage if there is one and otherwise here."""
        self.fetch(request)
        return (self.path / request).exists()

    def stop_epoch(self, request: str) -> int | None:
        """Return the last epoch that counts by the stop request; None if there is no request or it names no epoch."""
        words = read_words(self.path / request) or ""
        return int(words) if words.isascii() and words.isdigit() and 0 < len(words) < 10 and int(words) else None

    def withdraw_stop(self, request: str) -> None:
        """Delete the stop request, here and on the storage."""
        self._remove(request)
        self.send(request)


def stop_request(study: str, workspace: Workspace | None = None) -> str:
    """Return the name of the file by which the study of this name asks a run to stop.

    Args:
        study: name of the study.
        workspace: the workspace of the study. If it has a storage, its identity is part of the name, because another
            workspace may have a study of the same name there.
    """
    return f"stop-{study}" if workspace is None or workspace.place is None else f"stop-{study}-{workspace.identity()}"


def left_over(result: RunResult, pause_after: int | None) -> bool:
    """Return whether a result is that of an earlier pause, so that the run was to go on and did not even begin.

    Args:
        result: the result in the run's directory.
        pause_after: the epoch after which the run was to pause this time; None: it was to run to its end.
    """
    return result.status == "paused" and (pause_after is None or result.epochs < pause_after)
