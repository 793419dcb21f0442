"""Computes steps and projections under the Wasserstein distance, whose perturbations move brightness to near pixels.

Pure functions of tensors. Shapes: perturbations, gradients and images (N, C, H, W). A perturbation moves what the
values of an image sum to, inside each channel; it adds and removes nothing. A budget is the distance that all this
brightness may move on average, in pixels along rows and columns (the first Wasserstein distance with city-block ground
cost, over the sum of all values): 0.1 is a tenth of all brightness moved by one pixel. City-block distances are at
least Euclidean ones, so that a perturbation within a budget here is within it there.

Sources: the threat model is that of Wong, Schmidt, Kolter, "Wasserstein Adversarial Examples via Projected Sinkhorn
Iterations" (ICML 2019). The step is Frank-Wolfe's, as in Wu, Wang, Yu, "Stronger and Faster Wasserstein Adversarial
Attacks" (ICML 2020), whose moves within 5 x 5 pixels it has too; here it keeps pixels at most white, and needs no
entropy. The distance is the cost of the cheapest flow over the edges of the grid, as in Levine, Feizi, "Wasserstein
Smoothing: Certified Robustness against Wasserstein Adversarial Attacks" (AISTATS 2020).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.norms import TINY, per_image

REACH = 2  # pixels to each side that one move of a step may go
MOVES = 4  # of the same brightness, one after the other
FULL = 1e-3  # room below which nothing more is sent to a pixel
PACE = 3.0  # a step goes this many times its share of the way to the target of Frank-Wolfe
ITERATIONS = 40  # of the cheapest flow
SHRINK, RELAXATION = 1.0, 1.6  # its threshold as a share of the mean flow, and its over-relaxation
UNBALANCED = 1e-6  # change of the mean of a channel up to which nothing counts as added or removed: rounding


# --- distance --------------------------------------------------------------------------------------------------------


def _differences(potential: Tensor) -> Tensor:
    """Return the differences along the edges of the grid, (2, ..., H, W): to the right, downwards; 0 at the border."""
    right = torch.diff(potential, dim=-1, append=potential[..., -1:])
    return torch.stack([right, torch.diff(potential, dim=-2, append=potential[..., -1:, :])])


def _arrivals(flow: Tensor) -> Tensor:
    """Return what flows along the edges, (2, ..., H, W), add to each pixel; the transpose of `_differences`."""
    right, down = flow
    arrivals: Tensor = F.pad(right[..., :-1], (1, 0)) - right + F.pad(down[..., :-1, :], (0, 0, 1, 0)) - down
    return arrivals


class _Poisson:
    """Solves Poisson's equation on a grid by cosines, the waves of mirrored images; nothing flows over the border."""

    def __init__(self, like: Tensor) -> None:
        self.height, self.width = like.shape[-2:]
        rows, columns = (
            2 - 2 * (torch.arange(count, dtype=like.dtype, device=like.device) * (math.pi / side)).cos()
            for count, side in ((2 * self.height, self.height), (self.width + 1, self.width))
        )
        stiffness = rows[:, None] + columns
        constant = F.pad(torch.ones_like(stiffness[:1, :1]), (0, self.width, 0, 2 * self.height - 1))
        self.inverse = (1 - constant) / (stiffness + constant)

    def __call__(self, source: Tensor) -> Tensor:
        """Return the potential whose differences, as flows, add `source` less its mean to the pixels, same shape."""
        mirrored = torch.cat([source, source.flip(-1)], -1)
        waves = torch.fft.rfft2(torch.cat([mirrored, mirrored.flip(-2)], -2))
        potential: Tensor = torch.fft.irfft2(waves * self.inverse, s=(2 * self.height, 2 * self.width))
        return potential[..., : self.height, : self.width]


def moved_distance(delta_NCHW: Tensor) -> Tensor:
    """Return the least brightness times distance that makes a perturbation, (N,), in values times pixels.

    ADMM on min sum |flow| such that the arrivals are the perturbation: every iterate arrives exactly, so that the
    result is an upper bound, of a few per mille above the distance. A multiple of a perturbation has the same multiple
    of the result. What a channel gains or loses is left out.
    """
    potential = _Poisson(delta_NCHW)
    start = _differences(potential(delta_NCHW))
    unit = start.abs().mean(dim=(0, 2, 3, 4)).clamp_min(TINY)
    source, flow = delta_NCHW / per_image(unit), start / per_image(unit)
    sparse, dual = flow, torch.zeros_like(flow)
    best = flow.abs().sum(dim=(0, 2, 3, 4))
    for _ in range(ITERATIONS):
        relaxed = RELAXATION * flow + (1 - RELAXATION) * sparse + dual
        sparse = relaxed.sign() * (relaxed.abs() - SHRINK).clamp_min(0)
        dual = relaxed - sparse
        wanted = sparse - dual
        flow = wanted - _differences(potential(_arrivals(wanted) - source))
        best = torch.minimum(best, flow.abs().sum(dim=(0, 2, 3, 4)))
    return best * unit


