"""Tests what an epoch reports beside the trainer's own figures: its loss terms, and the numbers of a defense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData
from erat.engine import checkpoint
from erat.engine.trainer import Trainer
from erat.engine.underway import Interrupted
from erat.losses import ramp
from erat.options import DefenseOptions
from erat.registry import DEFENSES


class TellerOptions(DefenseOptions):
    name: Literal["teller"] = "teller"


class Teller(Defense):
    """Plain training of two steps per epoch that reports what a test asks for."""

    Options = TellerOptions
    planned: dict[str, float]
    noted: dict[str, Callable[[Clock], Tensor | float]]

    def __init__(self, options: DefenseOptions, task: Task) -> None:
        super().__init__(options, task)
        self.networks = nn.ModuleDict({"main": task.build(0)})

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        return EpochPlan((Phase(torch.arange(len(data))),), numbers=self.planned)

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        terms = LossTerms()
        terms.add("ce", F.cross_entropy(self.networks["main"](batch.images), batch.labels))
        for name, number in self.noted.items():
            terms.note(name, number(clock))
        return terms


Make = Callable[..., Trainer]


@pytest.fixture
def teller(
    register: Callable[..., None], make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet]
) -> Make:
    """Return `teller(planned={"x": 1.0}, noted={"y": lambda clock: 2.0})`.

    It makes a trainer on 32 images, with two steps per epoch.
    """
    kind = type("Teller", (Teller,), {})
    register(DEFENSES, "teller", kind)

    def make(
        planned: dict[str, float] | None = None,
        noted: dict[str, Callable[[Clock], Tensor | float]] | None = None,
        overrides: dict[str, Any] | None = None,
        **more: Any,
    ) -> Trainer:
        kind.planned, kind.noted = planned or {}, noted or {}  # type: ignore[attr-defined]
        return Trainer(
            make_config({"defense.name": "teller", "train.epochs": 1} | (overrides or {})), make_data(32), **more
        )

    return make


NOTED: dict[str, Callable[[Clock], Tensor | float]] = {
    "step": lambda clock: float(clock.step),
    "tensor": lambda clock: torch.tensor(10.0 + clock.step),
    "count": lambda clock: torch.tensor(clock.step),
}


def test_what_a_plan_and_its_updates_report_is_in_the_epoch_s_report(teller: Make) -> None:
    (report,) = teller({"cutoff": 0.25}, NOTED).run()
    assert report.numbers == {"cutoff": 0.25, "step": 0.5, "tensor": 10.5, "count": 0.5}, "means over the two updates"
    assert report.loss_terms == {"ce": pytest.approx(report.train_loss)}, "numbers are no terms, and not minimised"


def test_numbers_change_no_weight(teller: Make) -> None:
    plain, telling = teller(), teller(noted=NOTED)
    plain_report, report = next(plain.run()), next(telling.run())
    assert plain_report.train_loss == report.train_loss
    ours, theirs = plain.defense.state_dict(), telling.defense.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_update_need_not_have_every_number(teller: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = teller()
    loss = trainer.defense.loss

    def sometimes(batch: Batch, clock: Clock) -> LossTerms:
        terms = loss(batch, clock)
        if clock.step == 1:
            terms.note("late", 4.0)
        return terms

    monkeypatch.setattr(trainer.defense, "loss", sometimes)
    assert next(trainer.run()).numbers == {"late": 4.0}, "the mean over the updates that have it"


def test_parts_of_a_batch_report_their_mean(teller: Make) -> None:
    noted: dict[str, Any] = {"mean_label": lambda clock: torch.tensor(1 + clock.step), "one": lambda clock: 1.0}
    trainer = teller(noted=noted, overrides={"train.accumulate": 2})
    assert next(trainer.run()).numbers == {"mean_label": 1.5, "one": 1.0}


def test_what_is_not_finite_is_left_out(teller: Make) -> None:
    noted: dict[str, Any] = {"noted": lambda clock: float("nan") if clock.step else 1.0, "kept": lambda clock: 3.0}
    (report,) = teller({"planned": float("inf"), "cutoff": 0.5}, noted).run()
    assert report.numbers == {"cutoff": 0.5, "kept": 3.0}


@pytest.mark.parametrize("name", ["val_accuracy", "train_loss", "epoch", "final_test_accuracy"])
def test_a_number_cannot_take_the_name_of_a_figure(teller: Make, name: str) -> None:
    """Otherwise a choice by validation accuracy could be given another number."""
    with pytest.raises(ValueError, match=f"number '{name}' of the defense must have a name of its own"):
        next(teller({name: 1.0}).run())
    with pytest.raises(ValueError, match=f"number '{name}' of the defense must have a name of its own"):
        next(teller(noted={name: lambda clock: 1.0}).run())


def test_a_name_stands_once(teller: Make) -> None:
    terms = LossTerms()
    terms.add("ce", torch.zeros(()))
    for name in ("ce", "total"):
        with pytest.raises(AssertionError, match="added twice"):
            terms.note(name, 1.0)
    terms.note("x", 1.0)
    with pytest.raises(AssertionError, match="added twice"):
        terms.add("x", torch.zeros(()))
    with pytest.raises(AssertionError, match=r"must be a scalar, got shape \(2,\)"):
        terms.note("y", torch.zeros(2))
    with pytest.raises(ValueError, match="must stand in its plan or its loss, got both"):
        next(teller({"step": 1.0}, NOTED).run())


def test_a_checkpoint_keeps_them(teller: Make, tmp_path: Path) -> None:
    overrides = {"train.epochs": 2}
    trainer = teller({"cutoff": 0.25}, NOTED, overrides, folder=tmp_path)
    next(trainer.run())
    again = teller({"cutoff": 0.75}, NOTED, overrides, folder=tmp_path)
    assert again.history == trainer.history
    assert again.history[0].numbers["cutoff"] == 0.25
    list(again.run())
    assert [report.numbers["cutoff"] for report in again.history] == [0.25, 0.75]


def test_an_epoch_that_is_interrupted_reports_all_of_it(teller: Make, tmp_path: Path) -> None:
    asked = iter([False, True])
    first = teller({"cutoff": 0.25}, NOTED, folder=tmp_path, told_to_leave=lambda: next(asked))
    with pytest.raises(Interrupted):
        next(first.run())
    (report,) = teller({"cutoff": 0.75}, NOTED, folder=tmp_path).run()
    assert report.numbers == {"cutoff": 0.25, "step": 0.5, "tensor": 10.5, "count": 0.5}
    assert report.loss_terms.keys() == {"ce"}


@pytest.mark.parametrize("inside", [False, True])
def test_a_checkpoint_of_an_earlier_version_has_none(teller: Make, tmp_path: Path, inside: bool) -> None:
    asked = iter([False, False, False, not inside])  # before the first epoch, after its steps, before the second
    trainer = teller(overrides={"train.epochs": 2}, folder=tmp_path, told_to_leave=lambda: next(asked, True))
    with pytest.raises(Interrupted):
        list(trainer.run())
    path = tmp_path / "checkpoint.pt"
    state = checkpoint.load(path, torch.device("cpu"))
    for row in state["history"]:
        del row["numbers"]
    if state["underway"] is not None:
        del state["underway"]["noted"], state["underway"]["plan"]["numbers"]
    checkpoint.save(path, state)
    assert (state["underway"] is not None) is inside
    again = teller({"cutoff": 0.25}, NOTED, {"train.epochs": 2}, folder=tmp_path)
    assert (again.epochs_done, again.history[0].numbers) == (1, {})
    list(again.run())
    assert again.history[1].numbers.keys() >= {"step", "tensor", "count"}


def test_erat_reports_its_weight_and_its_trust(
    make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet]
) -> None:
    trainer = Trainer(make_config({"defense.ramp_epochs": 4}), make_data(48))
    warmup, *later = trainer.run()
    assert warmup.numbers == {}
    for report in later:
        count = round(48 * report.labelled_fraction) // 16
        steps = [ramp(25.0, report.epoch - 2 + step / count, 4) for step in range(count)]
        assert report.numbers["lambda_u"] == pytest.approx(sum(steps) / len(steps))
        assert 0 < report.numbers["label_trust"] < 1
