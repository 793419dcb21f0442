"""Computes steps and projections under the perceptual distance that a network's own feature maps define (LPIPS).

The distance of two images is ||phi(x) - phi(x')||_2, with phi the feature maps of the network that is attacked, each
position of a map scaled to unit length over its channels and divided by the root of the number of positions. No outside
weights are needed, and the distance changes as the network learns.

Source: Laidlaw, Singla, Feizi, "Perceptual Adversarial Robustness: Defense Against Unseen Threat Models" (ICLR 2021):
the distance ("self-bounded"), and the length of a step, by finite difference, of its fast Lagrangian attack. Its
penalty is replaced by a projection, bisection towards the image, because every run here keeps its budget in each step.

Shapes: perturbations, gradients and images (N, C, H, W), D features in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.norms import l2_step, per_image
from erat.attacks.sparse import room
from erat.errors import UserError

HALVINGS = 10  # of the scale of a perturbation: it is met to 1/1024
DIFFERENCE = 0.1  # l_2 length over which the distance that a direction covers is measured
LEAST_SLOPE = 1e-4  # keeps a direction that the feature maps do not see from an endless step
ROUNDING = 1e-5  # share of the budget that is left, because other batches round features otherwise
LEAST_SIZES = 2  # different sizes of maps; a transformer has one, that of its patches, and no features in it


def feature_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the last output of each spatial size inside the network, float (N, C', H', W'), larger than 1 x 1.

    In a stack of convolutions these are the activations before each reduction, in a residual network the stages.
    """
    found: dict[tuple[int, int], Tensor] = {}

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] * output.shape[-2] > 1:
            found[output.shape[-2], output.shape[-1]] = output

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    try:
        with frozen(network), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def has_feature_maps(network: nn.Module, image_shape: Sequence[int]) -> bool:
    """Return whether a network has feature maps of several sizes for images of the shape (C, H, W)."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return len(feature_maps(network, torch.zeros(1, *image_shape, device=device))) >= LEAST_SIZES


def no_feature_maps(what: str, name: str) -> UserError:
    """Return the error that `what`, which asks for lpips, is given the network `name`, which has no feature maps."""
    return UserError(f"{what} with lpips needs a network with feature maps of several sizes, got {name}")


def features(network: nn.Module, images: Tensor) -> Tensor:
    """Return phi of each image, (N, D)."""
    parts = [F.normalize(maps, dim=1).flatten(1) / maps[0, 0].numel() ** 0.5 for maps in feature_maps(network, images)]
    return torch.cat(parts, 1)


def lpips_distance(network: nn.Module, delta_NCHW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Return the perceptual distance of each image and the image plus its perturbation, shape (N,)."""
    return _distance(features(network, images_NCHW), features(network, images_NCHW + delta_NCHW))


def _distance(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    distance: Tensor = (one_ND - other_ND).norm(dim=1)
    return distance


def _largest(network: nn.Module, delta: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Return the perturbation times a scale up to 1 at which it fits the budget, found by bisection."""
    clean = features(network, images)
    fitting = epsilon * (1 - ROUNDING)

    def fits(scale: Tensor) -> Tensor:
        return _distance(clean, features(network, images + per_image(scale) * delta)) <= fitting

    low, high = torch.zeros_like(delta[:, 0, 0, 0]), torch.ones_like(delta[:, 0, 0, 0])
    low = torch.where(fits(high), high, low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = fits(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return delta * per_image(low)


def lpips_project(network: nn.Module, delta_NCHW: Tensor, images_NCHW: Tensor, epsilon: float) -> Tensor:
    """Return the perturbation cut to [0, 1], then scaled towards the image until its distance is within the budget.

    This takes 12 forward passes.
    """
    inside = delta_NCHW.clamp(-images_NCHW, 1 - images_NCHW)
    return _largest(network, inside, images_NCHW, epsilon) if epsilon > 0 else torch.zeros_like(inside)


def lpips_step(network: nn.Module, grad_NCHW: Tensor, point_NCHW: Tensor) -> Tensor:
    """Return the gradient's direction at the length that changes the features by 1, by finite difference.

    This takes two forward passes. Values at the end of their range that would have to leave it do not move.
    """
    direction = l2_step(grad_NCHW * (room(point_NCHW, grad_NCHW) > 0))
    both = features(network, torch.cat([point_NCHW, point_NCHW + DIFFERENCE * direction]))
    slope = _distance(*both.chunk(2)) / DIFFERENCE
    return direction / per_image(slope + LEAST_SLOPE)


def lpips_draw(network: nn.Module, images_NCHW: Tensor, noise_NCHW: Tensor, radius_N: Tensor, epsilon: float) -> Tensor:
    """Return noise scaled to the budget, times a radius in [0, 1]; the perturbed images may leave [0, 1]."""
    return _largest(network, noise_NCHW, images_NCHW, epsilon) * per_image(radius_N)
