"""One run from its configuration to its result, in this process: plain PyTorch, without Ray, MLflow or a workspace."""

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
from erat.engine.checkpoint import save
from erat.engine.parallel import Ranks
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer, choose_device
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
    """Craft the corrupted set if it is not there yet, train on it in this process, and judge by the clean test images.

    >>> import erat
    >>> result = erat.train(erat.build("demo", {"defense.name": "ce", "train.epochs": 3}), folder="my-run")
    >>> result.final_test_accuracy

    Args:
        config: of `build`; with `train.workers` of 1.
        folder: for `config.json`, `checkpoint.pt` after each epoch, from which the same call goes on, and in the end
            `model.pt`, the weights of the defense's networks. None: nothing is kept.
        store: folder of crafted sets, which many runs may share; none: `crafted` in `folder`.
        on_epoch: told the figures of all epochs after each one; false ends the run there, its status being "stopped".
            After a restart it is told of the last epoch once more.
        progress: told (what, done, total) while a set is crafted.

    Returns:
        Accuracies in [0, 1], times in seconds; `final_test_accuracy`, of the last epoch, is the primary figure.

    Raises:
        UserError: the data cannot be had, a checkpoint in `folder` is of another run, or several workers are asked for.
        TrainingFailedError: the loss left the finite numbers.
    """
    if config.train.workers > 1:
        raise UserError(
            f"train.workers must be 1 in erat.train, got {config.train.workers}: orchestration.Study runs several"
        )
    config = Fingerprints()(config)
    with ExitStack() as stack:
        stack.enter_context(threads(config))
        home = None if folder is None else user_path(str(folder), "folder")
        sets = home if store is None else user_path(str(store), "store")
        if sets is None:
            sets = Path(stack.enter_context(TemporaryDirectory(prefix="erat-")))
        if home is not None:
            home.mkdir(parents=True, exist_ok=True)
        run = Training(config, Store(sets / "crafted" if store is None else sets), folder=home, progress=progress)
        if home is not None:
            write_atomic(home / "config.json", config.model_dump_json(indent=2).encode())
        status = "done"
        for history, _ in run.epochs():
            if on_epoch is not None and on_epoch(history) is False:
                status = "stopped"
                break
        if home is not None:
            save(home / "model.pt", run.trainer.defense.networks.state_dict())
        return run.result(status)


@contextmanager
def threads(config: RunConfig) -> Iterator[None]:
    """Torch with `resources.cpu` threads, so that a run's sums are rounded alike wherever it is started from."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.resources.cpu)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Training:
    """A run under way, on this worker: its data and its trainer.

    Args:
        store: of crafted sets.
        folder: where the checkpoint lives; none: no checkpoints.
        ranks, told_to_leave: as of `Trainer`.
    """

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        *,
        folder: Path | None = None,
        ranks: Ranks | None = None,
        told_to_leave: Callable[[], bool] = lambda: False,
        progress: Progress = silent,
    ) -> None:
        self.config = config
        self.data = corrupted_set(config, store, progress)
        if choose_device(config).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.trainer = Trainer(config, self.data, ranks, folder, told_to_leave)

    def epochs(self) -> Iterator[tuple[list[EpochReport], bool]]:
        """Train on to the last epoch; after each one yield (the figures of all epochs so far, whether it is a new one).

        After a restart the last epoch is told again: its listener may have died before it could say "stop here".
        """
        known = len(self.trainer.history)
        for _ in chain(self.trainer.history[-1:], self.trainer.run()):
            yield self.trainer.history, len(self.trainer.history) > known

    def result(self, status: str) -> RunResult:
        """Return what the run has come to."""
        reached = summarise(self.config.digest(), status, [asdict(report) for report in self.trainer.history])
        return replace(
            reached,
            peak_memory_mb=peak_memory_mb(self.config),
            device=device_kind(self.config),
            noise_rate=self.data.manifest["labels"].get("noise_rate"),
            checksum=self.data.manifest["images"].get("checksum"),
        )


def peak_memory_mb(config: RunConfig) -> float:
    """Of tensors on a GPU; on the CPU of the whole process since it began."""
    if choose_device(config).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_kind(config: RunConfig) -> str:
    """Return what a run computes on here: "cpu", or the GPU's name. Raises as `choose_device`."""
    return torch.cuda.get_device_name() if choose_device(config).type == "cuda" else CPU
