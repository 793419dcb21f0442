"""Audits an image set: from its images and given labels to the labels that are probably wrong.

The work goes fold by fold (`examine`), and a fold's result may be saved and read again; `conclude` then combines all
folds. Two networks are trained on every fold's complement, one by ERAT and one by plain cross-entropy; both judge the
fold that they have not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erat.attacks.freezing import frozen
from erat.audit.crossfit import judge, merge, rebuild
from erat.audit.folds import deal
from erat.audit.poisoning import PoisonTest, poison_test, washed
from erat.audit.quality import (
    Noise,
    above_chance,
    estimate_noise,
    issues,
    joint_opinion,
    label_quality,
    mean_scores,
    suggestions,
)
from erat.audit.robustness import Hold, robustness
from erat.audit.settings import customary_budgets
from erat.config import RunConfig
from erat.data.sources.collection import same_pictures
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense
from erat.engine.evaluation import accuracy
from erat.engine.report import EpochReport
from erat.errors import UserError
from erat.seeding import derive, generator

WAYS = ("robust", "plain")
# Adversarial training counts as far behind if it has learnt less than this share of what plain training has learnt.
FAR_LESS = 0.6

OnEpoch = Callable[[str, EpochReport], None]


@dataclass(frozen=True)
class Plan:
    """The plan of an audit: both configurations, and which images are judged together.

    Attributes:
        robust, plain: the configurations of ERAT and of plain cross-entropy.
        images: the N images with their given labels.
        fold: the fold of each image, int64 (N,).
        copies: groups of rows that show the same picture.
        judged: bool (N,); false where a class has a single picture: a network that has not seen that picture cannot
            know the class.
    """

    robust: RunConfig
    plain: RunConfig
    images: ImageSet
    fold: Tensor
    copies: list[list[int]]
    judged: Tensor

    @property
    def folds(self) -> int:
        """Return the number of folds, at least 2."""
        return int(self.fold.max()) + 1

    def config(self, way: str) -> RunConfig:
        """Return the configuration of "robust" or "plain" training."""
        return self.robust if way == "robust" else self.plain


def plan(images: ImageSet, robust: RunConfig, plain: RunConfig, folds: int) -> Plan:
    """Deal the images into folds.

    Raises:
        UserError: there are fewer than two classes with two pictures each, fewer than two folds, or more folds than
            images.
    """
    copies = same_pictures(images)
    fold = deal(images.labels, folds, copies, generator(robust.train.seed, "audit-folds"))
    seen = torch.zeros(images.num_classes, folds, dtype=torch.bool)
    seen[images.labels, fold] = True
    learnable = seen.sum(1) > 1
    if int(learnable.sum()) < 2:
        raise UserError(
            f"an audit needs at least 2 classes with 2 pictures or more, got {int(learnable.sum())} "
            f"of {images.num_classes} classes"
        )
    return Plan(robust, plain, images, fold, copies, learnable[images.labels])


def examine(plan: Plan, number: int, on_epoch: OnEpoch | None = None) -> dict[str, Any]:
    """Train both ways without fold `number` and let both networks judge it.

    Returns:
        Tensors and plain values only, so that they can be saved: "robust" and "plain" hold softmax outputs (E, M, K)
        of the M images of the fold; "washed" the classes (M,) that each network predicts for the washed pictures;
        "networks" the weights, for the first fold only.
    """
    held_out = plan.fold == number
    part: dict[str, Any] = {"washed": {}, "networks": {}}
    pictures = plan.images.images[held_out]
    for way in WAYS:
        part[way], defense = judge(plan.config(way), plan.images, held_out, partial(on_epoch or _silent, way))
        part["washed"][way] = classes_of(defense, washed(pictures))
        if number == 0:
            part["networks"][way] = {name: value.cpu() for name, value in defense.state_dict().items()}
    return part


def _silent(way: str, report: EpochReport) -> None:
    """Ignore the report of an epoch."""


def classes_of(defense: Defense, pictures: Tensor) -> Tensor:
    """Return the classes that are predicted for uint8 images, int64 (N,), on the CPU."""
    device = next(defense.parameters()).device
    with frozen(defense), torch.no_grad():
        return torch.cat([defense.predict(to_float(part.to(device))).argmax(1).cpu() for part in pictures.split(1000)])


@dataclass(frozen=True)
class Audit:
    """The findings of an audit, for all N images in their order.

    Attributes:
        probs: float64 (N, K), the joint opinion of both trainings, averaged over the judged epochs.
        quality: float64 (N,), in [0, 1], small where the given label is probably wrong.
        suggested, probability: the likeliest class, int64 (N,), and its probability.
        issue: bool (N,), true where the label is probably wrong.
        noise: the estimated label noise.
        poisoning: the result of both tests for a perturbation.
        alone: whether plain training was left out of the opinion, because the images are poisoned and plain training
            agrees with the given labels far more often than adversarial training does.
        conflicts: groups of rows that show the same picture under different labels.
        agreement: "robust" and "plain" -> share of the held-out images that are predicted as their given label.
        believed: "robust" and "plain" -> share that are predicted as the label that the audit believes.
        learnt: "robust" and "plain" -> agreement with the given labels above chance.
    """

    plan: Plan
    probs: Tensor
    quality: Tensor
    suggested: Tensor
    probability: Tensor
    issue: Tensor
    noise: Noise
    poisoning: PoisonTest
    alone: bool
    conflicts: list[list[int]]
    agreement: dict[str, float]
    believed: dict[str, float]
    learnt: dict[str, float]

    @property
    def disagree(self) -> bool:
        """Return whether adversarial training has learnt the given labels far less than plain training has."""
        return self.learnt["robust"] < FAR_LESS * self.learnt["plain"]

    @property
    def believed_labels(self) -> Tensor:
        """Return the given labels, replaced by the suggested ones where there is an issue; int64 (N,)."""
        return torch.where(self.issue, self.suggested, self.plan.images.labels)


@dataclass(frozen=True)
class _Verdict:
    """The conclusions from an opinion, float64 (E, N, K); see `Audit` for the attributes."""

    probs: Tensor
    quality: Tensor
    suggested: Tensor
    probability: Tensor
    issue: Tensor
    believed: Tensor

    @classmethod
    def of(cls, opinion: Tensor, plan: Plan) -> _Verdict:
        labels, probs = plan.images.labels, opinion.mean(0)
        values = mean_scores(opinion, labels)
        suggested, probability = suggestions(probs, labels)
        issue = issues(probs, values, labels) & plan.judged
        return cls(probs, label_quality(values), suggested, probability, issue, torch.where(issue, suggested, labels))


def conclude(plan: Plan, parts: Sequence[Mapping[str, Any]]) -> Audit:
    """Combine the judgements of all folds into one audit.

    Args:
        parts: what `examine` returned for each fold, in the order of the folds.
    """
    images, labels, numbered = plan.images, plan.images.labels, range(len(parts))
    by_way = {way: merge({k: parts[k][way] for k in numbered}, plan.fold) for way in WAYS}
    predicted = {way: by_way[way].mean.argmax(1) for way in WAYS}
    after_wash = {
        way: merge({k: parts[k]["washed"][way][None, :, None] for k in numbered}, plan.fold).probs[0, :, 0]
        for way in WAYS
    }
    learnt = {way: above_chance(by_way[way].mean, labels) for way in WAYS}
    verdict = _Verdict.of(joint_opinion(by_way["robust"].probs, by_way["plain"].probs, labels), plan)
    poisoning = poison_test(images, verdict.believed, plan.judged & ~verdict.issue, predicted, after_wash)
    alone = poisoning.poisoned and learnt["robust"] < FAR_LESS * learnt["plain"]
    if alone:
        # Plain training has learnt these labels from the perturbation, which may have been made for wrong labels too.
        verdict = _Verdict.of(by_way["robust"].probs.double(), plan)
    return Audit(
        plan=plan,
        probs=verdict.probs,
        quality=verdict.quality,
        suggested=verdict.suggested,
        probability=verdict.probability,
        issue=verdict.issue,
        noise=estimate_noise(verdict.believed, labels, images.num_classes),
        poisoning=poisoning,
        alone=alone,
        conflicts=conflicts(plan.copies, labels),
        agreement={way: accuracy(labels[plan.judged], predicted[way][plan.judged]) for way in WAYS},
        believed={way: accuracy(verdict.believed[plan.judged], predicted[way][plan.judged]) for way in WAYS},
        learnt=learnt,
    )


def conflicts(copies: Sequence[Sequence[int]], labels: Tensor) -> list[list[int]]:
    """Return the groups of rows (of `copies`) that show one picture under different labels (int64 (N,))."""
    return [list(group) for group in copies if len(set(labels[list(group)].tolist())) > 1]


def hold_up(
    plan: Plan,
    audit: Audit,
    networks: Mapping[str, Mapping[str, Tensor]],
    trusted: ImageSet | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Hold]:
    """Measure the robustness of the first fold's networks on images that neither of them has seen.

    Args:
        networks: their weights, as `examine` returns them for the first fold.
        trusted: images to measure on; none: the images of the first fold whose labels show no issue.
        progress: called with the number of conditions done and of all conditions.
    """
    inside = plan.images.take((plan.fold != 0).nonzero().squeeze(1))
    defenses = {way: rebuild(plan.config(way), inside, networks[way]) for way in WAYS}
    if trusted is None:
        trusted = plan.images.take(((plan.fold == 0) & plan.judged & ~audit.issue).nonzero().squeeze(1))
    device = next(defenses["robust"].parameters()).device
    seed = derive(plan.robust.train.seed, "audit-noise")
    return robustness(defenses, trusted.to(device), customary_budgets(plan.images), seed, progress)
