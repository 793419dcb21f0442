"""The directory of a run: the names of its files, how they are read and written, and what of them travels.

`config.json`, `checkpoint.pt` and until the end the one before it, `metrics.jsonl` (one row per epoch), `result.json`,
`error.txt`, `left.txt` (told to leave), `artifacts/`, and for a while `heartbeat` and requests to stop. The driver
reads these; nothing else flows back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import TypeAdapter

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

T = TypeVar("T")
CONFIG, CHECKPOINT, METRICS = "config.json", "checkpoint.pt", "metrics.jsonl"
RESULT_FILE, ERROR, LEFT = "result.json", "error.txt", "left.txt"
# What travels after each epoch, what a run goes on from, and what it says of itself when it is over.
MOVING = (CHECKPOINT, METRICS)
STATE, ENDS = (*MOVING, previous(Path(CHECKPOINT)).name), (RESULT_FILE, ERROR, LEFT)


@dataclass(frozen=True)
class RunDirectory:
    """The directory of the run with the digest `cell`, in a workspace and, where there is one, on its storage."""

    workspace: Workspace
    cell: str

    @property
    def path(self) -> Path:
        """The folder."""
        return self.workspace.run_directory(self.cell)

    @property
    def artifacts(self) -> Path:
        """The folder of what a finished run leaves for the tracker and for reports."""
        return self.path / "artifacts"

    @property
    def log(self) -> Path:
        """The file that says why it failed or could not begin."""
        return self.path / ERROR

    @property
    def heartbeat(self) -> Path:
        """The file that a process touches while it is at this run."""
        return self.path / "heartbeat"

    @property
    def lock(self) -> Path:
        """The file that a process locks while it is at this run."""
        return self.path / ".lock"

    # -- what travels -----------------------------------------------------------------------------------------------

    def fetch(self, *names: str) -> None:
        """Make files here what the storage has; delete those that it lacks. Without a storage, do nothing."""
        storage = self.workspace.storage
        if storage is not None:
            for name in names:
                storage.fetch(f"cells/{self.cell}/{name}", self.path / name)

    def send(self, *names: str) -> None:
        """Put files on the storage; delete there those that are not here. Without a storage, do nothing.

        Of a checkpoint the storage keeps the one before by itself: no second file has to travel.
        """
        storage = self.workspace.storage
        if storage is not None:
            for name in names:
                file = self.path / name
                if file.exists():
                    storage.send(file, f"cells/{self.cell}/{name}", keep_previous=name == CHECKPOINT)
                else:
                    storage.remove(f"cells/{self.cell}/{name}")

    def fetch_artifacts(self) -> None:
        """Fetch the artifacts that the storage has."""
        storage = self.workspace.storage
        if storage is not None:
            self.fetch(*(f"artifacts/{name}" for name in storage.names(f"cells/{self.cell}/artifacts")))

    # -- the course of a run ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folder of a run that begins; move aside what takes the place of one of its files, with a warning."""
        move_aside(self.path, folder=True)
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, *STATE, *ENDS, self.heartbeat.name):
            move_aside(self.path / name, folder=False)
        move_aside(self.artifacts, folder=True)

    def begin(self, config: RunConfig) -> None:
        """Write the configuration, and forget how the run ended before."""
        self._remove(*ENDS)
        write_atomic(self.path / CONFIG, config.model_dump_json(indent=2).encode())
        self.send(CONFIG, *ENDS)

    def forget(self) -> None:
        """Delete what the run would go on from and how it ended, here and on the storage: it begins anew."""
        self._remove(*STATE, *ENDS)
        self.send(*STATE, *ENDS)

    def write_metrics(self, history: Sequence[EpochReport]) -> None:
        """Write all rows anew: after a restart the file says what the checkpoint says."""
        lines = "".join(json.dumps(asdict(report)) + "\n" for report in history)
        write_atomic(self.path / METRICS, lines.encode())

    def refuse(self, reason: str) -> None:
        """Write why the run could not begin."""
        write_atomic(self.log, reason.encode())
        self.send(ERROR)

    def leave(self, reason: str) -> None:
        """Write how far the run was when its worker was told to leave, and send what it goes on from."""
        write_atomic(self.path / LEFT, reason.encode())
        self.send(*MOVING, LEFT)

    def keep_result(self, result: RunResult) -> None:
        """Write how the run ended. With a storage its files go there, the result last, and stay no longer here."""
        write_atomic(self.path / RESULT_FILE, json.dumps(asdict(result), indent=2).encode())
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

    # -- what it says -----------------------------------------------------------------------------------------------

    def read_result(self) -> RunResult | None:
        """Return the result, or none; a damaged one, or one of another cell, is warned of and none.

        Raises:
            OSError: it is there and cannot be read.
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

    def read_error(self) -> str | None:
        """Return why the run failed or could not begin, or none if nothing is said."""
        return read_words(self.log)

    def read_departure(self) -> str | None:
        """Return how far the run was when its worker was told to leave; none if none was since it last began."""
        return read_words(self.path / LEFT)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of all epochs so far; of a damaged file those before the damage, with a warning."""
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
        """Return what a finished run says of code and machine."""
        return self._artifact("environment.json", ENVIRONMENT)

    def read_selection(self) -> Selection | None:
        """Return what a finished run selected of each class, epoch by epoch."""
        return self._artifact("selection.json", SELECTION)

    def read_confusion(self) -> Confusion | None:
        """Return what a finished run took the test images of each class for."""
        return self._artifact("confusion.json", CONFUSION)

    def _artifact(self, name: str, form: TypeAdapter[T]) -> T | None:
        """Return what a file holds; none where there is none, or a damaged one, of which it warns."""
        try:
            return read_json(self.artifacts / name, form)
        except DamagedError as error:
            warn_damaged(self.artifacts / name, str(error), "it is left out")
        except OSError:
            pass
        return None

    # -- requests to stop -------------------------------------------------------------------------------------------

    def ask_to_stop(self, request: str, epoch: int | None = None) -> None:
        """Leave a request, a file of this name, to stop after this epoch; its later ones do not count."""
        if not (self.path / request).exists():
            write_atomic(self.path / request, b"" if epoch is None else str(epoch).encode())
            self.send(request)

    def asked_to_stop(self, request: str) -> bool:
        """Return whether such a request was left."""
        self.fetch(request)
        return (self.path / request).exists()

    def stop_epoch(self, request: str) -> int | None:
        """Return the epoch that the request names; none without a request, or one that names none."""
        words = read_words(self.path / request) or ""
        return int(words) if words.isascii() and words.isdigit() and 0 < len(words) < 10 and int(words) else None

    def withdraw_stop(self, request: str) -> None:
        """Delete the request, here and on the storage."""
        self._remove(request)
        self.send(request)


def stop_request(study: str) -> str:
    """Return the name of the file with which a study asks a run to stop."""
    return f"stop-{study}"
