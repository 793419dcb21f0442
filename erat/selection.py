"""Selects samples, as pure functions of tensors: Eqs. 1-5 of the paper, and the divergence that UNICON uses.

Shape suffixes: N training samples, K classes. A small score means that the network agrees with the given label.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scores(probs_NK: Tensor, labels_N: Tensor, kind: str = "l2") -> Tensor:
    """Return how much the network disagrees with the given labels, shape (N,).

    Args:
        kind: "l2" (Eq. 1) is the squared distance between the prediction and the one-hot label, in [0, 2]; it also
            grows if the remaining probability gathers on few other labels. "ce" is the cross-entropy, which depends on
            the given label only (ablation "w/ CE").
    """
    given = probs_NK.gather(1, labels_N[:, None]).squeeze(1)
    if kind == "ce":
        return -given.clamp_min(1e-12).log()
    return probs_NK.square().sum(1) - 2 * given + 1


def raw_count(scores_N: Tensor) -> int:
    """Return N_l, the number of samples that score at or below the mean (Eq. 2); never 0 for a non-empty set."""
    # Float64, and never less than the least score: rounding must not put the mean of equal scores below all of them.
    values = scores_N.double()
    return int((values <= values.mean().clamp_min(values.min())).sum())


def class_scores(scores_N: Tensor, labels_N: Tensor, previous_N: Tensor, num_classes: int) -> Tensor:
    """Return S_k (Eq. 3), the mean score of each class over the previous epoch's labelled set, float64, shape (K,).

    A class with no labelled sample gets the mean over the whole labelled set, which neither favours nor hurts it.

    Args:
        previous_N: bool, the previous labelled set (all true the first time).
    """
    values, labels = scores_N[previous_N].double(), labels_N[previous_N]
    total = torch.zeros(num_classes, dtype=torch.float64, device=values.device).index_add_(0, labels, values)
    count = torch.bincount(labels, minlength=num_classes)
    return torch.where(count > 0, total / count.clamp_min(1), values.mean())


def class_rates(class_scores_K: Tensor, eta: float, *, largest: float = 2.0, literal: bool = False) -> Tensor:
    """Return R_k (Eq. 4), the share of the labelled set that each class gets, shape (K,); the shares sum to 1.

    Args:
        eta: 0 gives every class the same share; 1 follows the class scores fully.
        largest: the largest possible score (2 for Eq. 1).
        literal: use the paper's 1 - S_k, clamped at 0, in place of 1 - S_k / largest. The paper's term is negative
            as soon as S_k > 1, and a negative number cannot be raised to the power 0.1.
    """
    trust = 1 - class_scores_K.double() / (1.0 if literal else largest)
    weight = trust.clamp_min(0) ** eta
    total = weight.sum()
    return torch.where(total > 0, weight / total, torch.full_like(weight, 1 / len(weight)))


def quotas(raw: int, rates_K: Tensor, class_sizes_K: Tensor) -> Tensor:
    """Return d_k = N_l * R_k (Eq. 5) as whole numbers, int64, shape (K,).

    They are rounded by largest remainder (ties to the lower class), so that they sum to `raw`, and then capped at
    the size of the class. No other class gets what a cap frees: most of it would go to the class that the label noise
    has made too large.
    """
    exact = raw * rates_K.double()
    whole = exact.floor()
    left = raw - int(whole.sum())
    order = torch.argsort(exact - whole, descending=True, stable=True)
    whole[order[:left]] += 1
    return torch.minimum(whole.long(), class_sizes_K.long())


def smallest_per_class(scores_N: Tensor, labels_N: Tensor, quotas_K: Tensor) -> Tensor:
    """Return the labelled set, a bool mask of shape (N,): the d_k smallest scores of each class, ties to the first."""
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
    """Return the labelled set of one epoch (Eqs. 2-5), a bool mask of shape (N,); the other samples lose their labels.

    Args:
        scores_N: as from `scores`.
        previous_N: bool, the previous labelled set.
        eta, largest, literal_rate: see `class_rates`.
        rebalance: false keeps every score at or below the mean (ablation "w/o RB", which differs from eta = 1).
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


def balanced(probs_NK: Tensor, power: float = 1.0, tolerance: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Rescale class probabilities so that over the whole set all classes are equally frequent.

    Each row is raised to `power`, multiplied by one weight per class and scaled to sum to 1 again; the weights are
    those with which every column sums to N / K.

    Args:
        power: above 1, the classes are dealt out more as an assignment: those who share a class claim it for the rows
            that have most of it.
        tolerance: how far, as a share of N / K, a column may be off; a hundred rounds are the most.

    Returns:
        (the new probabilities, float32 (N, K); the weights of the classes, float32 (K,), of mean 1).

    Source: Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices" (1967); as
    distribution alignment: Berthelot et al., "ReMixMatch", ICLR 2020.
    """
    # Never zero: a class that no row has at all must be able to get its share.
    raised = (probs_NK.double() + 1e-3) ** power
    weights = torch.ones_like(raised[0])
    for _ in range(100):
        rows = raised * weights
        share = (rows / rows.sum(1, keepdim=True)).mean(0) * len(weights)
        if bool(((share - 1).abs() < tolerance).all()):
            break
        weights = weights / share.clamp_min(1e-12)
    rows = raised * weights
    return (rows / rows.sum(1, keepdim=True)).float(), (weights / weights.mean()).float()


def agreement(mask_N: Tensor, given_N: Tensor, true_N: Tensor) -> tuple[float, float]:
    """Return (precision, recall) of a labelled set, in [0, 1].

    Precision is the share of the set with right labels; recall is the share of all right labels that the set holds.
    """
    right = (given_N == true_N).float()
    chosen = mask_N.float()
    both = float((right * chosen).sum())
    return both / max(float(chosen.sum()), 1.0), both / max(float(right.sum()), 1.0)


def divergence(probs_NK: Tensor, labels_N: Tensor, base: str = "2") -> Tensor:
    """Return the Jensen-Shannon divergence between each prediction and its one-hot label, shape (N,) (UNICON).

    Args:
        base: base of the logarithm: "2" (the divergence is then in [0, 1]) or "e".

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
    """Return the divergence below which a label counts as right (UNICON): the mean, or less where the mean is high.

    Args:
        high: the mean above which the cut-off is lowered.
        filtering: divides the distance from the mean to the least value, by which the cut-off is then lowered.
    """
    mean = float(values_N.mean())
    return mean - (mean - float(values_N.min())) / filtering if mean > high else mean
