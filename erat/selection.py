"""Sample selection as pure functions of tensors: Eqs. 1-5 of the paper, and what UNICON measures.

Shape suffixes: N training samples, K classes. Scores: small means that the network agrees with the given label.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scores(probs_NK: Tensor, labels_N: Tensor, kind: str = "l2") -> Tensor:
    """How much the network disagrees with the given labels, shape (N,).

    "l2" (Eq. 1): squared distance of the prediction to the one-hot label, in [0, 2]. It also asks that the mass on
    other labels be spread thin. "ce": cross-entropy, which sees only the given label (ablation "w/ CE").
    """
    given = probs_NK.gather(1, labels_N[:, None]).squeeze(1)
    if kind == "ce":
        return -given.clamp_min(1e-12).log()
    return probs_NK.square().sum(1) - 2 * given + 1


def raw_count(scores_N: Tensor) -> int:
    """N_l: how many samples score at or below the mean (Eq. 2). Never 0 for a non-empty set."""
    # In float64 and against the least score: rounding must not put the mean of equal scores below each of them.
    values = scores_N.double()
    return int((values <= values.mean().clamp_min(values.min())).sum())


def class_scores(scores_N: Tensor, labels_N: Tensor, previous_N: Tensor, num_classes: int) -> Tensor:
    """S_k (Eq. 3): mean score of each class over the previous epoch's labelled set, float64, shape (K,).

    Args:
        previous_N: bool, the previous labelled set (all true the first time).

    A class with no labelled sample gets the mean over the whole labelled set, which favours it neither way.
    """
    values, labels = scores_N[previous_N].double(), labels_N[previous_N]
    total = torch.zeros(num_classes, dtype=torch.float64, device=values.device).index_add_(0, labels, values)
    count = torch.bincount(labels, minlength=num_classes)
    return torch.where(count > 0, total / count.clamp_min(1), values.mean())


def class_rates(class_scores_K: Tensor, eta: float, *, largest: float = 2.0, literal: bool = False) -> Tensor:
    """R_k (Eq. 4): the share of the labelled set that each class is given, sums to 1, shape (K,).

    Args:
        eta: 0 gives every class the same share; 1 follows the class scores fully.
        largest: the largest score possible (2 for Eq. 1).
        literal: the paper's 1 - S_k, clamped at 0, in place of 1 - S_k / largest. It turns negative as soon as
            S_k > 1, and a negative number has no power 0.1.
    """
    trust = 1 - class_scores_K.double() / (1.0 if literal else largest)
    weight = trust.clamp_min(0) ** eta
    total = weight.sum()
    return torch.where(total > 0, weight / total, torch.full_like(weight, 1 / len(weight)))


def quotas(raw: int, rates_K: Tensor, class_sizes_K: Tensor) -> Tensor:
    """d_k = N_l * R_k (Eq. 5) as whole numbers, int64, shape (K,).

    Rounded by largest remainder (ties to the lower class), so that they sum to `raw` before the cap; then capped at
    the class's size. What a cap frees is given to nobody: it would pour into the class that noise has flooded.
    """
    exact = raw * rates_K.double()
    whole = exact.floor()
    left = raw - int(whole.sum())
    order = torch.argsort(exact - whole, descending=True, stable=True)
    whole[order[:left]] += 1
    return torch.minimum(whole.long(), class_sizes_K.long())


def smallest_per_class(scores_N: Tensor, labels_N: Tensor, quotas_K: Tensor) -> Tensor:
    """The labelled set: in each class its d_k smallest scores, as a bool mask of shape (N,). Ties go to the first."""
    by_score = torch.argsort(scores_N, stable=True)
    by_class = by_score[torch.argsort(labels_N[by_score], stable=True)]
    sizes = torch.bincount(labels_N, minlength=len(quotas_K))
    first_of_class = sizes.cumsum(0) - sizes
    sorted_labels = labels_N[by_class]
    rank = torch.arange(len(labels_N), device=labels_N.device) - first_of_class[sorted_labels]
    mask = torch.zeros_like(labels_N, dtype=torch.bool)
    mask[by_class] = rank < quotas_K[sorted_labels]
    return mask


def select(
    scores_N: Tensor,
    labels_N: Tensor,
    previous_N: Tensor,
    num_classes: int,
    *,
    eta: float,
    rebalance: bool = True,
    largest: float = 2.0,
    literal_rate: bool = False,
) -> Tensor:
    """The labelled set of one epoch (Eqs. 2-5), as a bool mask of shape (N,); the rest loses its labels.

    Args:
        rebalance: false keeps every score at or below the mean (ablation "w/o RB", which eta = 1 is not).
    """
    raw = raw_count(scores_N)
    if not rebalance:
        mask = torch.zeros_like(labels_N, dtype=torch.bool)
        mask[torch.argsort(scores_N, stable=True)[:raw]] = True
        return mask
    per_class = class_scores(scores_N, labels_N, previous_N, num_classes)
    rates = class_rates(per_class, eta, largest=largest, literal=literal_rate)
    sizes = torch.bincount(labels_N, minlength=num_classes)
    return smallest_per_class(scores_N, labels_N, quotas(raw, rates, sizes))


def agreement(mask_N: Tensor, given_N: Tensor, true_N: Tensor) -> tuple[float, float]:
    """(precision, recall) of a labelled set: how much of it is labelled right; how much of the right is in it."""
    right = (given_N == true_N).float()
    chosen = mask_N.float()
    both = float((right * chosen).sum())
    return both / max(float(chosen.sum()), 1.0), both / max(float(right.sum()), 1.0)


def divergence(probs_NK: Tensor, labels_N: Tensor, base: str = "2") -> Tensor:
    """Jensen-Shannon divergence between each prediction and its one-hot label, shape (N,): UNICON's measure.

    Args:
        base: of the logarithm: "2" (the divergence is then in [0, 1]) or "e".

    Source: Karim et al., "UNICON: Combating Label Noise Through Uniform Selection and Contrastive Learning", CVPR 2022.
    """
    probs = probs_NK.double()
    onehot = torch.zeros_like(probs).scatter_(1, labels_N[:, None], 1.0)
    middle = (probs + onehot) / 2
    log = torch.log2 if base == "2" else torch.log

    def relative_entropy(first: Tensor) -> Tensor:
        return (first * (log(first.clamp_min(1e-30)) - log(middle.clamp_min(1e-30)))).sum(1)

    return (relative_entropy(probs) + relative_entropy(onehot)) / 2


def divergence_cutoff(values_N: Tensor, high: float, filtering: float) -> float:
    """Below it a divergence counts as a right label (UNICON): the mean, and less than that where the mean is high."""
    mean = float(values_N.mean())
    return mean - (mean - float(values_N.min())) / filtering if mean > high else mean
