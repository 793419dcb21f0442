"""Implements APGD, projected gradient ascent that finds its own step sizes.

Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(ICML 2020), Algorithm 1. Unlike `pgd` it keeps the best point, moves with momentum, and halves an image's step when
its loss has stopped rising.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erat.attacks.norms import per_image
from erat.attacks.pgd import Budget, Objective
from erat.attacks.threats import Mixture

MOMENTUM = 0.75  # alpha: the weight of the new step against the last move
RISES = 0.75  # rho: the step size is halved if fewer than this share of steps raised the loss


def apgd(
    network: Callable[[Tensor], Tensor],
    images_NCHW: Tensor,
    objective: Objective,
    budget: Budget | Mixture,
    *,
    steps: int,
    start_NCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find for each image the point of largest `objective` on the path of the ascent.

    This takes `steps + 1` forward and input-gradient passes: one at the start and one after each step.

    Args:
        network: maps images to logits, in eval mode (see `frozen`).
        images_NCHW: float in [0, 1].
        objective: called with the logits of each point; returns one number per image.
        budget: norm and epsilon per image; of a mixture, the images are in the order of its groups.
        steps: N_iter, the number of steps.
        start_NCHW: perturbation to start from; none: zero.

    Returns:
        (the perturbed images, shape (N, C, H, W), detached, in [0, 1]; their objective, shape (N,)).
    """
    images = images_NCHW.detach()

    def within(point: Tensor) -> Tensor:
        return budget.inside(images, point - images)

    point = images if start_NCHW is None else within(images + start_NCHW)
    grad, value = _gradient(network, point, objective)
    best, best_value, best_grad = point, value, grad
    last, length = point, 2 * budget.epsilon
    rises = torch.zeros_like(value)  # steps that raised the loss since the last review
    best_then, halved_then, reviewed = value, torch.ones_like(value, dtype=torch.bool), 0
    reviews = checkpoints(steps)
    for step in range(1, steps + 1):
        ahead = budget.moved(images, point, grad, length)
        weight = MOMENTUM if step > 1 else 1.0
        last, point = point, within(point + weight * (ahead - point) + (1 - weight) * (point - last))
        before = value
        grad, value = _gradient(network, point, objective)
        rises = rises + (value > before)
        better = value > best_value
        best, best_grad = _choose(better, (point, grad), (best, best_grad))
        best_value = torch.where(better, value, best_value)
        if step in reviews:
            # Conditions 1 and 2: few steps raised the loss, or neither the step size nor the best has changed since
            # the last review.
            halve = (rises < RISES * (step - reviewed)) | (~halved_then & (best_then >= best_value))
            length = torch.where(halve, length / 2, length)
            point, grad = _choose(halve, (best, best_grad), (point, grad))
            best_then, halved_then, reviewed, rises = best_value, halve, step, torch.zeros_like(rises)
    return best, best_value


def checkpoints(steps: int) -> set[int]:
    """Return the step numbers after which step sizes are reviewed.

    The first comes after 0.22 of all steps; the intervals then shrink by 0.03 of all steps down to 0.06.
    """
    found, at, interval = set(), 0, max(int(0.22 * steps), 1)
    while (at := at + interval) <= steps:
        found.add(at)
        interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


def _choose(mask: Tensor, if_true: tuple[Tensor, Tensor], if_false: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Take each image's row of both tensors from the first pair where `mask` is true, else from the second."""
    rows = per_image(mask)
    return torch.where(rows, if_true[0], if_false[0]), torch.where(rows, if_true[1], if_false[1])


def _gradient(network: Callable[[Tensor], Tensor], point: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return (the gradient, shape (N, C, H, W); the objective, shape (N,)) at the images `point`."""
    point = point.detach().requires_grad_(True)
    value = objective(network(point))
    (grad,) = torch.autograd.grad(value.sum(), point)
    return grad, value.detach()
