"""One cell from its configuration to its result, on this machine, without Ray.

Its directory holds all there is to know of it; see `orchestration.run.directory`.
"""

from __future__ import annotations

import json
import resource
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import torch
import yaml

from erat.config import RunConfig
from erat.corruption.base import Progress, silent
from erat.corruption.pipeline import corrupted_set
from erat.data.types import CorruptedSet
from erat.engine.checkpoint import save
from erat.engine.evaluation import confusion
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer, choose_device
from erat.engine.underway import Interrupted
from erat.errors import TrainingFailedError, UserError, is_storage_fault
from erat.files import write_atomic
from erat.result import RunResult, summarise
from orchestration.run.directory import ENDS, METRICS, MOVING, STATE, RunDirectory
from orchestration.run.environment import device_kind, environment
from orchestration.run.heartbeat import at_work
from orchestration.run.preemption import requested
from orchestration.run.retries import OUT_OF_MEMORY
from orchestration.storage.workspace import Workspace

OnEpoch = Callable[[Sequence[EpochReport]], bool]  # all epochs so far -> false: stop here


def execute_run(
    config: RunConfig,
    workspace: Workspace,
    *,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Train one cell, or go on with it from its last checkpoint; a finished one is only read.

    With data-parallel workers every worker calls this; the first one writes. An error inside the training is part of
    the result, not raised; with several workers it is both, or the others would wait for this one.

    A workspace with a storage holds nothing of its own: the run is fetched from there, and all that is written is sent
    there.

    Args:
        on_epoch: told the figures of all epochs after each one, on every worker; the first one's false ends the run.

    Raises:
        UserError: the data cannot be had: the run never began.
        OSError: what it writes to is full, read-only or away; it goes on from its checkpoint once that is mended.
        Interrupted: this process, or that of another worker, was told to leave; the checkpoint is in its place.
    """
    assert config.identified, "data.fingerprint is filled in before a run is planned"
    run, ranks = RunDirectory(workspace, config.digest()), Ranks.current()
    if not ranks.first:
        run.fetch(*STATE)
        with threads(config):
            return _train(config, run, on_epoch, progress)
    run.prepare()
    # Another sweep may be at the same cell: the second one waits, and finds it done.
    with at_work(run):
        run.fetch(*STATE, *ENDS)
        finished = run.read_result()
        if finished is not None and finished.status == "done" and ranks.workers == 1:
            return finished
        run.begin(config)
        try:
            with threads(config):
                result = _train(config, run, on_epoch, progress)
        except UserError as error:
            if is_storage_fault(error):
                raise
            run.refuse(str(error))
            raise
        run.keep_result(result)
        return result


@contextmanager
def threads(config: RunConfig) -> Iterator[None]:
    """Torch with `resources.cpu` threads, so that a run's sums are rounded alike wherever it is started from."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.resources.cpu)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(config: RunConfig, run: RunDirectory, on_epoch: OnEpoch | None, progress: Progress) -> RunResult:
    ranks = Ranks.current()
    try:
        data = corrupted_set(config, run.workspace.store(), progress)
        if choose_device(config).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(config, data, ranks, run.path, told_to_leave=requested)
        if ranks.first:  # a row of an epoch that the checkpoint does not have is of one that will be trained again
            run.write_metrics(trainer.history)
        status = "done"
        # After a restart the last epoch is told again: its listener may have died before it could say "stop here".
        told = len(trainer.history)
        for _ in chain(trainer.history[-1:], trainer.run()):
            if ranks.first:
                run.write_metrics(trainer.history)
                # The checkpoint of an epoch that is told again came from there, and must not become the one before it.
                run.send(*(MOVING if len(trainer.history) > told else (METRICS,)))
            if not ranks.agree(on_epoch is None or on_epoch(trainer.history)):
                status = "stopped"
                break
        predicted = trainer.predict_test()
        result = summarise(run.cell, status, [asdict(report) for report in trainer.history])
        if ranks.first:
            run.write_metrics(trainer.history)
            _write_artifacts(run.artifacts, config, data, trainer, confusion_of(data, predicted))
    except Interrupted as reason:
        if ranks.first:
            run.write_metrics(trainer.history)
            run.leave(str(reason))
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
        reached = summarise(run.cell, "failed", run.read_metrics())
        result = replace(
            reached, error=_reason(error), peak_memory_mb=_peak_memory_mb(config), device=device_kind(config)
        )
        if ranks.first:
            write_atomic(run.log, traceback.format_exc().encode())
        if not shared:
            run.keep_result(result)
            raise
        return result
    labels, images = data.manifest["labels"], data.manifest["images"]
    return replace(
        result,
        peak_memory_mb=_peak_memory_mb(config),
        device=device_kind(config),
        noise_rate=labels.get("noise_rate"),
        checksum=images.get("checksum"),
    )


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
