"""Do the images carry a perturbation that stands for their class? Two tests, each with a threshold of its own.

- Accuracy gap: how much more plain training loses than adversarial training when the images that it judges are washed,
  to two bits a channel: too few for what a perturbation within the customary budgets writes, enough for what a person
  sees (Liu et al., "Image Shortcut Squeezing", ICML 2023). Who has learnt a perturbation instead of the object falls;
  adversarial training cannot have learnt one.
- Separability: how well a linear rule, the nearest class mean, tells classes by the images' fine residual in flat
  places, where objects have little, less how well it does on images shifted by one pixel. A perturbation stands on its
  pixels, and what images of a class share of it survives the mean (that such perturbations are linearly separable:
  Yu et al., "Availability Attacks Create Shortcuts", KDD 2022); what objects leave there survives the shift as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.audit.robustness import blurred
from erat.data.squeeze import squeeze
from erat.data.types import ImageSet, to_float
from erat.engine.evaluation import accuracy

BITS = 2
SIGMA = 0.7  # of the blur that leaves the residual, in pixels
FLAT = 0.2  # range of a pixel's surroundings, 3 x 3, below which they are flat
SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))
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
        gap: accuracy, in [-1, 1], that plain training loses to washing, less what adversarial training loses, if any.
        separability: accuracy of the linear rule on the pixel less that beside it, as a share of what is above chance.
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
        Measure("accuracy gap", lost["plain"] - max(lost["robust"], 0.0), GAP_THRESHOLD),
        Measure("separability", separable, SEPARABILITY_THRESHOLD),
        len(labels),
        reached,
    )


def separability(images: Tensor, labels: Tensor, num_classes: int) -> float:
    """How much better the nearest class-mean residual tells classes on the pixel than one pixel beside it.

    Means are taken over every other image of a class and tried on the rest, and the other way round; beside means one
    up, down, left or right, whichever is best. As a share of what is above chance, so that 1 is the most for images
    whose classes nothing else tells.

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
    """How many rows of `tried` outside `side` lie nearest to their class's mean of `known` inside it."""
    means = torch.zeros(num_classes, known.shape[1]).index_add_(0, labels[side], known[side])
    counts = torch.bincount(labels[side], minlength=num_classes)
    means = means / counts.clamp_min(1)[:, None]
    distance = means.square().sum(1) / 2 - tried[~side] @ means.T
    distance[:, counts == 0] = torch.inf
    return int((distance.argmin(1) == labels[~side]).sum())


def flat_residual(images: Tensor) -> Tensor:
    """What a slight blur takes away, float32 (N, C, H, W), where the surroundings are flat; 0 elsewhere."""
    pixels = to_float(images)
    most = F.max_pool2d(pixels, 3, stride=1, padding=1)
    least = -F.max_pool2d(-pixels, 3, stride=1, padding=1)
    return (pixels - blurred(pixels, SIGMA)) * (most - least < FLAT)


def _alternating(labels: Tensor) -> Tensor:
    """bool (N,): of each class, every other image."""
    order = torch.argsort(labels, stable=True)
    half = torch.zeros_like(labels, dtype=torch.bool)
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    half[order] = rank % 2 == 0
    return half
