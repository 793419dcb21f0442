"""One perturbation per class: the step that UP, UHP and UAP share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.norms import per_image
from erat.attacks.pgd import Budget


def descend(
    network: nn.Module, images: Tensor, labels: Tensor, delta_KCHW: Tensor, budget: Budget, step_size: Tensor
) -> Tensor:
    """One signed (l_inf) or normalised (l_2) step of every class's perturbation down the cross-entropy of its class.

    A class's direction is that of the mean gradient over its images in the batch; sign and normalised steps see no
    scale, so the sum serves. A class without images stays where it is.

    Args:
        images: float (B, C, H, W) in [0, 1]; `labels` say whose perturbation each image wears.
        delta_KCHW: one perturbation per class; `budget` has one row per class, `step_size` shape (K,).

    Returns:
        The new perturbations, detached, within the budget.
    """
    delta = delta_KCHW.detach().requires_grad_(True)
    loss = F.cross_entropy(network((images + delta[labels]).clamp(0, 1)), labels, reduction="sum")
    (grad,) = torch.autograd.grad(loss, delta)
    return budget.project(delta.detach() - per_image(step_size) * budget.direction(grad))
