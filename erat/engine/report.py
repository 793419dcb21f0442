"""What an epoch came to."""

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
    """One epoch's figures, over all workers. Accuracies, precision, recall and fractions in [0, 1].

    `selection_*` are measured against the true labels, which training never sees. Test accuracy is for the record:
    nothing may choose by it.
    """

    epoch: int  # epochs done, from 1
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
    numbers: dict[str, float] = field(default_factory=dict)  # what the defense reports beside them, all finite
    labelled_per_class: list[int] = field(default_factory=list)  # by given label
    correct_per_class: list[int] = field(default_factory=list)  # of these, how many are labelled right
    wrong_per_class: list[int] = field(default_factory=list)  # labelled wrong in the whole training set
    caught_per_class: list[int] = field(default_factory=list)  # of these, how many lost their label
    noise_caught: float | None = None  # share of the wrong labels that were dropped; none: no wrong ones
    # Of the samples without a label: how often the networks' class is the true one; none: not predicted, or none there.
    pseudo_label_accuracy: float | None = None


def selection_figures(plan: EpochPlan, data: CorruptedSet) -> dict[str, Any]:
    """How good an epoch's labelled set is: fields of its report. A defense that selects nothing labels everything."""
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
    """Return the numbers that a defense reports of an epoch: those of its plan, then the `means` of those that its
    updates noted. What is not finite is left out: it has no place in a plot, nor in JSON.

    Raises:
        ValueError: a name stands in both, or is one of the report's or the result's own.
    """
    for name in means:
        if name in plan.numbers:
            raise ValueError(f"number {name!r} of the defense must stand in its plan or its loss, got both")
    numbers = {name: float(value) for name, value in {**plan.numbers, **means}.items()}
    taken = {entry.name for record in (EpochReport, RunResult) for entry in fields(record)}
    for name in sorted(numbers.keys() & taken):
        raise ValueError(f"number {name!r} of the defense must have a name of its own, got one of the trainer's")
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
