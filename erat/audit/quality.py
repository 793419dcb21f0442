"""Whose labels are probably wrong, and what the noise is like: functions of out-of-fold predictions.

Shape suffixes: N images, K classes, E epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from erat.selection import scores

CUT_OFF = 0.7  # of the score, in [0, 2]: between the classes of a doubtful image there is nothing to choose


def power(probs: Tensor, exponent: float) -> Tensor:
    """Distributions raised to a power and normalised again, (..., K): above 1 surer, below 1 less sure."""
    raised = probs.double().clamp_min(1e-8) ** exponent
    return raised / raised.sum(-1, keepdim=True)


def as_sure_as(probs_NK: Tensor, confidence: float) -> Tensor:
    """The predictions with one exponent for all, such that the mean of their largest probability is `confidence`.

    No image's likeliest class changes. `confidence` is reached as nearly as exponents in [1/50, 50] allow.
    """
    low, high = 1 / 50, 50.0
    for _ in range(30):  # bisection of the exponent's logarithm, in which confidence rises
        middle = math.sqrt(low * high)
        if float(power(probs_NK, middle).max(1).values.mean()) < confidence:
            low = middle
        else:
            high = middle
    return power(probs_NK, math.sqrt(low * high))


def joint_opinion(robust_ENK: Tensor, plain_ENK: Tensor, labels_N: Tensor) -> Tensor:
    """Both trainings' predictions together, float64 (E, N, K), epoch by epoch from the last.

    Adversarial training is deaf to perturbations and sure of itself; plain training sees fine detail (and may see the
    class in a perturbation), but fitted to noisy labels it is never sure. Made equally sure they complement each other.
    Each has a say in proportion to the odds at which it meets the given labels by more than chance: wrong labels lower
    them for both alike, and where labels are right a training that has failed has no say.

    Args:
        robust_ENK, plain_ENK: out-of-fold softmax outputs, of as many epochs each.
        labels_N: given.
    """
    robust_say, plain_say = (_odds(probs.double().mean(0), labels_N) for probs in (robust_ENK, plain_ENK))
    share = robust_say / (robust_say + plain_say) if robust_say + plain_say > 0 else 0.5
    joint = []
    for robust, plain in zip(robust_ENK.double(), plain_ENK.double(), strict=True):
        equally_sure = as_sure_as(plain, float(robust.max(1).values.mean()))
        joint.append(share * robust + (1 - share) * equally_sure)
    return torch.stack(joint)


def _odds(probs_NK: Tensor, labels_N: Tensor) -> float:
    missed = float((probs_NK.argmax(1) != labels_N).double().mean())
    return above_chance(probs_NK, labels_N) / max(missed, 1 / len(labels_N))


def above_chance(probs_NK: Tensor, labels_N: Tensor) -> float:
    """How often the likeliest class is the given label, less the share of the commonest label; at least 0."""
    chance = float(torch.bincount(labels_N).max()) / len(labels_N)
    return max(0.0, float((probs_NK.argmax(1) == labels_N).double().mean()) - chance)


def mean_scores(probs_ENK: Tensor, labels_N: Tensor) -> Tensor:
    """Eq. 1 of each epoch's prediction, averaged over epochs, float64 (N,), in [0, 2]."""
    return torch.stack([scores(probs.double(), labels_N) for probs in probs_ENK]).mean(0)


def label_quality(scores_N: Tensor) -> Tensor:
    """1 - S/2, in [0, 1]: 1 where the networks are sure of the given label, 0 where they are sure of another."""
    return 1 - scores_N / 2


def suggestions(probs_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(likeliest class, int64 (N,), the given one where nothing is likelier; its probability, (N,))."""
    probability, predicted = probs_NK.max(1)
    given = probs_NK.gather(1, labels_N[:, None]).squeeze(1)
    return torch.where(given >= probability, labels_N, predicted), probability


@dataclass(frozen=True)
class Noise:
    """What the label noise amounts to, estimated.

    Attributes:
        rate: share of wrong labels, in [0, 1].
        transition: float64 (K, K), row k the distribution of given labels among images of class k.
        given, estimated: int64 (K,), images that wear each label, and that seem to show each class.
    """

    rate: float
    transition: Tensor
    given: Tensor
    estimated: Tensor


def estimate_noise(believed_N: Tensor, labels_N: Tensor, num_classes: int) -> Noise:
    """From the classes that the images are believed to show, which are the given ones where no issue is seen."""
    counts = torch.bincount(believed_N * num_classes + labels_N, minlength=num_classes**2).view(num_classes, -1)
    sizes = counts.sum(1, keepdim=True)
    transition = torch.where(sizes > 0, counts / sizes.clamp_min(1), torch.eye(num_classes, dtype=torch.float64))
    rate = float((believed_N != labels_N).double().mean()) if len(labels_N) else 0.0
    return Noise(rate, transition, counts.sum(0), counts.sum(1))


def issues(probs_NK: Tensor, scores_N: Tensor, labels_N: Tensor) -> Tensor:
    """The labels that are probably wrong, bool (N,): another class is likelier, and the score is above `CUT_OFF`."""
    return (probs_NK.argmax(1) != labels_N) & (scores_N > CUT_OFF)
