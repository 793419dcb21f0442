"""Whose labels are probably wrong, and what the noise is like: functions of out-of-fold predictions.

Shape suffixes: N images, K classes, E epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erat.selection import scores


def mean_scores(probs_ENK: Tensor, labels_N: Tensor) -> Tensor:
    """Eq. 1 of each epoch's prediction, averaged over epochs, float64 (N,), in [0, 2]."""
    return torch.stack([scores(probs.double(), labels_N) for probs in probs_ENK]).mean(0)


def label_quality(scores_N: Tensor) -> Tensor:
    """1 - S/2: 1 where the network is sure of the given label, 0 where it is sure of another."""
    return 1 - scores_N / 2


def suggestions(probs_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(likeliest class int64 (N,), its probability (N,)); the given label where nothing is likelier."""
    probability, predicted = probs_NK.max(1)
    given = probs_NK.gather(1, labels_N[:, None]).squeeze(1)
    keep = given >= probability
    return torch.where(keep, labels_N, predicted), probability


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
