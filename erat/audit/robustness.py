"""Measures how robust trained networks are: accuracy under attack at several budgets, and under common corruptions.

Each network is attacked with its own gradients (white box), so the figures of two networks come from attacks of equal
strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from erat.attacks.apgd import apgd
from erat.attacks.pgd import Budget, frozen
from erat.data.squeeze import squeeze
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense
from erat.engine.evaluation import ATTACK_BATCH, accuracy
from erat.losses import label_loss
from erat.seeding import generator

APGD_STEPS = 30
SHARES = (0.25, 0.5, 1.0, 2.0)  # budgets, as shares of the customary budget
MOST_ATTACKED = 500  # images; the standard error of an accuracy is then below 2.3 points

# Severities 1, 3 and 5 of CIFAR-10-C: Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common
# Corruptions and Perturbations", ICLR 2019. Noise: standard deviation; blur: sigma in pixels; JPEG: quality.
NOISE, BLUR, JPEG = (0.04, 0.08, 0.10), (0.4, 0.7, 1.0), (80, 58, 40)


@dataclass(frozen=True)
class Hold:
    """Accuracy, in [0, 1], of several networks on the same images under the same condition.

    Attributes:
        kind: "none", "linf", "l2", "noise", "blur" or "jpeg".
        strength: epsilon, standard deviation, sigma or quality; 0 for "none".
        accuracy: name of the network -> accuracy.
        images: the number of images.
    """

    kind: str
    strength: float
    accuracy: dict[str, float]
    images: int


def robustness(
    defenses: Mapping[str, Defense],
    images: ImageSet,
    epsilon: Mapping[str, float],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Hold]:
    """Measure the accuracy of each network on clean, attacked and corrupted images that it was not trained on.

    Args:
        defenses: name -> trained defense.
        images: images whose labels are believed to be right; at most `MOST_ATTACKED` of them, evenly spaced, are
            attacked.
        epsilon: the customary budget for each norm, in pixel units of 1.0.
        seed: the seed of the noise.
        progress: called with the number of conditions done and of all conditions.
    """
    few = min(len(images), MOST_ATTACKED)
    # Evenly spaced, because the files of a folder come class by class.
    attacked = images.take(torch.arange(few, device=images.labels.device) * len(images) // few)
    conditions: list[tuple[str, float]] = [("none", 0.0)]
    conditions += [(norm, share * epsilon[norm]) for norm in ("linf", "l2") for share in SHARES]
    conditions += [("noise", sd) for sd in NOISE] + [("blur", sigma) for sigma in BLUR] + [("jpeg", q) for q in JPEG]
    holds = []
    for number, (kind, strength) in enumerate(conditions, start=1):
        subject = attacked if kind in ("linf", "l2") else images
        reached = {name: _accuracy(defense, subject, kind, strength, seed) for name, defense in defenses.items()}
        holds.append(Hold(kind, strength, reached, len(subject)))
        progress(number, len(conditions))
    return holds


def _accuracy(defense: Defense, images: ImageSet, kind: str, strength: float, seed: int) -> float:
    if kind in ("linf", "l2"):
        return accuracy(images.labels, attacked_classes(defense, images, kind, strength))
    with frozen(defense), torch.no_grad():
        predicted = [
            defense.predict(corrupt(images.images[part], kind, strength, seed + part.start)).argmax(1)
            for part in _parts(len(images), 1000)
        ]
    return accuracy(images.labels, torch.cat(predicted))


def attacked_classes(defense: Defense, images: ImageSet, norm: str, epsilon: float, steps: int = APGD_STEPS) -> Tensor:
    """Return the classes, int64 (N,), predicted at the points of largest cross-entropy that APGD finds."""
    rows = []
    with frozen(defense):
        for part in _parts(len(images), ATTACK_BATCH):
            clean, labels = to_float(images.images[part]), images.labels[part]
            budget = Budget.of(norm, epsilon, clean)
            moved, _ = apgd(defense.predict, clean, partial(label_loss, labels), budget, steps=steps)
            rows.append(defense.predict(moved).argmax(1))
    return torch.cat(rows)


def corrupt(images: Tensor, kind: str, strength: float, seed: int = 0) -> Tensor:
    """Convert uint8 images to floats in [0, 1] and apply a common corruption.

    Args:
        kind: "none" (no corruption), "noise", "blur" or "jpeg".
        strength: standard deviation, sigma in pixels, or quality.
        seed: the seed of the noise.
    """
    if kind == "jpeg":
        return to_float(squeeze(images, "jpeg", quality=int(strength)))
    pixels = to_float(images)
    if kind == "noise":
        noise = torch.randn(pixels.shape, generator=generator(seed, "noise", strength)).to(pixels.device)
        return (pixels + strength * noise).clamp(0, 1)
    if kind == "blur":
        return blurred(pixels, strength)
    assert kind == "none", kind
    return pixels


def blurred(pixels_NCHW: Tensor, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) with a Gaussian of standard deviation `sigma` in pixels."""
    from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped,unused-ignore]

    side = 2 * min(max(1, round(2 * sigma)), (pixels_NCHW.shape[-1] - 1) // 2) + 1
    smooth: Tensor = gaussian_blur(pixels_NCHW, side, sigma) if side > 1 else pixels_NCHW
    return smooth


def _parts(count: int, size: int) -> Sequence[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
