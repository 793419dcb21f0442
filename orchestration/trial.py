"""One cell from its configuration to its result, on this machine, without Ray.

A cell's folder holds all there is to know of it: `config.json`, `checkpoint.pt` and until the end the one before it,
`metrics.jsonl` (one row per epoch), `result.json`, `error.txt`, `left.txt` (told to leave) and `artifacts/`. The sweep
reads these; nothing else flows back.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from erat.config import RunConfig
from erat.corruption.base import Progress, silent
from erat.corruption.pipeline import corrupted_set
from erat.data.base import CorruptedSet
from erat.engine.checkpoint import previous, save, write_atomic
from erat.engine.evaluation import confusion
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer, choose_device
from erat.engine.underway import Interrupted
from erat.errors import TrainingFailedError, UserError, is_storage_fault
from erat.records import DamagedError, read_json, read_rows, read_words
from orchestration.home import CHECKPOINT, Home
from orchestration.leaving import asked
from orchestration.presence import at_work
from orchestration.records import EPOCH_ROW, RESULT, lacks, warn_damaged
from orchestration.restarts import OUT_OF_MEMORY

# What a cell goes on from, what of that travels after each epoch, and what it says of itself when it is over.
PREVIOUS, MOVING = previous(Path(CHECKPOINT)).name, (CHECKPOINT, "metrics.jsonl")
STATE, ENDS = (*MOVING, PREVIOUS), ("result.json", "error.txt", "left.txt")
OnEpoch = Callable[[Sequence[EpochReport]], bool]  # all epochs so far -> false: stop here


@dataclass
class CellResult:
    """How a cell ended. Accuracies in [0, 1]; none where the run did not get so far.

    Attributes:
        status: "done", "stopped" (early, on request) or "failed".
        val_accuracy: of the last epoch; best_val_accuracy: the largest.
        final_test_accuracy: clean test accuracy of the last epoch, the primary figure.
        best_val_test_accuracy: clean test accuracy of the epoch with the best validation accuracy.
        train_seconds: of training alone, over all restarts.
    """

    cell: str
    status: str
    epochs: int = 0
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None
    final_test_accuracy: float | None = None
    best_val_test_accuracy: float | None = None
    train_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    noise_rate: float | None = None
    checksum: str | None = None
    error: str | None = None
    val_history: list[float] = field(default_factory=list)


def run_cell(
    config: RunConfig,
    home: Home,
    *,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
) -> CellResult:
    """Train one cell, or go on with it from its last checkpoint; a finished one is only read.

    With data-parallel workers every worker calls this; the first one writes. An error inside the training is part of
    the result, not raised; with several workers it is both, or the others would wait for this one.

    A home with a storage holds nothing of its own: the cell is fetched from there, and all that is written sent there.

    Args:
        on_epoch: told the figures of all epochs after each one, on every worker; the first one's false ends the run.

    Raises:
        UserError: the data cannot be had: the run never began.
        OSError: what it writes to is full, read-only or away; it goes on from its checkpoint once that is mended.
        Interrupted: this process, or that of another worker, was told to leave; the checkpoint is in its place.
    """
    assert config.identified, "data.fingerprint is filled in before a run is planned"
    cell, ranks = config.digest(), Ranks.current()
    folder = home.cell(cell)
    if not ranks.first:
        home.fetch(cell, *STATE)
        with threads(config):
            return _train(config, home, folder, on_epoch, progress)
    home.prepare(cell)
    # Another sweep may be at the same cell: the second one waits, and finds it done.
    with at_work(folder):
        home.fetch(cell, *STATE, *ENDS)
        finished = read_result(folder)
        if finished is not None and finished.status == "done" and ranks.workers == 1:
            return finished
        for stale in ENDS:
            (folder / stale).unlink(missing_ok=True)
        write_atomic(folder / "config.json", config.model_dump_json(indent=2).encode())
        home.send(cell, "config.json", *ENDS)
        try:
            with threads(config):
                result = _train(config, home, folder, on_epoch, progress)
        except UserError as error:
            if is_storage_fault(error):
                raise
            write_atomic(folder / "error.txt", str(error).encode())
            home.send(cell, "error.txt")
            raise
        keep_result(home, result)
        return result


def keep_result(home: Home, result: CellResult) -> None:
    """Write how a cell ended. With a storage its files go there, the result last, and stay no longer here."""
    folder = home.cell(result.cell)
    write_atomic(folder / "result.json", json.dumps(asdict(result), indent=2).encode())
    if home.place is not None:
        kept = sorted(f"artifacts/{file.name}" for file in (folder / "artifacts").glob("*"))
        home.send(result.cell, *kept, *(name for name in ("metrics.jsonl", "error.txt") if (folder / name).exists()))
        home.send(result.cell, "result.json")
        for name in [*kept, *STATE, *ENDS]:
            (folder / name).unlink(missing_ok=True)
    if result.status == "done":
        (folder / PREVIOUS).unlink(missing_ok=True)
        home.send(result.cell, PREVIOUS)


def read_result(folder: Path) -> CellResult | None:
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
    known = {entry.name for entry in fields(CellResult)}
    return CellResult(**{key: value for key, value in found.items() if key in known})  # type: ignore[arg-type]


def read_refusal(folder: Path) -> str | None:
    """Why a cell that has no result could not begin, or none if nothing is said."""
    return _words(folder / "error.txt")


def read_departure(folder: Path) -> str | None:
    """How far a cell was when its worker was told to leave; none if none was since it last began."""
    return _words(folder / "left.txt")


def _words(file: Path) -> str | None:
    return read_words(file)


@contextmanager
def threads(config: RunConfig) -> Iterator[None]:
    """Torch with `resources.cpu` threads, so that a run's sums are rounded alike wherever it is started from."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.resources.cpu)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def summarise(cell: str, status: str, rows: Sequence[Mapping[str, Any]]) -> CellResult:
    """The result that a run's epochs amount to."""
    if not rows:
        return CellResult(cell, status)
    best = max(rows, key=lambda row: row["val_accuracy"])  # the first of equals
    return CellResult(
        cell,
        status,
        epochs=len(rows),
        val_accuracy=rows[-1]["val_accuracy"],
        best_val_accuracy=best["val_accuracy"],
        final_test_accuracy=rows[-1]["test_accuracy"],
        best_val_test_accuracy=best["test_accuracy"],
        train_seconds=sum(row["epoch_seconds"] for row in rows),
        val_history=[row["val_accuracy"] for row in rows],
    )


