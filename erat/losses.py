"""The terms of Eqs. 6, 8 and 9, and the ramp, as pure functions of tensors.

Shape suffixes: N samples, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Mean cross-entropy over the batch; 0 for an empty one."""
    if len(logits_NK) == 0:
        return logits_NK.sum()
    return F.cross_entropy(logits_NK, labels_N)


def consistency(logits_NK: Tensor, target_NK: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error between the prediction and a soft target (a term of L_u in Eq. 8).

    Args:
        reduction: "mean" over batch and classes, the convention that lambda = 25 was tuned for; "sum" over classes,
            mean over the batch, which is Eq. 8 as written. 0 for an empty batch.
    """
    if len(logits_NK) == 0:
        return logits_NK.sum()
    error = (logits_NK.softmax(1) - target_NK).square()
    return error.mean() if reduction == "mean" else error.sum(1).mean()


def perturbation_objective(logits_NK: Tensor, clean_NK: Tensor, labels_N: Tensor) -> Tensor:
    """What a surrogate perturbation raises (Eq. 6 with its sign turned), per image, shape (N,).

    The squared distance to the clean prediction `clean_NK`, plus the cross-entropy of the (pseudo-)label.
    """
    moved = (logits_NK.softmax(1) - clean_NK).square().sum(1)
    return moved + F.cross_entropy(logits_NK, labels_N, reduction="none")


def label_loss(labels_N: Tensor, logits_NK: Tensor) -> Tensor:
    """Cross-entropy per image, shape (N,): what an untargeted attack raises. The labels first, to be bound ahead."""
    return F.cross_entropy(logits_NK, labels_N, reduction="none")


def label_gain(labels_N: Tensor, logits_NK: Tensor) -> Tensor:
    """Negative cross-entropy per image, shape (N,): what a targeted or error-minimising perturbation raises."""
    return -label_loss(labels_N, logits_NK)


def ramp(lambda_u: float, epochs_since_warmup: float, ramp_epochs: float) -> float:
    """lambda(t) = lambda_u * clip(t_e / ramp, 0, 1); a ramp of 0 epochs is full strength at once."""
    if ramp_epochs <= 0:
        return lambda_u
    return lambda_u * min(max(epochs_since_warmup / ramp_epochs, 0.0), 1.0)


def squared_error(logits_NK: Tensor, target_NK: Tensor) -> Tensor:
    """Mean over batch and classes of the squared error between prediction and soft target; 0 for an empty batch."""
    return consistency(logits_NK, target_NK)


def soft_cross_entropy(logits_NK: Tensor, target_NK: Tensor) -> Tensor:
    """Mean cross-entropy against soft targets; 0 for an empty batch."""
    if len(logits_NK) == 0:
        return logits_NK.sum()
    return F.cross_entropy(logits_NK, target_NK)


def sharpen(probs_NK: Tensor, temperature: float) -> Tensor:
    """Probabilities raised to 1 / temperature and scaled to sum to 1 again (MixMatch)."""
    raised: Tensor = probs_NK ** (1 / temperature)
    return raised / raised.sum(1, keepdim=True)


def prior_penalty(logits_NK: Tensor) -> Tensor:
    """Relative entropy of a uniform prior to the batch's mean prediction: no class may be forgotten (DivideMix)."""
    mean = logits_NK.float().softmax(1).mean(0)
    return -(mean.clamp_min(1e-12) * len(mean)).log().mean()


def contrastive(first_ND: Tensor, second_ND: Tensor, temperature: float) -> Tensor:
    """NT-Xent between two unit-length views of N samples: each is to find its partner among all others (SimCLR).

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
    """
    both, count = torch.cat([first_ND, second_ND]), len(first_ND)
    if count == 0:
        return both.sum()
    similarity = both @ both.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * count, device=both.device).roll(count)
    return F.cross_entropy(similarity, partner)
