"""What the directory of a run holds, and how it is read and written.

`config.json`, `checkpoint.pt` and until the end the one before it, `metrics.jsonl` (one row per epoch), `result.json`,
`error.txt`, `left.txt` (told to leave) and `artifacts/`. The driver reads these; nothing else flows back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from erat.files import previous, write_atomic
from erat.records import DamagedError, read_json, read_rows, read_words
from erat.result import RunResult
from orchestration.storage.forms import EPOCH_ROW, RESULT, lacks, warn_damaged
from orchestration.storage.workspace import CHECKPOINT, Workspace

if TYPE_CHECKING:
    from erat.engine.report import EpochReport

# What a cell goes on from, what of that travels after each epoch, and what it says of itself when it is over.
PREVIOUS, MOVING = previous(Path(CHECKPOINT)).name, (CHECKPOINT, "metrics.jsonl")


STATE, ENDS = (*MOVING, PREVIOUS), ("result.json", "error.txt", "left.txt")


def keep_result(workspace: Workspace, result: RunResult) -> None:
    """Write how a cell ended. With a storage its files go there, the result last, and stay no longer here."""
    folder = workspace.run_directory(result.cell)
    write_atomic(folder / "result.json", json.dumps(asdict(result), indent=2).encode())
    if workspace.place is not None:
        kept = sorted(f"artifacts/{file.name}" for file in (folder / "artifacts").glob("*"))
        workspace.send(
            result.cell, *kept, *(name for name in ("metrics.jsonl", "error.txt") if (folder / name).exists())
        )
        workspace.send(result.cell, "result.json")
        for name in [*kept, *STATE, *ENDS]:
            (folder / name).unlink(missing_ok=True)
    if result.status == "done":
        (folder / PREVIOUS).unlink(missing_ok=True)
        workspace.send(result.cell, PREVIOUS)


def read_result(folder: Path) -> RunResult | None:
    """The result in a cell's folder, or none; a damaged one, or one of another cell, is warned of and none.

    Raises:
        OSError: it is there and cannot be read.
    """
    file = folder / "result.json"
    try:
        found = read_json(file, RESULT)
        if missing := [key for key in ("cell", "status") if key not in found]:
            raise DamagedError(f"{missing[0]} is missing")
        if found["cell"] != folder.name:
            raise DamagedError(f"it is of another cell, {found['cell']}")
        if lack := lacks(found, found["status"]):
            raise DamagedError(lack)
    except DamagedError as error:
        warn_damaged(file, str(error), "the cell counts as not finished")
        return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    known = {entry.name for entry in fields(RunResult)}
    return RunResult(**{key: value for key, value in found.items() if key in known})  # type: ignore[arg-type]


def read_refusal(folder: Path) -> str | None:
    """Why a cell that has no result could not begin, or none if nothing is said."""
    return _words(folder / "error.txt")


def read_departure(folder: Path) -> str | None:
    """How far a cell was when its worker was told to leave; none if none was since it last began."""
    return _words(folder / "left.txt")


def _words(file: Path) -> str | None:
    return read_words(file)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of all epochs so far; of a damaged file those before the damage, with a warning."""
    file = folder / "metrics.jsonl"
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


def _write_metrics(folder: Path, history: list[EpochReport]) -> None:
    """All rows anew: after a restart the file says what the checkpoint says."""
    lines = "".join(json.dumps(asdict(report)) + "\n" for report in history)
    write_atomic(folder / "metrics.jsonl", lines.encode())
