"""Execute one run on this machine, from its configuration to its result, without Ray.

Everything that is known of the run is written to its directory; see `orchestration.run.directory`.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from erat.config import RunConfig
from erat.corruption.base import Progress, silent
from erat.data.types import CorruptedSet
from erat.engine.checkpoint import save
from erat.engine.evaluation import confusion
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.errors import TrainingFailedError, UserError, is_storage_fault
from erat.files import write_atomic
from erat.result import RunResult, summarise
from erat.training import Training, device_kind, peak_memory_mb, threads
from orchestration.run.directory import CHECKPOINT, ENDS, METRICS, STATE, RunDirectory
from orchestration.run.environment import environment
from orchestration.run.heartbeat import at_work
from orchestration.run.preemption import requested
from orchestration.run.retries import DEVICE_FAULT, OUT_OF_MEMORY
from orchestration.storage.lease import LeaseLostError
from orchestration.storage.workspace import Workspace

OnEpoch = Callable[[Sequence[EpochReport]], bool]  # reports of all epochs so far -> whether to train on


def execute_run(
    config: RunConfig,
    workspace: Workspace,
    *,
    on_epoch: OnEpoch | None = None,
    pause_after: int | None = None,
    session: str = "",
    progress: Progress = silent,
) -> RunResult:
    """Execute one run, or resume it from its last checkpoint; return the result of a finished run without training.

    With data-parallel workers, every worker calls this function and only the first one writes files. An error during
    training is recorded in the result and not raised. With several workers an error that only one of them may have met
    is also raised, because the others would wait for that worker.

    If the workspace has a storage, the run's files are downloaded from there, and everything written is uploaded, by
    one worker at a time: see `orchestration.storage.lease`.

    Args:
        config: the configuration, with the fingerprint of its images filled in.
        workspace: where the run's directory and the crafted data sets are.
        on_epoch: called on every worker after each epoch with the reports of all epochs so far; if it returns False on
            the first worker, the run ends with the status "stopped".
        pause_after: the epoch after which the run ends with the status "paused" and keeps its checkpoint, from which a
            later call goes on to the same bits. A run that has gone further already is paused at once, with the result
            of all its epochs; one that has done its last epoch is done. None: the run is not paused.
        session: over a storage, who has the run executed, in words that only this one uses. A later call with the same
            words takes the run over from an earlier one that still holds it, and is behind a partition, say.
        progress: called with the progress of the crafting of the data set.

    Raises:
        LeaseLostError: Another worker has taken the run over; this one has written nothing since.
        UserError: The data cannot be loaded or crafted; the run has not begun.
        OSError: A disk or storage is full, read-only or unreachable. The run can be resumed from its checkpoint once
            that is repaired.
        Interrupted: This worker or another one of the run was preempted; the checkpoint has been written.
    """
    assert config.identified, "data.fingerprint is filled in before a run is planned"
    run, ranks = RunDirectory(workspace, config.digest()), Ranks.current()
    if not ranks.first:
        ranks.agree(True)  # now the first worker holds the run, and what they all go on from does not change any more
        run.fetch(*STATE)
        with threads(config):
            return _train(config, run, on_epoch, pause_after, progress)
    run.prepare()
    # Another study may have the same run. The second process waits here, and then finds the run done.
    with at_work(run, session) as run:
        ranks.agree(True)
        run.fetch(*STATE, *ENDS)
        finished = run.read_result()
        if finished is not None and finished.status == "done" and ranks.workers == 1:
            return finished
        run.begin(config)
        try:
            with threads(config):
                result = _train(config, run, on_epoch, pause_after, progress)
        except UserError as error:
            if is_storage_fault(error):
                raise
            run.refuse(str(error))
            raise
        run.keep_result(result)
        return result


def _train(
    config: RunConfig, run: RunDirectory, on_epoch: OnEpoch | None, pause_after: int | None, progress: Progress
) -> RunResult:
    ranks = Ranks.current()

    def told_to_leave() -> bool:
        return requested() or (run.lease is not None and run.lease.lost)

    trainer: Trainer | None = None
    try:
        training = Training(
            config,
            run.workspace.store(),
            folder=run.path,
            ranks=ranks,
            told_to_leave=told_to_leave,
            kept=lambda: run.send(CHECKPOINT, overtaken=lambda: trainer is not None and trainer.overtaken),
            progress=progress,
        )
        trainer = training.trainer
        if ranks.first:  # removes rows of epochs after the checkpoint, since these epochs are trained again
            run.write_metrics(trainer.history)
        status = "done"
        for history, _ in training.epochs():
            if ranks.first:
                run.write_metrics(history)
                run.send(METRICS)
            if not ranks.agree(on_epoch is None or on_epoch(history)):
                status = "stopped"
                break
            # After a restart this is asked of the last finished epoch again: a run that was killed between its pause
            # and its result is paused without further training. All workers have the same history.
            if pause_after is not None and pause_after <= len(history) < config.train.epochs:
                status = "paused"
                break
        trainer.keep()  # what a run that is stopped or paused here goes on from
        predicted = trainer.predict_test()
        if ranks.first:
            run.write_metrics(trainer.history)
            confused = confusion_of(training.data, predicted)
            _write_artifacts(run.artifacts, config, training.data, trainer, confused)
        return training.result(status)
    except Interrupted as reason:
        if ranks.first and trainer is not None:
            run.write_metrics(trainer.history)
            run.leave(str(reason))
        ranks.agree(True)  # every worker waits here until the first one has written the checkpoint
        raise
    except UserError:
        raise
    except Exception as error:
        if is_storage_fault(error) or isinstance(error, LeaseLostError):
            raise
        # A loss that is not finite is noticed by every worker. Any other error may have occurred on this one alone.
        shared = isinstance(error, TrainingFailedError) or ranks.workers == 1
        if not ranks.first and not shared:
            raise
        reached = summarise(run.cell, "failed", run.read_metrics())
        result = replace(
            reached, error=_reason(error), peak_memory_mb=peak_memory_mb(config), device=device_kind(config)
        )
        if ranks.first:
            write_atomic(run.log, traceback.format_exc().encode())
        if not shared:
            if trainer is not None:
                trainer.settle()  # the thread must not look for the checkpoint that is deleted now
            run.keep_result(result)
            raise
        return result
    finally:
        if trainer is not None:
            trainer.settle()  # whoever holds the run next must not meet a thread that still writes


# Torch before 2.8 has no class of its own for an error of a device.
_DEVICE_ERROR: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()


def _reason(error: Exception) -> str:
    """Return the error as one line, which begins with `OUT_OF_MEMORY` or `DEVICE_FAULT` if that is what it is.

    Memory may run out on the CPU or the GPU; any other error of CUDA leaves the GPU of no use to this process.
    """
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    words = ("CUDA out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words):
        return f"{OUT_OF_MEMORY}: {line}"
    return f"{DEVICE_FAULT}: {line}" if isinstance(error, _DEVICE_ERROR) else line


def confusion_of(data: CorruptedSet, predicted: torch.Tensor) -> list[list[int]]:
    """Count the clean test images by class: rows are true classes, columns are predicted classes.

    Args:
        data: the data set, with its clean test images.
        predicted: predicted class of each test image, (N,).
    """
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
