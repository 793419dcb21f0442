"""Computes steps and projections under the structural similarity of images, inside the range of pixels.

Pure functions of tensors. Shapes: perturbations, gradients and images (N, C, H, W), at least 7 x 7 pixels. A budget is
1 - SSIM, from 0 (the image itself) to 2.

Sources: SSIM is that of Wang et al., "Image quality assessment: from error visibility to structural similarity" (IEEE
Transactions on Image Processing 13, 2004), with its constants and its Gaussian window, averaged over channels and over
the windows that lie inside the image. No paper has this attack: the step and the projection are this project's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.norms import TINY, per_image
from erat.attacks.sparse import room

LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # C_1 and C_2, for pixels in [0, 1]
SIGMA = 1.5  # of the Gaussian window, in pixels
WINDOW, SMALL_WINDOW = 11, 7  # sides of the window in pixels; the small one where 11 is more than half of the image
HALVINGS = 14  # of the scale of a perturbation: it is met to 1/16384
# Least price of a pixel as a share of the mean. Pixels of the border are in few windows, at small weights: a change
# there is nearly free, and without a floor a step would be spent on the corners.
FLOOR = 0.1


class Moments(NamedTuple):
    """Weighted means, variances and the covariance of an image and a perturbation in each window, (N, C, h, w)."""

    mean: Tensor
    variance: Tensor
    delta_mean: Tensor
    delta_variance: Tensor
    covariance: Tensor


def _weights(height: int, width: int) -> list[float]:
    """Return the weights of a window along one side, which sum to 1."""
    side = WINDOW if min(height, width) >= 2 * WINDOW else SMALL_WINDOW
    line = torch.exp(-0.5 * ((torch.arange(side, dtype=torch.float64) - side // 2) / SIGMA) ** 2)
    weights: list[float] = (line / line.sum()).tolist()
    return weights


def _blur(maps: Tensor, weights: list[float]) -> Tensor:
    """Return the weighted mean of each window inside the image.

    By sums of shifted images: a convolution would be rounded to fewer digits on a GPU and under autocast.
    """
    for dim in (-1, -2):
        length = maps.shape[dim] - len(weights) + 1
        maps = torch.stack([weight * maps.narrow(dim, k, length) for k, weight in enumerate(weights)]).sum(0)
    return maps


def _moments(delta: Tensor, images: Tensor) -> Moments:
    weights = _weights(*images.shape[-2:])
    mean, square, delta_mean, delta_square, product = _blur(
        torch.stack([images, images.square(), delta, delta.square(), images * delta]), weights
    )
    return Moments(
        mean,
        (square - mean.square()).clamp_min(0),
        delta_mean,
        (delta_square - delta_mean.square()).clamp_min(0),
        product - mean * delta_mean,
    )


def _at_scale(moments: Moments, scale_N: Tensor | float) -> Tensor:
    """Return 1 - SSIM of each image and the image plus `scale` times the perturbation, (N,), from the moments of both.

    With means m and variances v, SSIM is a product l c of l = (2 m m' + C_1) / (m^2 + m'^2 + C_1) and
    c = (2 cov + C_2) / (v + v' + C_2). 1 - l has the squared mean of the perturbation in its numerator, 1 - c its
    variance; by these no digits are lost where the perturbation is small.
    """
    scale = per_image(scale_N) if isinstance(scale_N, Tensor) else scale_N
    other_mean = moments.mean + scale * moments.delta_mean
    added = scale**2 * moments.delta_variance
    other_variance = (moments.variance + 2 * scale * moments.covariance + added).clamp_min(0)
    luminance = (scale * moments.delta_mean).square() / (moments.mean.square() + other_mean.square() + LUMINANCE)
    structure = added / (moments.variance + other_variance + CONTRAST)
    return (luminance + structure - luminance * structure).flatten(1).mean(1)


def ssim_distance(delta_NCHW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Return 1 - SSIM of each image and the image plus its perturbation, shape (N,), from 0 to 2."""
    return _at_scale(_moments(delta_NCHW, images_NCHW), 1.0)


def _largest(delta: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Return the perturbation times the largest scale up to 1 at which it fits the budget, found by bisection.

    1 - SSIM grows with the scale until structure turns into its opposite, far beyond usual budgets; the scale that is
    returned fits in any case.
    """
    moments = _moments(delta, images)
    low, high = torch.zeros_like(delta[:, 0, 0, 0]), torch.ones_like(delta[:, 0, 0, 0])
    low = torch.where(_at_scale(moments, high) <= epsilon, high, low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = _at_scale(moments, middle) <= epsilon
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return delta * per_image(low)


def ssim_project(delta_NCHW: Tensor, images_NCHW: Tensor, epsilon: float) -> Tensor:
    """Return the perturbation cut to [0, 1], then scaled towards the image until 1 - SSIM <= epsilon."""
    return _largest(delta_NCHW.clamp(-images_NCHW, 1 - images_NCHW), images_NCHW, epsilon)


def _curvature(direction: Tensor, images: Tensor) -> Tensor:
    """Return the limit of (1 - SSIM) / scale^2 along a direction as the scale goes to 0, shape (N,)."""
    moments = _moments(direction, images)
    luminance = moments.delta_mean.square() / (2 * moments.mean.square() + LUMINANCE)
    structure = moments.delta_variance / (2 * moments.variance + CONTRAST)
    return (luminance + structure).flatten(1).mean(1)


def _price(images: Tensor) -> Tensor:
    """Return what a small change of each value alone adds to 1 - SSIM, up to a factor: its curvature, (N, C, H, W)."""
    weights = _weights(*images.shape[-2:])
    moments = _moments(torch.zeros_like(images), images)
    structure, luminance = 1 / (2 * moments.variance + CONTRAST), 1 / (2 * moments.mean.square() + LUMINANCE)
    margin = [len(weights) - 1] * 4
    # The windows are symmetric, so that a value's sum over its windows is a mean of the padded map. A value of weight w
    # adds w - w^2 to the variance of a window, and w^2 to its squared mean.
    once = _blur(F.pad(structure, margin), weights)
    twice = _blur(F.pad(luminance - structure, margin), [weight**2 for weight in weights])
    price = once + twice
    return torch.maximum(price, FLOOR * per_image(price.flatten(1).mean(1)))


def ssim_step(grad_NCHW: Tensor, point_NCHW: Tensor, images_NCHW: Tensor, epsilon: float) -> Tensor:
    """Return a direction which, times the budget, would use it up from the clean image, to second order.

    1 - SSIM is quadratic near the image. Its steepest ascent divides the gradient by the curvature, of which the
    diagonal is taken: flat areas, in which a change shows, move little, and textured ones much. What cannot move
    further does not.

    Args:
        grad_NCHW: the gradient of what is raised.
        point_NCHW: the perturbed images at which it was taken.
        images_NCHW: the clean images.
        epsilon: the budget; 0: no step.
    """
    if epsilon == 0:
        return torch.zeros_like(grad_NCHW)
    direction = grad_NCHW * (room(point_NCHW, grad_NCHW) > 0) / _price(images_NCHW)
    direction = direction / per_image(direction.abs().flatten(1).amax(1).clamp_min(TINY))
    length = (epsilon / _curvature(direction, images_NCHW).clamp_min(TINY)).sqrt()
    return direction * per_image(length / epsilon)


def ssim_draw(images_NCHW: Tensor, noise_NCHW: Tensor, radius_N: Tensor, epsilon: float) -> Tensor:
    """Return noise scaled to the budget, times a radius in [0, 1]; the perturbed images may leave [0, 1]."""
    length = (epsilon / _curvature(noise_NCHW, images_NCHW).clamp_min(TINY)).sqrt()
    # Beyond its quadratic part 1 - SSIM grows more slowly, so that the budget may allow more than `length`.
    return _largest(2 * noise_NCHW * per_image(length), images_NCHW, epsilon) * per_image(radius_N)
