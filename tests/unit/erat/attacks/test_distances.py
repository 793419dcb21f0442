"""Tests the threat models of structural similarity and of transport against other solutions, on small images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import linprog, minimize
from torch import Tensor

from erat.attacks.pgd import pgd
from erat.attacks.ssim import ssim_distance, ssim_project, ssim_step
from erat.attacks.threats import Mixture
from erat.attacks.transport import moved_distance, transport_project, transport_size, transport_step

Array = NDArray[np.float64]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Draw images of which a third of the values are black or white."""
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((images - 0.5) * 1.5 + 0.5).clamp(0, 1)


def steepest(name: str, images: Tensor, weights: Tensor, epsilon: float, steps: int) -> Tensor:
    """Attack a linear loss."""
    mixture = Mixture.of([name], [epsilon], torch.zeros(len(images), dtype=torch.int64))
    size = torch.full((len(images),), epsilon / 5, dtype=images.dtype)
    return pgd(
        lambda points: points.flatten(1) @ weights, images, lambda sums: sums, mixture, steps=steps, step_size=size
    )


# --- structural similarity -------------------------------------------------------------------------------------------


def similarity(one: Array, other: Array, window: int) -> float:
    """Return SSIM as scikit-image computes it with Gaussian weights and the covariance of the whole window."""

    def blur(plane: Array) -> Array:
        margin = window // 2
        blurred: Array = gaussian_filter(plane, 1.5, radius=margin)
        return blurred[margin:-margin, margin:-margin]

    mean, other_mean = blur(one), blur(other)
    variance, other_variance = blur(one * one) - mean**2, blur(other * other) - other_mean**2
    covariance = blur(one * other) - mean * other_mean
    luminance = (2 * mean * other_mean + 0.01**2) / (mean**2 + other_mean**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance + other_variance + 0.03**2)
    return float((luminance * structure).mean())


@pytest.mark.parametrize(("side", "window"), [(7, 7), (14, 7), (22, 11), (28, 11)])
@pytest.mark.parametrize("share", [0.001, 0.1, 1.0])
def test_the_similarity_is_that_of_a_filter(side: int, window: int, share: float) -> None:
    images, others = drawn(3, 3, side, side), drawn(3, 3, side, side, seed=1)
    delta = share * (others - images)
    for row, found in enumerate(ssim_distance(delta, images).tolist()):
        pairs = zip(images[row].numpy(), (images + delta)[row].numpy(), strict=True)
        assert found == pytest.approx(1 - np.mean([similarity(*pair, window) for pair in pairs]), rel=1e-6, abs=1e-12)


def test_single_precision_keeps_the_digits_of_small_changes() -> None:
    """Where both images are nearly the same, 1 - SSIM of two rounded similarities would keep none."""
    images, others = drawn(3, 1, 14, 14), drawn(3, 1, 14, 14, seed=1)
    delta = 1e-4 * (others - images)
    exact = ssim_distance(delta, images)
    assert exact.max() < 1e-6
    torch.testing.assert_close(ssim_distance(delta.float(), images.float()).double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_the_similarity_s_projection_is_the_largest_scale_that_fits(epsilon: float) -> None:
    images, far = drawn(4, 1, 14, 14), torch.randn(4, 1, 14, 14, generator=torch.Generator().manual_seed(2)).double()
    inside = ssim_project(far, images, epsilon)
    cut = far.clamp(-images, 1 - images)
    scales = (inside.flatten(1).norm(dim=1) / cut.flatten(1).norm(dim=1)).tolist()
    for row, scale in enumerate(scales):
        image, change = images[row, 0].numpy(), cut[row, 0].numpy()
        assert 1 - similarity(image, image + scale * change, 7) <= epsilon * (1 + 1e-9)
        assert 1 - similarity(image, image + (scale + 1e-4) * change, 7) > epsilon


@pytest.mark.parametrize("seed", range(2))
def test_on_a_linear_network_ssim_comes_close_to_a_solver(seed: int) -> None:
    """SLSQP, from the attack's own result and from a short way along the slope, on images of one window."""
    images = drawn(1, 1, 7, 7, seed=seed)
    weights = torch.randn(49, generator=torch.Generator().manual_seed(seed)).double()
    reached = steepest("ssim", images, weights, 0.1, steps=40) - images
    image = images.flatten().numpy()

    def spare(delta: Array) -> float:
        return 0.1 - float(ssim_distance(torch.from_numpy(delta).view(1, 1, 7, 7), images))

    def slope(delta: Array) -> Array:
        point = torch.from_numpy(delta).requires_grad_()
        (grad,) = torch.autograd.grad(ssim_distance(point.view(1, 1, 7, 7), images).sum(), point)
        return -grad.numpy()  # type: ignore[no-any-return]

    best = max(
        -minimize(
            lambda delta: -float(weights.numpy() @ delta),
            start,
            jac=lambda delta: -weights.numpy(),
            bounds=list(zip(-image, 1 - image, strict=True)),
            constraints=[{"type": "ineq", "fun": spare, "jac": slope}],
            method="SLSQP",
            options={"maxiter": 100},
        ).fun
        for start in (reached.flatten().numpy(), np.clip(weights.numpy() * 1e-3, -image, 1 - image))
    )
    gained = float(weights @ reached.flatten())
    print(gained, best)
    assert gained <= best * (1 + 1e-5)
    assert gained >= 0.9 * best


def test_a_step_of_ssim_uses_its_share_of_the_budget() -> None:
    """1 - SSIM is quadratic near the image: a tenth of the way has a hundredth of it."""
    images, grad = drawn(5, 3, 14, 14), torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(3)).double()
    step = 0.001 * ssim_step(grad, images, images, 0.001)
    torch.testing.assert_close(ssim_distance(step / 10, images), torch.full((5,), 1e-5).double(), rtol=0.05, atol=0)
    blocked = (grad > 0) & (images == 1) | (grad < 0) & (images == 0)
    assert blocked.any()
    assert (step[blocked] == 0).all(), "white pixels that should rise and black ones that should fall"
    assert ssim_step(torch.zeros_like(images), images, images, 0.1).abs().max() == 0
    assert ssim_step(grad, images, images, 0.0).abs().max() == 0