def transport_size(delta_NCHW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Return how far a perturbation moves the brightness of its image on average, in pixels, shape (N,).

    It is infinite for one that adds or removes brightness in a channel, and 0 for none, on a black image too.
    """
    balanced = (delta_NCHW.mean(dim=(2, 3)).abs() <= UNBALANCED).all(1)
    size = moved_distance(delta_NCHW) / images_NCHW.flatten(1).sum(1).clamp_min(TINY)
    return torch.where(balanced, size, torch.inf)


def transport_project(delta_NCHW: Tensor, images_NCHW: Tensor, epsilon: float) -> Tensor:
    """Return the perturbation cut to [0, 1], balanced in each channel and scaled towards the image into the budget.

    It is balanced by less of what rises where more rises than falls, or less of what falls.
    """
    inside = delta_NCHW.clamp(-images_NCHW, 1 - images_NCHW)
    rising, falling = inside.clamp_min(0), inside.clamp_max(0)
    more, less = rising.sum(dim=(2, 3), keepdim=True), -falling.sum(dim=(2, 3), keepdim=True)
    kept = torch.minimum(more, less)
    balanced = rising * (kept / more.clamp_min(TINY)) + falling * (kept / less.clamp_min(TINY))
    budget = epsilon * images_NCHW.flatten(1).sum(1)
    return balanced * per_image((budget / moved_distance(balanced).clamp_min(TINY)).clamp_max(1.0))


# --- step ------------------------------------------------------------------------------------------------------------


def _around(planes: Tensor) -> Tensor:
    """Return the values around each pixel, zeros outside the image, (N * C, 25, H * W) from (N, C, H, W)."""
    return F.unfold(planes.flatten(0, 1)[:, None], 2 * REACH + 1, padding=REACH)


def _sent(amount: Tensor, where: Tensor, like: Tensor) -> Tensor:
    """Return what arrives at each pixel, (N, C, H, W), if each sends an amount to one of those around it."""
    parts = torch.zeros_like(amount).repeat(1, (2 * REACH + 1) ** 2, 1).scatter(1, where, amount)
    return F.fold(parts, like.shape[-2:], 2 * REACH + 1, padding=REACH).view_as(like)


def transport_target(slope_NCHW: Tensor, images_NCHW: Tensor, epsilon: float) -> Tensor:
    """Return an image within the budget and [0, 1] at which a linear loss of this slope is high, same shape.

    Every pixel sends its brightness to the one near it where the loss rises most for the distance; those that gain most
    for the distance go first, until the budget is spent. Where more would arrive than there is room, a share of each
    goes, and the rest looks for another place with the next move. What has moved may move on.
    """
    side = torch.arange(-REACH, REACH + 1, dtype=slope_NCHW.dtype, device=slope_NCHW.device).abs()
    cost = (side[:, None] + side).flatten()[None, :, None]
    gains = (_around(slope_NCHW) - slope_NCHW.flatten(0, 1).flatten(1)[:, None]) / cost.clamp_min(1)
    point, left = images_NCHW, epsilon * images_NCHW.flatten(1).sum(1, keepdim=True)
    for _ in range(MOVES):
        room = 1 - point
        open_gains = torch.where(_around(room) > FULL, gains, 0)
        gain, where = open_gains.max(1, keepdim=True)
        leaving = point.flatten(0, 1).flatten(1)[:, None] * (gain > 0)
        distance = cost.expand_as(gains).gather(1, where)
        # From the highest gain down: what is paid before each, in an image's own budget.
        order = gain.view(len(point), -1).argsort(1, descending=True)
        paid = (leaving * distance).view(len(point), -1).gather(1, order)
        before = paid.cumsum(1) - paid
        part = ((left - before) / paid.clamp_min(TINY)).clamp(0, 1)
        leaving = leaving * torch.zeros_like(part).scatter(1, order, part).view_as(leaving)
        share = (room / _sent(leaving, where, point).clamp_min(TINY)).clamp(0, 1)
        leaving = leaving * _around(share).gather(1, where)
        left = (left - (leaving * distance).view(len(point), -1).sum(1, keepdim=True)).clamp_min(0)
        point = (point - leaving.view_as(point) + _sent(leaving, where, point)).clamp(0, 1)
    return point


def transport_step(grad_NCHW: Tensor, point_NCHW: Tensor, images_NCHW: Tensor, epsilon: float) -> Tensor:
    """Return a direction which, times the budget and a share of it, goes that share (times `PACE`) to the target.

    The target is that of the gradient's linear loss. What lies between two images within the budget is within it.

    Args:
        grad_NCHW: the gradient of what is raised.
        point_NCHW: the perturbed images at which it was taken.
        images_NCHW: the clean images.
        epsilon: the budget; 0: no step.
    """
    if epsilon == 0:
        return torch.zeros_like(grad_NCHW)
    return (transport_target(grad_NCHW, images_NCHW, epsilon) - point_NCHW) * (PACE / epsilon)


def transport_draw(images_NCHW: Tensor, slope_NCHW: Tensor, radius_N: Tensor, epsilon: float) -> Tensor:
    """Return the way to the target of a random slope, lengthened to the budget, times a radius in [0, 1]."""
    way = transport_target(slope_NCHW, images_NCHW, epsilon) - images_NCHW
    budget = epsilon * images_NCHW.flatten(1).sum(1)
    return way * per_image(radius_N * budget / moved_distance(way).clamp_min(TINY))
