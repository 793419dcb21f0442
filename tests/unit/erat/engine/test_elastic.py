"""Tests that a checkpoint of several workers is continued by as many to the same bits, by others to the same numbers.

This includes a checkpoint that was written inside an epoch because one of the workers was told to leave.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from erat.config import RunConfig, load_config
from erat.data.types import CorruptedSet
from erat.engine.parallel import Ranks
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.errors import UserError
from erat.registry import BACKBONES
from tests.two_workers import Record, joined, on_two_workers, own_models_are_known, smooth

EPOCHS, CUT = 3, 1


def seen(trainer: Trainer) -> Record:
    return {
        "state": {name: value.clone() for name, value in trainer.defense.state_dict().items()},
        "history": [[report.train_loss, report.val_accuracy, report.test_accuracy] for report in trainer.history],
        "labelled": [report.labelled_per_class for report in trainer.history],
        "streams": [trainer._batches.order.get_state(), trainer._batches.draws.get_state()],
    }


def work(rank: int, folder: Path) -> None:
    """Train without an interruption, then cut after an epoch, and resume with a trainer that has only a checkpoint."""
    with joined(rank, folder) as data:
        config, ranks = load_config(folder / "run.json"), Ranks.current()
        whole = Trainer(config, data, ranks, folder / "whole")
        list(whole.run())
        list(islice(Trainer(config, data, ranks, folder / "cut").run(), CUT))
        torch.distributed.barrier()
        if rank == 0:
            shutil.copytree(folder / "cut", folder / "handed over")
        torch.distributed.barrier()
        again = Trainer(config, data, ranks, folder / "cut")
        assert again.epochs_done == CUT
        list(again.run())
        # What one worker has begun.
        grown = Trainer(config, data, ranks, folder / "of one")
        assert grown.epochs_done == CUT
        list(grown.run())
        # Only the second worker is told to leave, after the second batch of each process; both leave.
        interruptions = 0
        while True:
            told = (rank == 1 and batch >= 2 for batch in count())
            left = Trainer(config, data, ranks, folder / "left", told_to_leave=partial(next, told))
            try:
                list(left.run())
                break
            except Interrupted:
                interruptions += 1
                torch.distributed.barrier()
        record = {"whole": seen(whole), "again": seen(again), "grown": seen(grown), "left": seen(left)}
        torch.save(record | {"interruptions": interruptions}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(64)


@pytest.fixture(scope="module")
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    options = {"train.epochs": EPOCHS, "train.workers": 2, "resources.min_workers": 1, "train.lr": 0.02}
    with own_models_are_known():
        return make_config(options | {"model.name": "smooth"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def both(folder: Path, data: CorruptedSet, config: RunConfig) -> list[Record]:
    with own_models_are_known():
        list(islice(Trainer(config, data, Ranks(), folder / "of one").run(), CUT))
    return on_two_workers(work, folder, data, {"run": config})


def alike(ours: Record, theirs: Record) -> None:
    assert ours["labelled"] == theirs["labelled"]
    torch.testing.assert_close(torch.tensor(ours["history"]), torch.tensor(theirs["history"]), rtol=1e-3, atol=1e-3)
    for key, value in theirs["state"].items():
        torch.testing.assert_close(ours["state"][key], value, rtol=0, atol=1e-3)
    for mine, other in zip(ours["streams"], theirs["streams"], strict=True):
        assert torch.equal(mine, other), "the next draw is the same"


def test_as_many_go_on_to_the_same_bits(both: list[Record]) -> None:
    for worker in both:
        assert worker["again"]["history"] == worker["whole"]["history"]
        for key, value in worker["whole"]["state"].items():
            assert torch.equal(worker["again"]["state"][key], value), key
        for mine, other in zip(worker["again"]["streams"], worker["whole"]["streams"], strict=True):
            assert torch.equal(mine, other)


def test_all_leave_when_one_is_told_to(both: list[Record]) -> None:
    assert both[0]["interruptions"] == both[1]["interruptions"] > 1
    for worker in both:
        for key, value in worker["whole"]["state"].items():
            assert torch.equal(worker["left"]["state"][key], value), key
        # Loss terms were summed in another order.
        ours, theirs = (torch.tensor(worker[name]["history"]) for name in ("left", "whole"))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_one_goes_on_where_two_were(
    both: list[Record], folder: Path, data: CorruptedSet, config: RunConfig, register: Callable[..., None]
) -> None:
    register(BACKBONES, "smooth", smooth)
    left = Trainer(config, data, Ranks(), folder / "handed over")
    assert left.epochs_done == CUT
    list(left.run())
    alike(seen(left), both[0]["whole"])


def test_two_go_on_where_one_was(both: list[Record]) -> None:
    alike(both[0]["grown"], both[0]["whole"])
    assert both[0]["grown"]["history"] == both[1]["grown"]["history"]


def disagree(rank: int, folder: Path) -> None:
    """Damage the second worker's copy of the newest checkpoint, so that it would resume from the one before."""
    with joined(rank, folder) as data:
        config, own = load_config(folder / "run.json"), folder / f"of {rank}"
        list(Trainer(config, data, Ranks(), own).run())
        if rank == 1:
            (own / "checkpoint.pt").write_bytes(b"damaged")
        said = ""
        try:
            Trainer(config, data, Ranks.current(), own)
        except UserError as error:
            said = str(error)
        torch.save({"said": said}, folder / f"{rank}.pt")


def test_workers_never_go_on_from_different_epochs(
    make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet], tmp_path: Path
) -> None:
    with own_models_are_known():
        config = make_config({"defense.name": "ce", "model.name": "smooth", "train.epochs": 2, "train.workers": 2})
    records = on_two_workers(disagree, tmp_path, make_data(32), {"run": config})
    assert all(re.fullmatch("the workers' checkpoints .* differ: delete .*", record["said"]) for record in records)
