"""Measures how robust trained networks are: accuracy under attack at several budgets, and under common corruptions.

Each network is attacked with its own gradients (white box), so the figures of two networks come from attacks of equal
strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from erat.attacks.apgd import apgd
from erat.attacks.freezing import frozen
from erat.attacks.pgd import Budget
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense
from erat.engine.evaluation import ATTACK_BATCH, accuracy
from erat.losses import label_loss
from erat.robustness.common import BLUR, JPEG, NOISE, corrupted_classes, parts
from erat.robustness.curve import APGD_STEPS, SHARES, evenly_spaced

MOST_ATTACKED = 500  # images; the standard error of an accuracy is then below 2.3 points


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
    attacked = evenly_spaced(images, MOST_ATTACKED)
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
    return accuracy(images.labels, corrupted_classes(defense, images.images, kind, strength, seed))


def attacked_classes(defense: Defense, images: ImageSet, norm: str, epsilon: float, steps: int = APGD_STEPS) -> Tensor:
    """Return the classes, int64 (N,), predicted at the points of largest cross-entropy that APGD finds."""
    rows = []
    with frozen(defense):
        for part in parts(len(images), ATTACK_BATCH):
            clean, labels = to_float(images.images[part]), images.labels[part]
            budget = Budget.of(norm, epsilon, clean)
            moved, _ = apgd(defense.predict, clean, partial(label_loss, labels), budget, steps=steps)
            rows.append(defense.predict(moved).argmax(1))
    return torch.cat(rows)
