"""Gathers the threat models, each a step, a projection, a size and a random draw, and mixes them in one batch.

A budget is a number for all images of a model: of l_inf, l_2 and l_1 in pixel units of 1.0, of l_0 a number of pixels,
of ssim 1 - SSIM, of wasserstein the distance in pixels that brightness moves on average, of lpips the distance of the
feature maps of the network that is attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from erat.attacks.lpips import lpips_distance, lpips_draw, lpips_project, lpips_step
from erat.attacks.norms import TINY, l2_norm, l2_project, l2_step, linf_project, linf_step, per_image
from erat.attacks.sparse import l0_norm, l0_project, l0_step, l1_norm, l1_project, l1_step
from erat.attacks.ssim import ssim_distance, ssim_draw, ssim_project, ssim_step
from erat.attacks.transport import transport_draw, transport_project, transport_size, transport_step
from erat.devices import to_device

if TYPE_CHECKING:
    from erat.data.random import BatchRandom


@dataclass(frozen=True)
class ThreatModel:
    """A set of perturbations that an attacker may choose from, as functions of tensors (N, C, H, W).

    Attributes:
        step: (gradient, perturbed images, clean images, budget) -> a direction; times the budget and a share of it, one
            step.
        project: (perturbation, clean images, budget) -> a perturbation within the budget that keeps the images in
            [0, 1]; the nearest one under l_inf, l_1 and l_0.
        size: (perturbation, clean images) -> its size, float (N,), in the unit of the budget.
        draw: (clean images, budget, random) -> a random perturbation, not yet cut to [0, 1].
    """

    step: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    project: Callable[[Tensor, Tensor, float], Tensor]
    size: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[Tensor, float, BatchRandom], Tensor]


def _rows(images: Tensor, epsilon: float) -> Tensor:
    return torch.full((len(images),), epsilon, dtype=images.dtype, device=images.device)


def _cut(images: Tensor, delta: Tensor) -> Tensor:
    """Cut a perturbation so that it keeps the images in [0, 1]."""
    return delta.clamp(-images, 1 - images)


def draw_linf(images: Tensor, epsilon: float | Tensor, random: BatchRandom) -> Tensor:
    """Draw from the l_inf ball uniformly; `epsilon` is a number or of shape (N, 1, 1, 1)."""
    return (2 * random.rand(*images.shape, device=images.device) - 1) * epsilon


def draw_l2(images: Tensor, epsilon: float | Tensor, random: BatchRandom) -> Tensor:
    """Draw a uniform direction times a uniform radius up to `epsilon`, a number or of shape (N, 1, 1, 1)."""
    direction = l2_step(random.randn(*images.shape, device=images.device))
    return direction * epsilon * random.rand(len(images), 1, 1, 1, device=images.device)


def _draw_l1(images: Tensor, epsilon: float, random: BatchRandom) -> Tensor:
    """Draw a direction uniformly from the l_1 sphere (Laplace numbers, normalised), times a uniform radius."""
    uniform = random.rand(*images.shape, device=images.device) - 0.5
    laplace = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    direction = laplace / per_image(l1_norm(laplace).clamp_min(TINY))
    return direction * epsilon * random.rand(len(images), 1, 1, 1, device=images.device)


def _draw_l0(images: Tensor, epsilon: float, random: BatchRandom) -> Tensor:
    """Draw a random colour for random pixels."""
    count, _, height, width = images.shape
    moved = random.rand(*images.shape, device=images.device) - images
    ranks = random.rand(count, height * width, device=images.device).argsort(1).argsort(1)
    return moved * (ranks < int(epsilon)).view(count, 1, height, width)


def _noise(images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
    """Draw a normal number for each value, and a radius in [0, 1] for each image."""
    noise = random.randn(*images.shape, device=images.device)
    return noise, random.rand(len(images), device=images.device)


THREATS: dict[str, ThreatModel] = {
    "linf": ThreatModel(
        step=lambda grad, point, images, epsilon: linf_step(grad),
        project=lambda delta, images, epsilon: _cut(images, linf_project(delta, _rows(images, epsilon))),
        size=lambda delta, images: delta.abs().flatten(1).amax(1),
        draw=draw_linf,
    ),
    "l2": ThreatModel(
        step=lambda grad, point, images, epsilon: l2_step(grad),
        project=lambda delta, images, epsilon: _cut(images, l2_project(delta, _rows(images, epsilon))),
        size=lambda delta, images: l2_norm(delta),
        draw=draw_l2,
    ),
    "l1": ThreatModel(
        step=lambda grad, point, images, epsilon: l1_step(grad, point),
        project=lambda delta, images, epsilon: l1_project(delta, images, _rows(images, epsilon)),
        size=lambda delta, images: l1_norm(delta),
        draw=_draw_l1,
    ),
    "l0": ThreatModel(
        # A step of a tenth of the budget moves the weakest of the kept pixels from black to white. Twice that, PGD's
        # default, raised cross-entropy more than half or five times as much did, on a network trained on digits.
        step=lambda grad, point, images, epsilon: (
            l0_step(grad, images, int(epsilon)) * (10 / epsilon) if epsilon >= 1 else torch.zeros_like(grad)
        ),
        project=lambda delta, images, epsilon: l0_project(delta, images, int(epsilon)),
        size=lambda delta, images: l0_norm(delta),
        draw=_draw_l0,
    ),
    "ssim": ThreatModel(
        step=ssim_step,
        project=ssim_project,
        size=ssim_distance,
        draw=lambda images, epsilon, random: ssim_draw(images, *_noise(images, random), epsilon),
    ),
    "wasserstein": ThreatModel(
        step=transport_step,
        project=transport_project,
        size=transport_size,
        draw=lambda images, epsilon, random: transport_draw(images, *_noise(images, random), epsilon),
    ),
}


def threat_models(network: nn.Module | None) -> Mapping[str, ThreatModel]:
    """Return `THREATS` and, for a network whose feature maps define a distance, "lpips"."""
    if network is None:
        return THREATS
    perceptual = ThreatModel(
        step=lambda grad, point, images, epsilon: lpips_step(network, grad, point),
        project=partial(lpips_project, network),
        size=partial(lpips_distance, network),
        draw=lambda images, epsilon, random: lpips_draw(network, images, *_noise(images, random), epsilon),
    )
    return THREATS | {"lpips": perceptual}


@dataclass(frozen=True)
class Mixture:
    """Budgets of a batch in which each image has a threat model of its own; the images of one model stand together.

    Attributes:
        models: the threat models, in the order in which their images stand.
        budgets: the budget of each.
        counts: the number of images of each.
        order: the row in the batch of each image of this order, int64 (N,), on the device of the images.
        back: the inverse of `order`.
    """

    models: tuple[ThreatModel, ...]
    budgets: tuple[float, ...]
    counts: tuple[int, ...]
    order: Tensor
    back: Tensor

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        budgets: Sequence[float],
        which_N: Tensor,
        device: torch.device | None = None,
        network: nn.Module | None = None,
    ) -> Mixture:
        """Give each image one of several threat models.

        Args:
            names: keys of `threat_models(network)`.
            budgets: the budget of each.
            which_N: the number of each image's model, int64 (N,), on the CPU, so that the host knows the groups.
            device: the device of the images; None: the CPU.
            network: the network that is attacked, which "lpips" needs.
        """
        order = which_N.argsort(stable=True)
        counts = torch.bincount(which_N, minlength=len(names)).tolist()
        there = [to_device(rows, device) if device is not None else rows for rows in (order, order.argsort())]
        models = threat_models(network)
        return cls(tuple(models[name] for name in names), tuple(budgets), tuple(counts), *there)

    @classmethod
    def alone(cls, name: str, budget: float, images_NCHW: Tensor, network: nn.Module | None = None) -> Mixture:
        """Give every image the same threat model, a key of `threat_models(network)`, and the same budget."""
        which = torch.zeros(len(images_NCHW), dtype=torch.int64)
        return cls.of([name], [budget], which, images_NCHW.device, network)

    @property
    def epsilon(self) -> Tensor:
        """Return the budget of each image in the order of the groups, shape (N,)."""
        parts = [
            torch.full((count,), budget, device=self.order.device)
            for budget, count in zip(self.budgets, self.counts, strict=True)
        ]
        return torch.cat(parts)

    def inside(self, images_NCHW: Tensor, delta_NCHW: Tensor) -> Tensor:
        """Return the images, in the order of the groups, with the perturbations projected on their budgets."""

        def one(model: ThreatModel, budget: float, images: Tensor, delta: Tensor) -> Tensor:
            return images + model.project(delta, images, budget)

        return self._by_group(one, images_NCHW, delta_NCHW)

    def moved(self, images_NCHW: Tensor, point_NCHW: Tensor, grad_NCHW: Tensor, length_N: Tensor) -> Tensor:
        """Return the point, in the order of the groups, after one step of each image's own model.

        Args:
            images_NCHW: the clean images.
            point_NCHW: the perturbed images.
            grad_NCHW: the gradient at the point.
            length_N: the length of the step in the unit of each image's budget.
        """

        def one(
            model: ThreatModel, budget: float, images: Tensor, point: Tensor, grad: Tensor, length: Tensor
        ) -> Tensor:
            step = per_image(length) * model.step(grad, point, images, budget)
            return images + model.project(point + step - images, images, budget)

        return self._by_group(one, images_NCHW, point_NCHW, grad_NCHW, length_N)

    def draw(self, images_NCHW: Tensor, random: BatchRandom) -> Tensor:
        """Draw a random start for each image; images and starts are in the order of the batch.

        Every model draws for the whole batch, so that the draws do not depend on the share of it that a worker has.
        """
        groups = zip(self.models, self.budgets, self.order.split(self.counts), strict=True)
        return torch.cat([model.draw(images_NCHW, budget, random)[rows] for model, budget, rows in groups])[self.back]

    def _by_group(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        parts = zip(*(tensor.split(self.counts) for tensor in tensors), strict=True)
        groups = zip(self.models, self.budgets, parts, strict=True)
        # (images + delta) may round to just outside [0, 1].
        return torch.cat([function(model, budget, *part) for model, budget, part in groups if len(part[0])]).clamp(0, 1)
