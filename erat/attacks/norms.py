"""Computes steepest-ascent steps and projections under l_inf and l_2, with a budget for each image.

Pure functions of tensors. Shapes: `delta_NCHW` and gradients (N, C, H, W); budgets (N,) in pixel units of 1.0.
"""

from __future__ import annotations

from torch import Tensor

TINY = 1e-10  # keeps an all-zero gradient from dividing by zero


def per_image(values_N: Tensor) -> Tensor:
    """Reshape (N,) to (N, 1, 1, 1), so that the values multiply images (N, C, H, W)."""
    return values_N.view(-1, 1, 1, 1)


def l2_norm(x_NCHW: Tensor) -> Tensor:
    """Return the Euclidean norm of each image, shape (N,)."""
    norm: Tensor = x_NCHW.flatten(1).norm(dim=1)
    return norm


def linf_step(grad_NCHW: Tensor) -> Tensor:
    """Return the direction of unit l_inf norm along which the loss rises fastest, same shape."""
    return grad_NCHW.sign()


def l2_step(grad_NCHW: Tensor) -> Tensor:
    """Return the direction of unit l_2 norm along which the loss rises fastest, same shape."""
    return grad_NCHW / per_image(l2_norm(grad_NCHW) + TINY)


def linf_project(delta_NCHW: Tensor, epsilon_N: Tensor) -> Tensor:
    """Return the nearest perturbation with max |delta| <= epsilon, same shape."""
    bound = per_image(epsilon_N)
    return delta_NCHW.clamp(-bound, bound)


def l2_project(delta_NCHW: Tensor, epsilon_N: Tensor) -> Tensor:
    """Return the nearest perturbation with ||delta||_2 <= epsilon, same shape; one inside the ball is unchanged."""
    factor = (epsilon_N / l2_norm(delta_NCHW).clamp_min(TINY)).clamp_max(1.0)
    return delta_NCHW * per_image(factor)
