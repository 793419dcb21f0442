"""Tests the figures of a labelled set against true labels, by class, counted by hand for a fixed plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer
from erat.options import DefenseOptions
from erat.registry import DEFENSES

# Twelve samples of four classes, five of which have a wrong label: 0 -> 1, 0 -> 2, 1 -> 2, 2 -> 1 and 3 -> 1.
TRUE = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
GIVEN = torch.tensor([0, 1, 2, 1, 1, 2, 2, 1, 2, 3, 3, 1])
# Without a label: two with wrong labels (the second and the last) and two with right ones.
DROPPED = torch.tensor([1, 4, 9, 11])


class FixedOptions(DefenseOptions):
    name: Literal["fixed"] = "fixed"


class Fixed(Defense):
    """Plain training by a given plan."""

    Options = FixedOptions
    plan: ClassVar[EpochPlan]

    def __init__(self, options: DefenseOptions, task: Task) -> None:
        super().__init__(options, task)
        self.networks = nn.ModuleDict({"main": task.build(0)})

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        return self.plan

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        terms = LossTerms()
        terms.add("ce", F.cross_entropy(self.networks["main"](batch.images), batch.labels))
        return terms


Report = Callable[..., EpochReport]


@pytest.fixture
def report(
    register: Callable[..., None],
    make_config: Callable[..., RunConfig],
    make_data: Callable[..., CorruptedSet],
    monkeypatch: pytest.MonkeyPatch,
) -> Report:
    """Return `report(selected, predicted)`, the report of one epoch with that plan and these predictions."""
    register(DEFENSES, "fixed", Fixed)
    clean = make_data(12)
    data = replace(clean, train=replace(clean.train, labels=GIVEN), true_labels=TRUE)

    def of(selected: Tensor | None, predicted: Tensor | None = None, given: Tensor = GIVEN) -> EpochReport:
        everything = torch.arange(12)
        mask = torch.ones(12, dtype=torch.bool) if selected is None else selected
        plan = EpochPlan((Phase(everything[mask], everything[~mask]),), selected=selected, predicted=predicted)
        monkeypatch.setattr(Fixed, "plan", plan, raising=False)
        config = make_config({"defense.name": "fixed", "train.epochs": 1, "train.batch_size": 4})
        labelled = replace(data, train=replace(data.train, labels=given))
        return next(Trainer(config, labelled).run())

    return of


def without(indices: Tensor) -> Tensor:
    mask = torch.ones(12, dtype=torch.bool)
    mask[indices] = False
    return mask


def test_wrong_and_caught_labels_are_counted_under_the_label_that_they_wear(report: Report) -> None:
    """Three of the wrong labels are class 1, two are class 2; two of those that are class 1 were dropped."""
    got = report(without(DROPPED))
    assert got.wrong_per_class == [0, 3, 2, 0]
    assert got.caught_per_class == [0, 2, 0, 0]
    assert got.labelled_per_class == [1, 2, 4, 1]
    assert got.correct_per_class == [1, 1, 2, 1]
    assert got.noise_caught == pytest.approx(2 / 5)
    assert got.labelled_fraction == pytest.approx(8 / 12)
    assert got.selection_precision == pytest.approx(5 / 8)
    assert got.selection_recall == pytest.approx(5 / 7)


def test_the_counts_add_up(report: Report) -> None:
    got: Any = report(without(DROPPED))
    for k in range(4):
        wrong_and_kept = got.labelled_per_class[k] - got.correct_per_class[k]
        assert got.wrong_per_class[k] == got.caught_per_class[k] + wrong_and_kept


def test_pseudo_labels_are_measured_where_the_label_was_dropped_alone(report: Report) -> None:
    """Of the four dropped samples three are predicted as their true class; the other samples do not count."""
    predicted = (TRUE + 1) % 4
    predicted[DROPPED] = TRUE[DROPPED]
    predicted[9] = 0
    assert report(without(DROPPED), predicted).pseudo_label_accuracy == 0.75
    predicted[DROPPED] = GIVEN[DROPPED]
    assert report(without(DROPPED), predicted).pseudo_label_accuracy == 0.5, "by true labels, not by given ones"


def test_all_noise_caught_and_none(report: Report) -> None:
    wrong = (GIVEN != TRUE).nonzero().flatten()
    got = report(without(wrong))
    assert got.noise_caught == 1
    assert got.caught_per_class == got.wrong_per_class == [0, 3, 2, 0]
    assert got.selection_precision == 1
    right = (GIVEN == TRUE).nonzero().flatten()
    got = report(without(right))
    assert got.noise_caught == 0
    assert got.caught_per_class == [0, 0, 0, 0]
    assert got.correct_per_class == [0, 0, 0, 0]


def test_without_a_selection_nothing_is_caught(report: Report) -> None:
    got = report(None)
    assert got.wrong_per_class == [0, 3, 2, 0]
    assert got.caught_per_class == [0, 0, 0, 0]
    assert got.noise_caught == 0
    assert got.pseudo_label_accuracy is None


def test_without_wrong_labels_there_is_no_share_to_tell(report: Report) -> None:
    got = report(without(DROPPED), TRUE, given=TRUE)
    assert got.noise_caught is None
    assert got.wrong_per_class == got.caught_per_class == [0, 0, 0, 0]
    assert got.pseudo_label_accuracy == 1


@pytest.mark.parametrize(
    ("selected", "predicted"), [(None, TRUE), (without(DROPPED), None), (torch.ones(12, dtype=torch.bool), TRUE)]
)
def test_without_predictions_or_dropped_labels_there_is_no_pseudo_label(
    report: Report, selected: Tensor | None, predicted: Tensor | None
) -> None:
    assert report(selected, predicted).pseudo_label_accuracy is None


@pytest.mark.parametrize("name", ["erat", "dividemix", "unicon", "mspl"])
def test_every_selecting_defense_tells_its_figures_once_it_selects(
    make_config: Callable[..., RunConfig], make_data: Callable[..., CorruptedSet], name: str
) -> None:
    data = make_data(48)
    warmup, selecting, _ = Trainer(make_config({"defense.name": name}), data).run()
    assert warmup.wrong_per_class == selecting.wrong_per_class == [3, 3, 3, 3]
    assert warmup.noise_caught == 0
    assert selecting.noise_caught == pytest.approx(sum(selecting.caught_per_class) / 12)
    assert warmup.pseudo_label_accuracy is None
    assert selecting.labelled_fraction < 1
    assert selecting.pseudo_label_accuracy is not None
    assert 0 <= selecting.pseudo_label_accuracy <= 1
