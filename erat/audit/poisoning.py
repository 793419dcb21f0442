"""Tests whether the images carry a perturbation that encodes their class. Two tests, each with its own threshold.

- Accuracy gap: the images that the networks judge are washed, that is, reduced to two bits a channel. That is too
  coarse for a perturbation within the customary budgets, and fine enough for what a person sees (Liu et al., "Image
  Shortcut Squeezing", ICML 2023). The gap is how much more accuracy plain training loses than adversarial training: a
  network that has learnt a perturbation instead of the object loses accuracy, and adversarial training cannot have
  learnt one.
- Separability: how well a linear rule, the nearest class mean, tells classes by the images' fine residual in flat
  places, where objects leave little, minus how well it does so on images shifted by one pixel. A perturbation is bound
  to its pixels, and the part of it that the images of a class share survives averaging (such perturbations are linearly
  separable: Yu et al., "Availability Attacks Create Shortcuts", KDD 2022); what objects leave there survives the shift
  as well, and so cancels out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.data.squeeze import squeeze
from erat.data.types import ImageSet, to_float
from erat.engine.evaluation import accuracy
from erat.robustness.common import blurred

BITS = 2
SIGMA = 0.7  # standard deviation, in pixels, of the blur that is subtracted to get the residual
FLAT = 0.2  # range of values in the 3 x 3 pixels around a pixel, below which they count as flat
SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))
# Chosen so that no clean set of docs/audit.md is taken for poisoned; the table there says how many sets those are.
GAP_THRESHOLD = 0.10
SEPARABILITY_THRESHOLD = 0.35
FEW = 100  # number of images below which both figures are mostly chance


@dataclass(frozen=True)
class Measure:
    """The figure of one test, and the threshold above which it counts."""

    name: str
    value: float
    threshold: float

    @property
    def found(self) -> bool:
        """Return whether the figure lies above its threshold."""
        return self.value > self.threshold


@dataclass(frozen=True)
class PoisonTest:
    """The results of both tests.

    Attributes:
        gap: the accuracy, in [-1, 1], that plain training loses to washing, minus the loss of adversarial training, if
            any.
        separability: the accuracy of the linear rule on the pixel minus its accuracy one pixel beside, as a share of
            what lies above chance.
        images: how many images were tested; the tests say little about few images.
        accuracy: "plain" or "robust" -> "as it is" or "washed" -> accuracy, in [0, 1].
    """

    gap: Measure
    separability: Measure
    images: int
    accuracy: dict[str, dict[str, float]]

    @property
    def poisoned(self) -> bool:
        """Return whether either test finds a perturbation; false for fewer than `FEW` images."""
        return self.images >= FEW and (self.gap.found or self.separability.found)


def washed(images: Tensor) -> Tensor:
    """Return uint8 images that are reduced to `BITS` bits a channel."""
    return squeeze(images, "bits", bits=BITS)


def poison_test(
    images: ImageSet,
    believed: Tensor,
    sure: Tensor,
    predicted: Mapping[str, Tensor],
    after_wash: Mapping[str, Tensor],
) -> PoisonTest:
    """Run both tests on the images whose labels are sure.

    Args:
        believed: int64 (N,), labels that are probably right.
        sure: bool (N,), the images to test.
        predicted, after_wash: "plain" and "robust" -> the out-of-fold classes, int64 (N,), of the unchanged images and
            of the washed images.
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
        Measure("accuracy gap", lost["plain"] - max(lost["robust"], 0.0), GAP_THRESHOLD),
        Measure("separability", separable, SEPARABILITY_THRESHOLD),
        len(labels),
        reached,
    )


def separability(images: Tensor, labels: Tensor, num_classes: int) -> float:
    """Return how much better the nearest class-mean residual tells classes on the pixel than one pixel beside it.

    Means are taken over every other image of a class and tried on the rest, and the other way round; "beside" is one
    pixel up, down, left or right, whichever gives the best accuracy. The difference is a share of what lies above
    chance, so the most is 1, for images whose classes cannot be told in any other way.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """
    chance = float(torch.bincount(labels, minlength=num_classes).max()) / len(labels)
    if chance == 1:
        return 0.0
    half, residual = _alternating(labels), flat_residual(images).flatten(1)

    def told(tried: Tensor) -> float:
        right = sum(_nearest(residual, tried, labels, half == side, num_classes) for side in (True, False))
        return right / len(labels)

    beside = max(told(flat_residual(images.roll(shift, (2, 3))).flatten(1)) for shift in SHIFTS)
    return (told(residual) - beside) / (1 - chance)


def _nearest(known: Tensor, tried: Tensor, labels: Tensor, side: Tensor, num_classes: int) -> int:
    """Count the rows of `tried` outside `side` that are nearest to the mean of their class in `known` inside it."""
    means = torch.zeros(num_classes, known.shape[1]).index_add_(0, labels[side], known[side])
    counts = torch.bincount(labels[side], minlength=num_classes)
    means = means / counts.clamp_min(1)[:, None]
    distance = means.square().sum(1) / 2 - tried[~side] @ means.T
    distance[:, counts == 0] = torch.inf
    return int((distance.argmin(1) == labels[~side]).sum())


def flat_residual(images: Tensor) -> Tensor:
    """Return what a slight blur removes where the surroundings are flat, and 0 elsewhere; float32 (N, C, H, W)."""
    pixels = to_float(images)
    most = F.max_pool2d(pixels, 3, stride=1, padding=1)
    least = -F.max_pool2d(-pixels, 3, stride=1, padding=1)
    return (pixels - blurred(pixels, SIGMA)) * (most - least < FLAT)


def _alternating(labels: Tensor) -> Tensor:
    """Return a mask that is true for every other image of each class, bool (N,)."""
    order = torch.argsort(labels, stable=True)
    half = torch.zeros_like(labels, dtype=torch.bool)
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    half[order] = rank % 2 == 0
    return half