def _train(config: RunConfig, home: Home, folder: Path, on_epoch: OnEpoch | None, progress: Progress) -> CellResult:
    ranks = Ranks.current()
    cell = config.digest()
    try:
        data = corrupted_set(config, home.store(), progress)
        if choose_device(config).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(config, data, ranks, folder, told_to_leave=asked)
        if ranks.first:  # a row of an epoch that the checkpoint does not have is of one that will be trained again
            _write_metrics(folder, trainer.history)
        status = "done"
        # After a restart the last epoch is told again: its listener may have died before it could say "stop here".
        told = len(trainer.history)
        for _ in chain(trainer.history[-1:], trainer.run()):
            if ranks.first:
                _write_metrics(folder, trainer.history)
                # The checkpoint of an epoch that is told again came from there, and must not become the one before it.
                home.send(cell, *(MOVING if len(trainer.history) > told else ("metrics.jsonl",)))
            if not ranks.agree(on_epoch is None or on_epoch(trainer.history)):
                status = "stopped"
                break
        predicted = trainer.predict_test()
        result = summarise(cell, status, [asdict(report) for report in trainer.history])
        if ranks.first:
            _write_metrics(folder, trainer.history)
            _write_artifacts(folder / "artifacts", config, data, trainer, confusion_of(data, predicted))
    except Interrupted as reason:
        if ranks.first:
            _write_metrics(folder, trainer.history)
            write_atomic(folder / "left.txt", str(reason).encode())
            home.send(cell, *MOVING, "left.txt")
        ranks.agree(True)  # nobody goes before the checkpoint is in its place
        raise
    except UserError:
        raise
    except Exception as error:
        if is_storage_fault(error):
            raise
        # A loss that left the numbers did so on every worker. Of anything else the others may know nothing.
        shared = isinstance(error, TrainingFailedError) or ranks.workers == 1
        if not ranks.first and not shared:
            raise
        result = summarise(cell, "failed", read_metrics(folder))
        result.error = _reason(error)
        result.peak_memory_mb = _peak_memory_mb(config)
        if ranks.first:
            write_atomic(folder / "error.txt", traceback.format_exc().encode())
        if not shared:
            keep_result(home, result)
            raise
        return result
    result.peak_memory_mb = _peak_memory_mb(config)
    result.noise_rate = data.manifest["labels"].get("noise_rate")
    result.checksum = data.manifest["images"].get("checksum")
    return result


def _reason(error: Exception) -> str:
    """One line; a want of memory begins with words of its own."""
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    words = ("CUDA out of memory", "can't allocate memory", "not enough memory")
    full = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)
    return f"{OUT_OF_MEMORY}: {line}" if full else line


def _peak_memory_mb(config: RunConfig) -> float:
    """Of tensors on a GPU; on the CPU of the whole process since it began."""
    if choose_device(config).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def confusion_of(data: CorruptedSet, predicted: torch.Tensor) -> list[list[int]]:
    """Rows: true class of the clean test images; columns: predicted class."""
    counts: list[list[int]] = confusion(data.test.labels, predicted, data.test.num_classes).tolist()
    return counts


def _write_metrics(folder: Path, history: list[EpochReport]) -> None:
    """All rows anew: after a restart the file says what the checkpoint says."""
    lines = "".join(json.dumps(asdict(report)) + "\n" for report in history)
    write_atomic(folder / "metrics.jsonl", lines.encode())


def _write_artifacts(
    folder: Path, config: RunConfig, data: CorruptedSet, trainer: Trainer, confused: list[list[int]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    selection = [
        {
            "epoch": report.epoch,
            "labelled_per_class": report.labelled_per_class,
            "correct_per_class": report.correct_per_class,
            "wrong_per_class": report.wrong_per_class,
            "caught_per_class": report.caught_per_class,
            "pseudo_label_accuracy": report.pseudo_label_accuracy,
        }
        for report in trainer.history
    ]
    documents = {
        "environment.json": environment(),
        "selection.json": {"classes": data.train.class_names, "epochs": selection},
        "confusion.json": {"classes": data.test.class_names, "counts": confused},
        "corruption.json": data.manifest,
    }
    for name, content in documents.items():
        write_atomic(folder / name, json.dumps(content, indent=1, default=str).encode())
    write_atomic(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    save(folder / "model.pt", trainer.defense.networks.state_dict())


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what one needs to run this again."""
    packages = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "mlxtend")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    """What git says of the folder that this code lies in; none without git or a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
