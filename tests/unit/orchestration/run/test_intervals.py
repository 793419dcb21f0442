"""Tests runs whose checkpoints are written at an interval: every end of one keeps it, and no upload is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.engine.underway import Interrupted
from erat.errors import StorageError
from orchestration.run.directory import RunDirectory
from orchestration.run.execute import execute_run
from orchestration.run.retries import Retries, Retry
from orchestration.storage.shared import Storage, storage_at
from orchestration.storage.workspace import Workspace

EPOCHS = 5
CLOCK = ("epoch_seconds", "images_per_second")


@pytest.fixture
def make(
    make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RunConfig]:
    """Return a function that makes the configuration of one and the same run with this interval."""
    data = replace(make_data(48), manifest={"labels": {}, "images": {}})
    monkeypatch.setattr("erat.training.corrupted_set", lambda *_: data)
    options = {"defense.name": "ce", "train.epochs": EPOCHS, "data.fingerprint": "0" * 16}
    return lambda every: make_config(options | {"train.checkpoint_every": every})


def on(place: Path | None, folder: Path) -> Workspace:
    return Workspace(folder).sharing(None if place is None else str(place))


def figures(run: RunDirectory) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in run.read_metrics()]


@pytest.mark.parametrize("stored", [False, True], ids=["folder", "storage"])
@pytest.mark.parametrize("every", ["3", "1h"])
def test_a_run_that_pauses_stops_and_leaves_goes_on_to_the_same_bits(
    every: str, stored: bool, make: Callable[[str], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place, heard = make(every), tmp_path / "shared" if stored else None, []

    def node(number: int) -> Workspace:
        return on(place, tmp_path / (f"node {number}" if stored else "home"))

    def listen(history: Sequence[Any]) -> bool:
        heard.append(len(history))
        return True

    assert execute_run(config, node(0), pause_after=1).status == "paused"
    assert execute_run(config, node(1), on_epoch=lambda history: len(history) < 2).status == "stopped"
    answers = chain(repeat(False, 2), repeat(True))
    with monkeypatch.context() as patch:
        patch.setattr("orchestration.run.execute.requested", partial(next, answers))
        with pytest.raises(Interrupted):
            execute_run(config, node(2))
    assert execute_run(config, node(3), pause_after=4, on_epoch=listen).status == "paused"
    assert heard == [2, 3, 4], "nothing was trained again but the batch in hand"
    assert execute_run(config, node(4)).status == "done"
    execute_run(make("1"), Workspace(tmp_path / "alone"))
    run = RunDirectory(on(place, tmp_path / "driver") if stored else node(0), config.digest())
    run.fetch("metrics.jsonl")
    run.fetch_artifacts()
    alone = RunDirectory(Workspace(tmp_path / "alone"), config.digest())
    assert figures(run) == figures(alone)
    mine, theirs = (torch.load(each.artifacts / "model.pt", weights_only=True) for each in (run, alone))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_run_goes_on_while_a_checkpoint_is_sent(
    make: Callable[[str], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third, send, sent = threading.Event(), Storage.send, []

    def late(self: Storage, file: Path, name: str, **more: Any) -> None:
        if name.endswith("/checkpoint.pt"):
            assert third.wait(300), "the next epoch waits for the upload"
            sent.append(name)
        send(self, file, name, **more)

    def listen(history: Sequence[Any]) -> bool:
        if len(history) == 3:
            assert sent == []
            third.set()
        return True

    monkeypatch.setattr(Storage, "send", late)
    result = execute_run(make("2"), on(tmp_path / "shared", tmp_path / "node"), on_epoch=listen)
    assert result.status == "done"
    assert len(sent) == 3, "of epochs 2, 4 and 5"
    names = storage_at(str(tmp_path / "shared")).names(f"cells/{result.cell}")
    assert "checkpoint.pt" in names


@pytest.mark.parametrize("epoch", [2, EPOCHS])
def test_a_storage_that_refuses_a_checkpoint_ends_the_run_without_a_result(
    epoch: int, make: Callable[[str], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sent = Storage.send, []

    def refuse(self: Storage, file: Path, name: str, **more: Any) -> None:
        if name.endswith("/checkpoint.pt"):
            sent.append(name)
            if len(sent) == epoch:
                raise StorageError(28, "the storage is full")
        send(self, file, name, **more)

    monkeypatch.setattr(Storage, "send", refuse)
    config, heard = make("1"), []
    with pytest.raises(StorageError, match="the storage is full"):
        execute_run(
            config, on(tmp_path / "shared", tmp_path / "node"), on_epoch=lambda history: heard.append(1) is None
        )
    assert epoch <= len(heard) <= epoch + 1, "at the latest at the end of the next epoch"
    names = storage_at(str(tmp_path / "shared")).names(f"cells/{config.digest()}")
    assert not {"result.json", "error.txt"} & set(names), "it has not failed"
    assert execute_run(config, on(tmp_path / "shared", tmp_path / "other")).status == "done"


def test_what_is_trained_again_is_no_progress() -> None:
    """A worker that dies again and again before its next checkpoint does so only three times."""
    retries = Retries()
    assert [isinstance(retries.died(0, epochs), Retry) for epochs in (5, 3, 5)] == [True, True, False]
