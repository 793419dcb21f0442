"""The audit of a set of one's own, from its images and given labels to what is probably wrong with it.

Fold by fold (`examine`), each of which may be kept and read again, and then all together (`conclude`). Two networks
are trained on every fold's complement, by ERAT and by plain cross-entropy; both judge the fold that they have not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erat.attacks.pgd import frozen
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
FAR_LESS = 0.6  # what adversarial training has learnt of the given labels, as a share of what plain training has

OnEpoch = Callable[[str, EpochReport], None]


@dataclass(frozen=True)
class Plan:
    """What is done: both configurations, and which images are judged together.

    Attributes:
        fold: int64 (N,).
        copies: groups of rows that show the same picture.
        judged: bool (N,); false where a class has one picture alone, of which no network can have learnt the class.
    """

    robust: RunConfig
    plain: RunConfig
    images: ImageSet
    fold: Tensor
    copies: list[list[int]]
    judged: Tensor

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1

    def config(self, way: str) -> RunConfig:
        """Of "robust" or "plain" training."""
        return self.robust if way == "robust" else self.plain


def plan(images: ImageSet, robust: RunConfig, plain: RunConfig, folds: int) -> Plan:
    """Deal the images into folds.

    Raises:
        UserError: fewer than two classes with two pictures each; more folds than images, or fewer than two.
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
    """Train both ways without fold `number` and judge it: tensors and plain values only, to be kept.

    "robust" and "plain" hold softmax outputs (E, M, K); "washed" the classes (M,) that each gives washed pictures;
    "networks" the weights, of the first fold alone.
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
    """Nobody wants to know."""


def classes_of(defense: Defense, pictures: Tensor) -> Tensor:
    """Predicted classes int64 (N,), on the CPU, of uint8 images."""
    device = next(defense.parameters()).device
    with frozen(defense), torch.no_grad():
        return torch.cat([defense.predict(to_float(part.to(device))).argmax(1).cpu() for part in pictures.split(1000)])


@dataclass(frozen=True)
class Audit:
    """What was found. All of N images, in the order of the images.

    Attributes:
        probs: float64 (N, K), both trainings' joint opinion, averaged over the judged epochs.
        alone: whether plain training had no say in it: the images are poisoned, and it meets the given labels far more
            often than adversarial training does.
        quality: float64 (N,), in [0, 1], small where the given label is probably wrong.
        suggested, probability: the likeliest class, int64 (N,), and how likely it is.
        issue: bool (N,), the labels that are probably wrong.
        conflicts: groups of rows that show the same picture under different labels.
        agreement: "robust" and "plain" -> share of the images held out that get their given label.
        learnt: the same above chance.
        believed: ... that get the label which the audit believes.
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
        """Whether adversarial training has learnt the given labels far less than plain training has."""
        return self.learnt["robust"] < FAR_LESS * self.learnt["plain"]

    @property
    def believed_labels(self) -> Tensor:
        """The given labels, and the suggested ones where an issue is seen; int64 (N,)."""
        return torch.where(self.issue, self.suggested, self.plan.images.labels)


@dataclass(frozen=True)
class _Verdict:
    """What an opinion, float64 (E, N, K), amounts to; see `Audit`."""

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
    """What the folds' judgements amount to. `parts` are those of `examine`, in order."""
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
        # What plain training knows of these labels it reads off the perturbation, which may follow wrong labels too.
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
    """Return the groups of rows that show one picture under different labels, int64 (N,)."""
    return [list(group) for group in copies if len(set(labels[list(group)].tolist())) > 1]


def hold_up(
    plan: Plan,
    audit: Audit,
    networks: Mapping[str, Mapping[str, Tensor]],
    trusted: ImageSet | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Hold]:
    """Robustness of the first fold's networks, as `examine` keeps them, on images that neither has seen.

    Those are the trusted ones, or else the first fold's, as far as no issue is seen with their labels.
    """
    inside = plan.images.take((plan.fold != 0).nonzero().squeeze(1))
    defenses = {way: rebuild(plan.config(way), inside, networks[way]) for way in WAYS}
    if trusted is None:
        trusted = plan.images.take(((plan.fold == 0) & plan.judged & ~audit.issue).nonzero().squeeze(1))
    device = next(defenses["robust"].parameters()).device
    seed = derive(plan.robust.train.seed, "audit-noise")
    return robustness(defenses, trusted.to(device), customary_budgets(plan.images), seed, progress)
