"""Computes steps and projections under l_1 and l_0, whose perturbations move few pixels, inside the range of pixels.

Pure functions of tensors. Shapes: perturbations, gradients and images (N, C, H, W); budgets (N,): of l_1 in pixel units
of 1.0, of l_0 in pixels, of which all channels may change.

Sources: for l_1, Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers" (ICML 2021),
its projection and its step, here with a fixed share of moved values; for l_0, Croce, Hein, "Sparse and imperceivable
adversarial attacks" (ICCV 2019), PGD_0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erat.attacks.norms import TINY, per_image

# Share of an image's values that an l_1 step moves. Of 0.5 % to 20 % this raised cross-entropy most in seven steps
# within a budget of 4, on 14 x 14 training digits; with smaller budgets 1 % did.
MOVED = 0.02


def l1_norm(x_NCHW: Tensor) -> Tensor:
    """Return the sum of the absolute values of each image, shape (N,)."""
    return x_NCHW.abs().flatten(1).sum(1)


def l0_norm(x_NCHW: Tensor) -> Tensor:
    """Return the number of pixels of each image in which any channel differs from zero, float (N,)."""
    return (x_NCHW != 0).any(1).flatten(1).sum(1).to(x_NCHW.dtype)


def room(images_NCHW: Tensor, towards_NCHW: Tensor) -> Tensor:
    """Return how far each value can move in the direction of the sign of `towards` before it leaves [0, 1]."""
    return torch.where(towards_NCHW > 0, 1 - images_NCHW, images_NCHW)


def l1_step(grad_NCHW: Tensor, point_NCHW: Tensor) -> Tensor:
    """Return a direction of unit l_1 norm: the signs of the largest gradients, of those whose pixel can still move.

    Moving only the steepest value would rise fastest at first, but leaves most of a step unused once it is at 0 or 1.

    Args:
        grad_NCHW: the gradient of what is raised.
        point_NCHW: the perturbed images at which it was taken, in [0, 1].
    """
    slope = (grad_NCHW * (room(point_NCHW, grad_NCHW) > 0)).flatten(1)
    moved = max(1, round(MOVED * slope.shape[1]))
    chosen = slope.abs().topk(moved, dim=1).indices
    direction = torch.zeros_like(slope).scatter(1, chosen, slope.gather(1, chosen).sign() / moved)
    return direction.view_as(grad_NCHW)


def l1_project(delta_NCHW: Tensor, images_NCHW: Tensor, epsilon_N: Tensor) -> Tensor:
    """Return the nearest perturbation with ||delta||_1 <= epsilon that keeps the images in [0, 1].

    Each value shrinks by one amount lambda and is cut to its room: min(max(|delta| - lambda, 0), room). What is left
    in all grows piecewise linearly as lambda falls; the sorted points at which its slope changes give the lambda that
    leaves epsilon.
    """
    size, limit = delta_NCHW.abs().flatten(1), room(images_NCHW, delta_NCHW).flatten(1)
    kept = torch.minimum(size, limit)
    turns, order = torch.cat([size, size - limit], 1).sort(1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(1)
    left = torch.zeros_like(turns)
    left[:, 1:] = (slope[:, :-1] * (turns[:, :-1] - turns[:, 1:])).cumsum(1)
    bound = epsilon_N[:, None]
    # The last turn that leaves no more than epsilon; from there on, what is left grows with the slope behind it.
    at = ((left <= bound).sum(1, keepdim=True) - 1).clamp_min(0)
    missing = (bound - left.gather(1, at)) / slope.gather(1, at).clamp_min(1)
    shrink = (turns.gather(1, at) - missing).clamp_min(0)
    shrunk = torch.minimum((size - shrink).clamp_min(0), limit)
    result = torch.where(kept.sum(1, keepdim=True) <= bound, kept, shrunk)
    # Sums of many float32 numbers are off by more than the last digits that a budget should hold to.
    result = result * (bound / result.sum(1, keepdim=True).clamp_min(TINY)).clamp_max(1.0)
    return (result * delta_NCHW.flatten(1).sign()).view_as(delta_NCHW)


def l0_step(grad_NCHW: Tensor, images_NCHW: Tensor, pixels: int) -> Tensor:
    """Return the gradient, scaled so that the weakest of the `pixels` steepest pixels moves by 1, from black to white.

    A pixel is as steep as its steepest channel that can move from the clean image. Without any slope nothing moves.

    Args:
        grad_NCHW: the gradient of what is raised.
        images_NCHW: the clean images.
        pixels: the number of pixels that may change, at least 1.
    """
    slope = (grad_NCHW.abs() * (room(images_NCHW, grad_NCHW) > 0)).amax(1).flatten(1)
    highest = slope.topk(pixels, dim=1).values
    # Where fewer pixels have a slope, the weakest of those; with none, the gradient is zero where anything can move.
    weakest = torch.where(highest > 0, highest, torch.inf).amin(1)
    return grad_NCHW / per_image(weakest.clamp_min(TINY))


def l0_project(delta_NCHW: Tensor, images_NCHW: Tensor, pixels: int) -> Tensor:
    """Return the nearest perturbation of at most `pixels` pixels that keeps the images in [0, 1].

    The pixels that are kept are those whose loss would move the perturbation furthest.

    Args:
        delta_NCHW: the perturbations.
        images_NCHW: the clean images.
        pixels: the number of pixels that may change; 0: none.
    """
    inside = (images_NCHW + delta_NCHW).clamp(0, 1) - images_NCHW
    gain = (delta_NCHW.square() - (delta_NCHW - inside).square()).sum(1, keepdim=True)
    chosen = gain.flatten(1).topk(pixels, dim=1).indices
    mask = torch.zeros_like(gain.flatten(1)).scatter(1, chosen, 1.0).view_as(gain)
    return inside * mask
