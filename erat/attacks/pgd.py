"""Provides the projected-gradient loop with a fixed step size, which attacks and crafted perturbations share.

`erat.attacks.apgd`, which finds its own step sizes, uses the same budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erat.attacks.norms import l2_project, l2_step, linf_project, linf_step, per_image
from erat.attacks.threats import Mixture, draw_l2, draw_linf

if TYPE_CHECKING:
    from erat.data.random import BatchRandom

Objective = Callable[[Tensor], Tensor]  # logits (N, K) of the perturbed images -> loss to raise, shape (N,)


@dataclass(frozen=True)
class Budget:
    """How far each image may be moved, and in which norm.

    Attributes:
        epsilon: shape (N,), pixel units of 1.0.
        linf: bool, shape (N,): l_inf where true, l_2 where false; or one bool for all images, which saves the
            arithmetic of the other norm.
    """

    epsilon: Tensor
    linf: Tensor | bool

    @classmethod
    def of(cls, norm: str, epsilon: float, images: Tensor) -> Budget:
        """Give every image the same norm ("linf" or "l2") and budget (in pixel units of 1.0)."""
        return cls(torch.full((len(images),), epsilon, device=images.device), norm == "linf")

    def choose(self, linf_value: Callable[[], Tensor], l2_value: Callable[[], Tensor]) -> Tensor:
        """Take each image's row from the value for its own norm; only values that are needed are computed."""
        if isinstance(self.linf, bool):
            return linf_value() if self.linf else l2_value()
        return torch.where(per_image(self.linf), linf_value(), l2_value())

    def direction(self, grad_NCHW: Tensor) -> Tensor:
        """Return the direction of steepest ascent, of unit norm."""
        return self.choose(lambda: linf_step(grad_NCHW), lambda: l2_step(grad_NCHW))

    def project(self, delta_NCHW: Tensor) -> Tensor:
        """Return the nearest perturbation within the budget."""
        return self.choose(lambda: linf_project(delta_NCHW, self.epsilon), lambda: l2_project(delta_NCHW, self.epsilon))

    def inside(self, images_NCHW: Tensor, delta_NCHW: Tensor) -> Tensor:
        """Return the images with the nearest perturbations within the budget, cut to [0, 1]."""
        return (images_NCHW + self.project(delta_NCHW)).clamp(0, 1)

    def moved(self, images_NCHW: Tensor, point_NCHW: Tensor, grad_NCHW: Tensor, length_N: Tensor) -> Tensor:
        """Return the perturbed images after one step of steepest ascent of the given lengths."""
        return self.inside(images_NCHW, point_NCHW + per_image(length_N) * self.direction(grad_NCHW) - images_NCHW)

    def draw(self, images_NCHW: Tensor, random: BatchRandom) -> Tensor:
        """Draw a random start: uniform in the l_inf ball; under l_2 a uniform direction times a uniform radius."""
        size = per_image(self.epsilon)
        return self.choose(lambda: draw_linf(images_NCHW, size, random), lambda: draw_l2(images_NCHW, size, random))


def budget_of(norm: str, epsilon: float, images_NCHW: Tensor) -> Budget | Mixture:
    """Give every image the same threat model of `THREATS` and the same budget, in its unit."""
    if norm in ("linf", "l2"):
        return Budget.of(norm, epsilon, images_NCHW)
    return Mixture.alone(norm, epsilon, images_NCHW)


def pgd(
    network: Callable[[Tensor], Tensor],
    images_NCHW: Tensor,
    objective: Objective,
    budget: Budget | Mixture,
    *,
    steps: int,
    step_size: Tensor,
    start_NCHW: Tensor | None = None,
) -> Tensor:
    """Move each image uphill on `objective` inside its budget and inside [0, 1] (Eq. 10, as ascent).

    The gradient is that of the sum over images, so no image's step depends on its neighbours (provided that the network
    uses eval-mode statistics, see `frozen`). Exactly `steps` forward passes and `steps` input-gradient passes are made.

    Args:
        network: maps images to logits.
        images_NCHW: float in [0, 1].
        objective: called once per step with the logits; the first call gets those of the start point.
        budget: norm and epsilon per image; of a mixture, the images are in the order of its groups.
        steps: T, the number of steps.
        step_size: shape (N,), the length of a step in the image's norm.
        start_NCHW: perturbation to start from; none: zero.

    Returns:
        The perturbed images, detached, same shape, in [0, 1].
    """
    images = images_NCHW.detach()
    adversarial = images if start_NCHW is None else budget.inside(images, start_NCHW)
    for _ in range(steps):
        point = adversarial.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(objective(network(point)).sum(), point)
        adversarial = budget.moved(images, point.detach(), grad, step_size)
    return adversarial.detach()
