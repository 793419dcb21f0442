"""Computes the loss terms of Eqs. 6, 8 and 9, those of the other defenses, and the ramp: pure functions of tensors.

Shape suffixes: N samples, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the mean cross-entropy over the batch; 0 for an empty batch."""
    if len(logits_NK) == 0:
        return logits_NK.sum()
    return F.cross_entropy(logits_NK, labels_N)


def consistency(logits_NK: Tensor, target_NK: Tensor, reduction: str = "mean", kept_N: Tensor | None = None) -> Tensor:
    """Return the squared error between the prediction and a soft target (a term of L_u in Eq. 8); 0 for an empty batch.

    Args:
        reduction: "mean" over batch and classes, the convention for which lambda = 25 was tuned; or "sum" over classes
            and mean over the batch, which is Eq. 8 as written.
        kept_N: bool, the samples whose error counts, though the mean is still over all; None: all of them.
    """
    if len(logits_NK) == 0:
        return logits_NK.sum()
    error = (logits_NK.softmax(1) - target_NK).square()
    if kept_N is not None:
        error = error * kept_N[:, None]
    return error.mean() if reduction == "mean" else error.sum(1).mean()


def perturbation_objective(logits_NK: Tensor, clean_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the objective that a surrogate perturbation raises (Eq. 6 with its sign turned), per image, shape (N,).

    It is the squared distance to the clean prediction `clean_NK` (probabilities) plus the cross-entropy of the given or
    pseudo-label.
    """
    moved = (logits_NK.softmax(1) - clean_NK).square().sum(1)
    return moved + F.cross_entropy(logits_NK, labels_N, reduction="none")


def label_loss(labels_N: Tensor, logits_NK: Tensor) -> Tensor:
    """Return the cross-entropy per image, shape (N,), which an untargeted attack raises.

    The labels come first, so that `functools.partial` can bind them.
    """
    return F.cross_entropy(logits_NK, labels_N, reduction="none")


def label_margin(labels_N: Tensor, logits_NK: Tensor) -> Tensor:
    """Return by how much the best other class is ahead of the label's, shape (N,); above 0 the image is fooled."""
    others = logits_NK.scatter(1, labels_N[:, None], -torch.inf)
    return others.amax(1) - logits_NK.gather(1, labels_N[:, None]).squeeze(1)


def label_gain(labels_N: Tensor, logits_NK: Tensor) -> Tensor:
    """Return the negative cross-entropy per image, shape (N,), which a targeted or error-minimising attack raises."""
    return -label_loss(labels_N, logits_NK)


def ramp(lambda_u: float, epochs_since_warmup: float, ramp_epochs: float) -> float:
    """Return lambda(t) = lambda_u * clip(t_e / ramp, 0, 1); with a ramp of 0 epochs it is lambda_u at once."""
    if ramp_epochs <= 0:
        return lambda_u
    return lambda_u * min(max(epochs_since_warmup / ramp_epochs, 0.0), 1.0)


def squared_error(logits_NK: Tensor, target_NK: Tensor) -> Tensor:
    """Return the squared error between prediction and soft target, averaged over batch and classes (0 if empty)."""
    return consistency(logits_NK, target_NK)


def soft_cross_entropy(logits_NK: Tensor, target_NK: Tensor) -> Tensor:
    """Return the mean cross-entropy against soft targets; 0 for an empty batch."""
    if len(logits_NK) == 0:
        return logits_NK.sum()
    return F.cross_entropy(logits_NK, target_NK)


def sharpen(probs_NK: Tensor, temperature: float) -> Tensor:
    """Raise probabilities to 1 / temperature and scale them to sum to 1 again (MixMatch)."""
    raised: Tensor = probs_NK ** (1 / temperature)
    return raised / raised.sum(1, keepdim=True)


def prior_penalty(logits_NK: Tensor) -> Tensor:
    """Return the relative entropy of a uniform prior to the batch's mean prediction, so that no class is forgotten.

    Source: DivideMix (Li, Socher, Hoi, ICLR 2020).
    """
    mean = logits_NK.float().softmax(1).mean(0)
    return -(mean.clamp_min(1e-12) * len(mean)).log().mean()


def contrastive(first_ND: Tensor, second_ND: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss between two unit-length views of N samples: each must find its partner among all others.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
    """
    both, count = torch.cat([first_ND, second_ND]), len(first_ND)
    if count == 0:
        return both.sum()
    similarity = both @ both.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * count, device=both.device).roll(count)
    return F.cross_entropy(similarity, partner)
