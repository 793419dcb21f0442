"""Optimise one perturbation per class: the descent step that UP, UHP and UAP share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.norms import per_image
from erat.attacks.pgd import Budget
from erat.attacks.sparse import l1_norm
from erat.attacks.threats import THREATS
from erat.data.random import BatchRandom

PART = 4096  # images whose gradients are computed at once, to bound memory


class SharedBudget:
    """How far a perturbation that all images of a class share may move them under l_1 or l_0.

    It knows no image, so that its values may be anything from -1 to 1: twice the room of a grey image, under half of
    the l_1 budget. An image at 0 or 1 is moved less.

    Args:
        norm: "l1" or "l0".
        epsilon: the budget, of l_1 in pixel units of 1.0, of l_0 in pixels.
        delta_KCHW: perturbations of the shape that is meant.
    """

    def __init__(self, norm: str, epsilon: float, delta_KCHW: Tensor) -> None:
        self._model, self._norm = THREATS[norm], norm
        self._half = epsilon if norm == "l0" else epsilon / 2
        self._grey = torch.full_like(delta_KCHW, 0.5)
        self.epsilon = torch.full((len(delta_KCHW),), epsilon, device=delta_KCHW.device)

    def direction(self, grad_KCHW: Tensor) -> Tensor:
        """Return the direction of a step of ascent; times the budget and a share of it, one step."""
        return self._model.step(grad_KCHW, self._grey, self._grey, self._half)

    def project(self, delta_KCHW: Tensor) -> Tensor:
        """Return the nearest perturbation within the budget."""
        return 2 * self._model.project(delta_KCHW / 2, self._grey, self._half)

    def draw(self, random: BatchRandom) -> Tensor:
        """Draw perturbations that use the whole budget: of l_1 a random direction, of l_0 values at random pixels."""
        drawn = 2 * self._model.draw(self._grey, self._half, random)
        return drawn if self._norm == "l0" else drawn * per_image(self.epsilon / l1_norm(drawn))


def shared_budget(norm: str, epsilon: float, delta_KCHW: Tensor) -> Budget | SharedBudget:
    """Give the perturbation of every class the same norm and budget."""
    return Budget.of(norm, epsilon, delta_KCHW) if norm in ("linf", "l2") else SharedBudget(norm, epsilon, delta_KCHW)


def descend(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    delta_KCHW: Tensor,
    budget: Budget | SharedBudget,
    step_size: Tensor,
) -> Tensor:
    """Take one descent step with the perturbation of every class on the cross-entropy of that class.

    The step is signed under l_inf and normalised under l_2; under l_1 and l_0 it is that of `erat.attacks.threats`. The
    direction of a class is that of the mean gradient over its images in the batch; because no kind of step depends on
    the scale, the sum of the gradients is used. The perturbation of a class without images in the batch stays.

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
