"""Finds labels that are probably wrong and estimates the label noise, both from out-of-fold predictions.

Shape suffixes: N images, K classes, E epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from erat.selection import scores

# Scores, in [0, 2], must exceed this: below it an image is merely doubtful, with nothing to choose between its classes.
CUT_OFF = 0.7


def power(probs: Tensor, exponent: float) -> Tensor:
    """Raise distributions (..., K) to a power and normalise them again: above 1 surer, below 1 less sure."""
    raised = probs.double().clamp_min(1e-8) ** exponent
    return raised / raised.sum(-1, keepdim=True)


def as_sure_as(probs_NK: Tensor, confidence: float) -> Tensor:
    """Raise all predictions to one exponent, such that the mean of their largest probability is `confidence`.

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
    """Combine the predictions of both trainings, float64 (E, N, K), epoch by epoch.

    Adversarial training ignores perturbations and makes confident predictions; plain training sees fine detail (and may
    see the class in a perturbation), but it is never confident once fitted to noisy labels. Made equally confident,
    they complement each other. The weight of each is proportional to the odds at which it agrees with the given labels
    by more than chance: wrong labels lower these odds for both alike, and where the labels are right, a training that
    has failed gets no weight.

    Args:
        robust_ENK, plain_ENK: out-of-fold softmax outputs of the same E epochs.
        labels_N: the given labels.
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
    """Return how often the likeliest class is the given label, minus the commonest label's share; never below 0."""
    chance = float(torch.bincount(labels_N).max()) / len(labels_N)
    return max(0.0, float((probs_NK.argmax(1) == labels_N).double().mean()) - chance)


def mean_scores(probs_ENK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the scores (Eq. 1) of each epoch's predictions, averaged over epochs, float64 (N,), in [0, 2]."""
    return torch.stack([scores(probs.double(), labels_N) for probs in probs_ENK]).mean(0)


def label_quality(scores_N: Tensor) -> Tensor:
    """Return 1 - S/2, in [0, 1]: 1 where the networks are sure of the given label, 0 where they are sure of another."""
    return 1 - scores_N / 2


def suggestions(probs_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the likeliest class, int64 (N,), or the given one where none is likelier; its probability, (N,))."""
    probability, predicted = probs_NK.max(1)
    given = probs_NK.gather(1, labels_N[:, None]).squeeze(1)
    return torch.where(given >= probability, labels_N, predicted), probability


@dataclass(frozen=True)
class Noise:
    """An estimate of the label noise.

    Attributes:
        rate: share of wrong labels, in [0, 1].
        transition: float64 (K, K); row k is the distribution of given labels among images of class k.
        given, estimated: int64 (K,), the number of images that have each label, and that seem to show each class.
    """

    rate: float
    transition: Tensor
    given: Tensor
    estimated: Tensor


def estimate_noise(believed_N: Tensor, labels_N: Tensor, num_classes: int) -> Noise:
    """Estimate the label noise from the classes that the images are believed to show.

    Args:
        believed_N: int64 (N,), the given label where there is no issue, else the suggested class.
        labels_N: int64 (N,), the given labels.
        num_classes: K.
    """
    counts = torch.bincount(believed_N * num_classes + labels_N, minlength=num_classes**2).view(num_classes, -1)
    sizes = counts.sum(1, keepdim=True)
    transition = torch.where(sizes > 0, counts / sizes.clamp_min(1), torch.eye(num_classes, dtype=torch.float64))
    rate = float((believed_N != labels_N).double().mean()) if len(labels_N) else 0.0
    return Noise(rate, transition, counts.sum(0), counts.sum(1))


def issues(probs_NK: Tensor, scores_N: Tensor, labels_N: Tensor) -> Tensor:
    """Mark labels that are probably wrong, bool (N,): another class is likelier, and the score is above `CUT_OFF`."""
    return (probs_NK.argmax(1) != labels_N) & (scores_N > CUT_OFF)
