"""Tests that checkpoints are written at their interval by a thread, from a copy, and that its errors are the run's."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from erat.config import RunConfig, build
from erat.data.types import CorruptedSet
from erat.engine import checkpoint
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.engine.writer import CheckpointWriter, _copied
from erat.errors import UserError

CPU = torch.device("cpu")
EPOCHS = 5
Make = Callable[..., Trainer]


@pytest.fixture
def make(make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet], tmp_path: Path) -> Make:
    data = make_data(48)

    def trainer(every: str | int = 1, folder: Path | None = None, **more: Any) -> Trainer:
        options = {"defense.name": "ce", "train.epochs": EPOCHS, "train.checkpoint_every": every}
        return Trainer(make_config(options), data, folder=folder or tmp_path / "run", **more)

    return trainer


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the epochs in each checkpoint that is written."""
    epochs: list[int] = []
    save = checkpoint.save

    def counted(path: Path, state: dict[str, Any], **more: Any) -> None:
        save(path, state, **more)
        epochs.append(len(state["history"]))

    monkeypatch.setattr(checkpoint, "save", counted)
    return epochs


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return an event; until it is set, no checkpoint is written."""
    opened = threading.Event()
    save = checkpoint.save

    def late(*arguments: Any, **more: Any) -> None:
        assert opened.wait(300)
        save(*arguments, **more)

    monkeypatch.setattr(checkpoint, "save", late)
    yield opened
    opened.set()


def same(ours: Trainer, theirs: Trainer) -> bool:
    mine, other = ours.defense.state_dict(), theirs.defense.state_dict()
    losses = [[report.train_loss for report in trainer.history] for trainer in (ours, theirs)]
    return losses[0] == losses[1] and all(torch.equal(mine[name], other[name]) for name in other)


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4, 5]), ("2", [2, 4, 5]), (5, [5]), ("9", [5])], ids=str)
def test_they_are_written_after_so_many_epochs_and_the_last(
    make: Make, written: list[int], every: str | int, epochs: list[int]
) -> None:
    list(make(every).run())
    assert written == epochs


def test_they_are_written_after_so_much_time(make: Make, written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("erat.engine.writer.time.monotonic", lambda: now[0])
    for report in make("10min").run():
        now[0] = [0, 0, 601, 1000, 1300][report.epoch - 1]
    assert written == [4, 5], "the end of an epoch is when time is looked at"


@pytest.mark.parametrize("given", ["0", "0s", "-1", "1.5h", "ten", "169h", 100001, True], ids=str)
def test_what_is_no_interval_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"train\.checkpoint_every: input should be .*, got "):
        build("demo", {"train.checkpoint_every": given})


def test_the_interval_is_no_part_of_a_run_s_identity() -> None:
    made = build("demo", {"train.checkpoint_every": "10 min"})
    assert made.train.checkpoint_every == "10min"
    assert made.digest() == build("demo").digest()


# --- beside the training ---------------------------------------------------------------------------------------------


def test_the_training_goes_on_while_one_is_written_and_what_is_written_is_what_was(
    make: Make, gate: threading.Event, tmp_path: Path
) -> None:
    trainer = make(2)
    epochs = trainer.run()
    assert [next(epochs).epoch for _ in range(3)] == [1, 2, 3]
    assert not (tmp_path / "run").exists()
    gate.set()
    trainer.settle()
    shutil.copytree(tmp_path / "run", tmp_path / "cut")  # as if it were killed now
    list(epochs)
    again = make(2, tmp_path / "cut")
    assert again.epochs_done == 2, "the last checkpoint: at most the interval is lost"
    list(again.run())
    assert same(again, trainer)


def test_the_next_one_waits_for_the_one_before(make: Make, gate: threading.Event, written: list[int]) -> None:
    """Otherwise more than one interval could be lost."""
    epochs = make(1).run()
    next(epochs)
    done: list[int] = []
    second = threading.Thread(target=lambda: done.append(next(epochs).epoch))
    second.start()
    second.join(0.5)
    assert not done
    gate.set()
    second.join(300)
    assert done == [2]
    epochs.close()  # type: ignore[attr-defined]
    assert written == [1, 2], "nobody else finds a thread that still writes"


def test_kept_is_called_when_the_file_is_there_by_the_thread(make: Make, tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def kept() -> None:
        state = checkpoint.load(tmp_path / "run" / "checkpoint.pt", CPU)
        seen.append((len(state["history"]), threading.current_thread() is threading.main_thread()))

    list(make(2, kept=kept).run())
    assert seen == [(2, False), (4, False), (5, False)]
    left = [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    for thread in left:
        thread.join(300)  # it does not wait for more
    assert not any(thread.is_alive() for thread in left)


def test_a_copy_is_as_the_original_but_stays(make: Make) -> None:
    state = make().defense.state_dict()
    copied = _copied({"a": state, "b": [torch.ones(2), (1, "x", None)]})
    assert type(copied["a"]) is OrderedDict
    assert copied["a"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert copied["b"][1] == (1, "x", None)
    for name, value in state.items():
        assert torch.equal(copied["a"][name], value)
        assert copied["a"][name].data_ptr() != value.data_ptr()


# --- stopping, and going on ------------------------------------------------------------------------------------------


def test_one_that_stops_between_two_keeps_where_it_is_if_asked(make: Make, written: list[int]) -> None:
    whole = make(1, make().checkpoint_path.parent / "whole")  # type: ignore[union-attr]
    list(whole.run())
    written.clear()
    trainer = make(4)
    for report in trainer.run():
        if report.epoch == 3:
            break
    assert written == []
    trainer.keep()
    trainer.keep()
    assert written == [3]
    again = make(4)
    assert again.epochs_done == 3
    again.keep()
    assert written == [3], "it is there already"
    assert [report.epoch for report in again.run()] == [4, 5]
    assert same(again, whole)


@pytest.mark.parametrize("asks", [2, 4, 5, 7])
def test_told_to_leave_it_loses_nothing_at_any_interval(make: Make, asks: int, tmp_path: Path) -> None:
    """Three batches an epoch, and one question before it: in the first epoch, at its end, and in the second."""
    whole = make(1, tmp_path / "whole")
    list(whole.run())
    answers = iter([False] * asks)
    trainer = make("7", told_to_leave=lambda: next(answers, True))
    with pytest.raises(Interrupted):
        list(trainer.run())
    again = make("7")
    assert again.epochs_done == trainer.epochs_done
    assert (again._underway is None) == (asks == 4)
    told = make("7", told_to_leave=lambda: True)
    with pytest.raises(Interrupted):  # at once, with a checkpoint from inside an epoch, which stays as it is
        list(told.run())
    list(again.run())
    assert same(again, whole)


def test_told_to_leave_it_does_not_wait_until_two_are_sent(make: Make, written: list[int]) -> None:
    sent: list[tuple[int, bool]] = []

    def slow() -> None:
        """Send the checkpoint for a minute, unless it is overtaken."""
        for _ in range(6000 if len(sent) == 0 else 1):
            if trainer.overtaken:
                break
            time.sleep(0.01)
        sent.append((len(written), trainer.overtaken))

    answers = iter([False] * 5)  # the second epoch's first batch is done then
    trainer = make(1, told_to_leave=lambda: next(answers, True), kept=slow)
    with pytest.raises(Interrupted):
        list(trainer.run())
    assert sent == [(1, True), (2, False)], "the first is given up, the last is sent"
    assert make(1)._underway is not None


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [1, 5])
def test_an_error_of_the_thread_ends_the_run(make: Make, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    save, epochs = checkpoint.save, []

    def full(path: Path, state: dict[str, Any], **more: Any) -> None:
        if len(state["history"]) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, state, **more)

    monkeypatch.setattr(checkpoint, "save", full)
    trainer = make(1)
    with pytest.raises(OSError, match="No space left"):
        epochs += [report.epoch for report in trainer.run()]
    with pytest.raises(OSError, match="No space left"):
        trainer.keep()
    monkeypatch.undo()
    again = make(1)
    assert again.epochs_done == fails_at - 1
    assert [report.epoch for report in again.run()] == list(range(fails_at, EPOCHS + 1))


def test_an_error_is_raised_as_soon_as_it_is_known(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    writer = CheckpointWriter(tmp_path / "state.pt", "1", fail)
    writer.check()
    writer.write(1, {"x": 1})
    writer.settle()
    for act in (writer.check, writer.wait, lambda: writer.write(2, {"x": 2})):
        with pytest.raises(ZeroDivisionError):
            act()
