"""Optimise one perturbation per class: the descent step that UP, UHP and UAP share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.norms import per_image
from erat.attacks.pgd import Budget

PART = 4096  # images whose gradients are computed at once, to bound memory


def descend(
    network: nn.Module, images: Tensor, labels: Tensor, delta_KCHW: Tensor, budget: Budget, step_size: Tensor
) -> Tensor:
    """Take one descent step with the perturbation of every class on the cross-entropy of that class.

    The step is signed under l_inf and normalised under l_2. The direction of a class is that of the mean gradient over
    its images in the batch; because both kinds of step ignore the scale, the sum of the gradients is used. The
    perturbation of a class without images in the batch does not change.

    Args:
        network: returns logits (B, K) for images.
        images: float (B, C, H, W) in [0, 1].
        labels: int64 (B,): the class whose perturbation is added to each image, and the target of the cross-entropy.
        delta_KCHW: the perturbations, one per class.
        budget: the budget, with one row per class.
        step_size: the step size of each class, shape (K,), in pixel units of 1.0.

    Returns:
        The new perturbations, (K, C, H, W), detached, within the budget.
    """
    delta = delta_KCHW.detach().requires_grad_(True)
    grad = torch.zeros_like(delta_KCHW)
    for part, target in zip(images.split(PART), labels.split(PART), strict=True):
        loss = F.cross_entropy(network((part + delta[target]).clamp(0, 1)), target, reduction="sum")
        grad += torch.autograd.grad(loss, delta)[0]
    return budget.project(delta.detach() - per_image(step_size) * budget.direction(grad))
