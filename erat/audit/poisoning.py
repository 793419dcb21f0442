"""Do the images carry a perturbation that stands for their class? Two tests, each with a threshold of its own.

Both look at what washing takes away: two bits a channel are left, too few for what a perturbation within the customary
budgets writes, and enough for what a person sees (Liu et al., "Image Shortcut Squeezing", ICML 2023).

- Accuracy gap: how much more plain training loses than adversarial training when the images that it judges are washed.
  Who has learnt a perturbation instead of the object falls; adversarial training cannot have learnt one.
- Separability: how well a linear rule, the nearest class mean, tells classes by what washing takes away alone
  (perturbations of poisons are linearly separable: Yu et al., "Availability Attacks Create Shortcuts", KDD 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from erat.data.base import ImageSet, to_float
from erat.data.squeeze import squeeze
from erat.engine.evaluation import accuracy

BITS = 2
# Set so that no clean set of docs/audit.md is taken for poisoned; its table says how many sets that were.
GAP_THRESHOLD = 0.10
SEPARABILITY_THRESHOLD = 0.35
FEW = 100  # images, below which both figures are mostly chance


@dataclass(frozen=True)
class Measure:
    """One test's figure and where it begins to count."""

    name: str
    value: float
    threshold: float

    @property
    def found(self) -> bool:
        return self.value > self.threshold


@dataclass(frozen=True)
class PoisonTest:
    """What the tests say.

    Attributes:
        gap: accuracy, in [-1, 1], that plain training loses to washing, less what adversarial training loses.
        separability: accuracy of the linear rule above chance, as a share of what is above chance, at most 1.
        images: how many were looked at; the tests say little of few.
        accuracy: ("plain" or "robust", "as it is" or "washed") -> accuracy, in [0, 1].
    """

    gap: Measure
    separability: Measure
    images: int
    accuracy: dict[str, dict[str, float]]

    @property
    def poisoned(self) -> bool:
        """Whether either test finds a perturbation."""
        return self.images >= FEW and (self.gap.found or self.separability.found)


def washed(images: Tensor) -> Tensor:
    """uint8 images with `BITS` bits a channel left."""
    return squeeze(images, "bits", bits=BITS)


def poison_test(
    images: ImageSet,
    believed: Tensor,
    sure: Tensor,
    predicted: Mapping[str, Tensor],
    after_wash: Mapping[str, Tensor],
) -> PoisonTest:
    """Both tests on the images whose labels are sure.

    Args:
        believed: int64 (N,), labels that are probably right.
        sure: bool (N,), the images to look at.
        predicted, after_wash: "plain" and "robust" -> out-of-fold classes, int64 (N,), of images as they are and of
            washed ones.
    """
    labels = believed[sure]
    if len(labels) == 0:
        nothing = {way: {"as it is": 0.0, "washed": 0.0} for way in predicted}
        return PoisonTest(
            Measure("accuracy gap", 0.0, GAP_THRESHOLD),
            Measure("separability", 0.0, SEPARABILITY_THRESHOLD),
            0,
            nothing,
        )
    reached = {
        way: {"as it is": accuracy(labels, predicted[way][sure]), "washed": accuracy(labels, after_wash[way][sure])}
        for way in predicted
    }
    lost = {way: figures["as it is"] - figures["washed"] for way, figures in reached.items()}
    separable = separability(images.images[sure], labels, images.num_classes)
    return PoisonTest(
        Measure("accuracy gap", lost["plain"] - lost["robust"], GAP_THRESHOLD),
        Measure("separability", separable, SEPARABILITY_THRESHOLD),
        len(labels),
        reached,
    )


def separability(images: Tensor, labels: Tensor, num_classes: int) -> float:
    """How well the nearest class-mean residual tells classes, above chance, in (-inf, 1].

    Means are taken over every other image of a class and tried on the rest, and the other way round. The residual is
    what washing takes away.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """
    residual = (to_float(images) - to_float(washed(images))).flatten(1)
    half = _alternating(labels)
    right = 0
    for side in (True, False):
        known, tried = residual[half == side], residual[half != side]
        means = torch.zeros(num_classes, residual.shape[1]).index_add_(0, labels[half == side], known)
        counts = torch.bincount(labels[half == side], minlength=num_classes)
        means = means / counts.clamp_min(1)[:, None]
        distance = means.square().sum(1) / 2 - tried @ means.T
        distance[:, counts == 0] = torch.inf
        right += int((distance.argmin(1) == labels[half != side]).sum())
    chance = float(torch.bincount(labels, minlength=num_classes).max()) / len(labels)
    return (right / len(labels) - chance) / (1 - chance) if chance < 1 else 0.0


def _alternating(labels: Tensor) -> Tensor:
    """bool (N,): of each class, every other image."""
    order = torch.argsort(labels, stable=True)
    half = torch.zeros_like(labels, dtype=torch.bool)
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    half[order] = rank % 2 == 0
    return half