# --- transport -------------------------------------------------------------------------------------------------------

SIDE = 5
PLACES = np.array([(y, x) for y in range(SIDE) for x in range(SIDE)])
COST = np.abs(PLACES[:, None] - PLACES[None]).sum(-1)  # city-block distances between all pairs of pixels
SENT, RECEIVED = np.kron(np.eye(SIDE**2), np.ones(SIDE**2)), np.kron(np.ones(SIDE**2), np.eye(SIDE**2))


def cheapest(before: Array, after: Array) -> float:
    """Return the least cost of a coupling of all pairs of pixels, by linear programming."""
    limits = np.concatenate([SENT, RECEIVED]), np.concatenate([before, after])
    found: Any = linprog(COST.flatten(), A_eq=limits[0], b_eq=limits[1], method="highs")
    assert found.status == 0
    return float(found.fun)


def best_within(image: Array, weights: Array, epsilon: float) -> float:
    """Return the highest linear loss of an image in [0, 1] within the budget, by linear programming over couplings."""
    most = np.concatenate([RECEIVED, COST.flatten()[None]]), np.append(np.ones(SIDE**2), epsilon * image.sum())
    found: Any = linprog(-(RECEIVED.T @ weights), A_ub=most[0], b_ub=most[1], A_eq=SENT, b_eq=image, method="highs")
    assert found.status == 0
    return -float(found.fun)


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_is_that_of_a_linear_program(seed: int) -> None:
    images = drawn(2, 2, SIDE, SIDE, seed=seed)
    others = drawn(2, 2, SIDE, SIDE, seed=seed + 10)
    others = others * (images.sum((2, 3), keepdim=True) / others.sum((2, 3), keepdim=True))
    found = moved_distance(others - images)
    for row in range(2):
        planes = zip(images[row].flatten(1).numpy(), others[row].flatten(1).numpy(), strict=True)
        exact = sum(cheapest(*pair) for pair in planes)
        assert exact * (1 - 1e-9) <= found[row] <= exact * 1.005
    torch.testing.assert_close(moved_distance((others - images) * 0.01), found * 0.01, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        transport_size(others - images, images), found / images.sum((1, 2, 3)), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.6])
def test_on_a_linear_network_transport_comes_close_to_a_linear_program(epsilon: float) -> None:
    images = drawn(6, 1, SIDE, SIDE)
    weights = torch.randn(SIDE**2, generator=torch.Generator().manual_seed(0)).double()
    moved = steepest("wasserstein", images, weights, epsilon, steps=20)
    gains = (moved - images).flatten(1) @ weights
    for image, after, gain in zip(images.flatten(1).numpy(), moved.flatten(1).numpy(), gains.tolist(), strict=True):
        best = best_within(image, weights.numpy(), epsilon) - float(image @ weights.numpy())
        print(epsilon, gain / best)
        assert gain <= best * (1 + 1e-6)
        assert gain >= 0.85 * best
        assert cheapest(image, after * image.sum() / after.sum()) <= epsilon * image.sum() * (1 + 1e-6)
    assert gains.min() > 0


def test_transport_keeps_the_sum_of_each_channel() -> None:
    images, far = drawn(4, 3, 8, 8), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    inside = transport_project(far, images, 0.1)
    assert inside.sum((2, 3)).abs().max() < 1e-12
    torch.testing.assert_close(transport_size(inside, images), torch.full((4,), 0.1).double(), rtol=1e-6, atol=0)
    brighter = torch.zeros_like(images)
    brighter[1:3, 0, 4, 4], brighter[2, 1, 4, 4] = 1e-3, -1e-3  # from one channel to another is no way either
    assert transport_size(brighter, images).tolist() == [0, torch.inf, torch.inf, 0]


def test_a_black_image_stays_as_it_is() -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[1, 0, 3, 3] = 1
    far = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inside = transport_project(far, images, 0.5)
    step = transport_step(far, images, images, 0.5)
    for moved in (inside, step):
        assert moved[0].abs().max() == 0
        assert moved.isfinite().all()
    assert step[1].abs().max() > 0
    assert transport_size(inside, images)[0] == 0


def test_a_white_image_has_no_room() -> None:
    images, grad = torch.ones(1, 1, 8, 8), torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert transport_step(grad, images, images, 0.5).abs().max() == 0
    assert transport_step(grad, images * 0.5, images * 0.5, 0.0).abs().max() == 0
