"""Execute one run in this process, in plain PyTorch, without Ray, MLflow or a workspace."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from erat.config import RunConfig
from erat.corruption.base import Progress, silent
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.data.fingerprint import Fingerprints
from erat.devices import arithmetic
from erat.engine.assembly import choose_device
from erat.engine.checkpoint import save
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.files import write_atomic
from erat.paths import user_path
from erat.result import RunResult, summarise

CPU = "cpu"
OnEpoch = Callable[[Sequence[EpochReport]], bool | None]


def train(
    config: RunConfig,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Train on the corrupted set, which is crafted first if necessary, and evaluate on the clean test images.

    >>> import erat
    >>> result = erat.train(erat.build("demo", {"defense.name": "ce", "train.epochs": 3}), folder="my-run")
    >>> result.final_test_accuracy

    Args:
        config: the configuration, from `build`, with `train.workers` of 1.
        folder: the folder for `config.json`, for `checkpoint.pt`, which is written after each epoch (or as
            `train.checkpoint_every` says) and from which the same call resumes, and finally for `model.pt`, the weights
            of the defense's networks. None: nothing is kept.
        store: the folder of crafted sets, which many runs may share; None: `crafted` in `folder`.
        on_epoch: called after each epoch with the figures of all epochs so far; if it returns false, the run ends with
            the status "stopped". After a restart it is called for the last finished epoch again.
        progress: called with (what, done, total) while a set is crafted.

    Returns:
        The result, with accuracies in [0, 1] and times in seconds; `final_test_accuracy`, that of the last epoch, is
        the primary figure.

    Raises:
        UserError: the data cannot be read, a checkpoint in `folder` belongs to another run, or several workers are
            requested.
        TrainingFailedError: the loss is no longer finite.
    """
    if config.train.workers > 1:
        raise UserError(
            f"train.workers must be 1 in erat.train, got {config.train.workers}: orchestration.Study runs several"
        )
    config = Fingerprints()(config)
    with ExitStack() as stack:
        stack.enter_context(threads(config))
        place = None if folder is None else user_path(str(folder), "folder")
        sets = place if store is None else user_path(str(store), "store")
        if sets is None:
            sets = Path(stack.enter_context(TemporaryDirectory(prefix="erat-")))
        if place is not None:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"folder must be a folder that can be written, got {place}: {error.strerror}"
                ) from error
        run = Training(config, Store(sets / "crafted" if store is None else sets), folder=place, progress=progress)
        if place is not None:
            write_atomic(place / "config.json", config.model_dump_json(indent=2).encode())
        status = "done"
        for history, _ in run.epochs():
            answer = None if on_epoch is None else on_epoch(history)
            if answer is not None and not answer:
                status = "stopped"
                break
        run.trainer.keep()
        if place is not None:
            save(place / "model.pt", run.trainer.defense.networks.state_dict())
        return run.result(status)


@contextmanager
def threads(config: RunConfig) -> Iterator[None]:
    """Let torch use `resources.cpu` threads, and a GPU the arithmetic of `train.precision`, within a `with` block.

    The sums of a run are then rounded in the same way wherever it is started.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(config.resources.cpu)
    gpu = config.resources.device != CPU and torch.cuda.is_available()
    try:
        with arithmetic("cuda" if gpu else CPU, config.train.precision):
            yield
    finally:
        torch.set_num_threads(before)


class Training:
    """A run under way on this worker: its data and its trainer.

    Args:
        config: the run.
        store: the store of crafted sets.
        folder: the folder of the checkpoint; None: no checkpoints are written.
        ranks, told_to_leave, kept: as for `Trainer`.
        progress: called with (what, done, total) while a set is crafted.
    """

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        *,
        folder: Path | None = None,
        ranks: Ranks | None = None,
        told_to_leave: Callable[[], bool] = lambda: False,
        kept: Callable[[], object] = lambda: None,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.data = corrupted_set(config, store, progress)
        if choose_device(config).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.trainer = Trainer(config, self.data, ranks, folder, told_to_leave, kept)

    def epochs(self) -> Iterator[tuple[list[EpochReport], bool]]:
        """Train up to the last epoch; after each, yield (the figures of all epochs so far, whether the epoch is new).

        After a restart the last finished epoch is yielded again, because the caller may have died before it could
        decide to stop there.
        """
        known = len(self.trainer.history)
        for _ in chain(self.trainer.history[-1:], self.trainer.run()):
            yield self.trainer.history, len(self.trainer.history) > known

    def result(self, status: str) -> RunResult:
        """Return the result of the run so far, with this status."""
        reached = summarise(self.config.digest(), status, [asdict(report) for report in self.trainer.history])
        return replace(
            reached,
            peak_memory_mb=peak_memory_mb(self.config),
            device=device_kind(self.config),
            noise_rate=self.data.manifest["labels"].get("noise_rate"),
            checksum=self.data.manifest["images"].get("checksum"),
        )


def peak_memory_mb(config: RunConfig) -> float:
    """Return the peak memory in units of 2**20 bytes: of tensors on a GPU, of the whole process on the CPU."""
    if choose_device(config).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_kind(config: RunConfig) -> str:
    """Return the device on which a run computes here: "cpu" or the name of the GPU. Raises as `choose_device`."""
    return torch.cuda.get_device_name() if choose_device(config).type == "cuda" else CPU
