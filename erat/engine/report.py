"""The report of an epoch: its figures, those of the labelled set, and the numbers of the defense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from erat.data.types import CorruptedSet
from erat.defenses.base import EpochPlan
from erat.engine.evaluation import accuracy
from erat.result import RunResult
from erat.selection import agreement


@dataclass(frozen=True)
class EpochReport:
    """The figures of one epoch, over all workers. Accuracies, precision, recall and fractions are in [0, 1].

    `selection_*` are measured against the true labels, which training never sees. Test accuracy is for the record only:
    no decision may depend on it.
    """

    epoch: int  # number of epochs done, from 1
    train_loss: float
    val_accuracy: float
    test_accuracy: float
    selection_precision: float
    selection_recall: float
    labelled_fraction: float
    epoch_seconds: float
    images_per_second: float
    learning_rate: float
    loss_terms: dict[str, float] = field(default_factory=dict)  # mean over the epoch's updates, unweighted
    numbers: dict[str, float] = field(default_factory=dict)  # further numbers that the defense reports, all finite
    labelled_per_class: list[int] = field(default_factory=list)  # samples in the labelled set, by given label
    correct_per_class: list[int] = field(default_factory=list)  # those of them whose label is right
    wrong_per_class: list[int] = field(default_factory=list)  # wrong labels in the whole training set, by given label
    caught_per_class: list[int] = field(default_factory=list)  # those of them that lost their label
    noise_caught: float | None = None  # share of the wrong labels that were dropped; None: there are no wrong labels
    # Share of the samples without a label whose predicted class is the true one; None: no prediction or no such sample.
    pseudo_label_accuracy: float | None = None


def selection_figures(plan: EpochPlan, data: CorruptedSet) -> dict[str, Any]:
    """Return the fields of an epoch's report that say how good its labelled set is.

    The labelled set of a defense that does not select contains all samples.
    """
    given, true = data.train.labels, data.true_labels
    mask = torch.ones_like(given, dtype=torch.bool) if plan.selected is None else plan.selected
    precision, recall = agreement(mask, given, true)
    classes, wrong, left_out = data.train.num_classes, given != true, ~mask
    pseudo = None
    if plan.predicted is not None and bool(left_out.any()):
        pseudo = accuracy(true[left_out], plan.predicted[left_out])
    return {
        "selection_precision": precision,
        "selection_recall": recall,
        "labelled_fraction": float(mask.float().mean()),
        "labelled_per_class": torch.bincount(given[mask], minlength=classes).tolist(),
        "correct_per_class": torch.bincount(given[mask & ~wrong], minlength=classes).tolist(),
        "wrong_per_class": torch.bincount(given[wrong], minlength=classes).tolist(),
        "caught_per_class": torch.bincount(given[wrong & left_out], minlength=classes).tolist(),
        "noise_caught": float(left_out[wrong].float().mean()) if bool(wrong.any()) else None,
        "pseudo_label_accuracy": pseudo,
    }


def reported_numbers(plan: EpochPlan, means: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that a defense reports for an epoch: those of its plan and the means of those of its updates.

    Values that are not finite are left out, because neither a plot nor JSON can hold them.

    Args:
        plan: the plan of the epoch.
        means: the mean of each number that the updates noted.

    Raises:
        ValueError: a name occurs in both, or is the name of a field of the report or of the result.
    """
    for name in means:
        if name in plan.numbers:
            raise ValueError(f"number {name!r} of the defense must stand in its plan or its loss, got both")
    numbers = {name: float(value) for name, value in {**plan.numbers, **means}.items()}
    taken = {entry.name for record in (EpochReport, RunResult) for entry in fields(record)}
    for name in sorted(numbers.keys() & taken):
        raise ValueError(f"number {name!r} of the defense must have a name of its own, got one of the trainer's")
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
