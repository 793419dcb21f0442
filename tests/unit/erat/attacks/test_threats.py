"""Tests the threat models: what holds of each of them, and their steps and projections against other solutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.pgd import Budget, pgd
from erat.attacks.sparse import l0_norm, l0_project, l0_step, l1_norm, l1_project, l1_step
from erat.attacks.threats import THREATS, Mixture, threat_models
from erat.data.random import BatchRandom
from erat.data.types import ImageSet
from erat.losses import label_loss
from erat.options import NORMS

BUDGETS = {"linf": 0.1, "l2": 1.0, "l1": 4.0, "l0": 5.0, "ssim": 0.1, "wasserstein": 0.2, "lpips": 0.3}
LABELS = torch.arange(60) % 4


@pytest.fixture
def images(make_images: Callable[..., ImageSet]) -> Tensor:
    """Make sixty images with some pixels at both ends of [0, 1]."""
    return make_images(60, seed=1).images.float() / 255


def random(seed: int = 0) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed))


def attack(network: nn.Module, images: Tensor, name: str, epsilon: float, steps: int = 7) -> Tensor:
    mixture = Mixture.of([name], [epsilon], torch.zeros(len(images), dtype=torch.int64), network=network)
    loss = partial(label_loss, LABELS[: len(images)])
    with frozen(network):
        return pgd(network, images, loss, mixture, steps=steps, step_size=mixture.epsilon / 5)


# --- what holds of every model ---------------------------------------------------------------------------------------


def test_every_model_has_a_budget_here() -> None:
    assert list(BUDGETS) == list(NORMS)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("times", [0.2, 1.0, 3.0, 1000.0])
def test_what_it_finds_is_feasible(source: nn.Module, images: Tensor, name: str, times: float) -> None:
    epsilon = min(BUDGETS[name] * times, 64.0 if name == "l0" else 1e6)
    moved = attack(source, images, name, epsilon)
    assert not moved.requires_grad
    assert moved.min() >= 0
    assert moved.max() <= 1
    size = threat_models(source)[name].size(moved - images, images)
    assert size.max() <= epsilon * (1 + 1e-5)
    assert size.min() > 0


@pytest.mark.parametrize("name", NORMS)
def test_projections_are_feasible_and_leave_what_is(source: nn.Module, images: Tensor, name: str) -> None:
    threat, epsilon = threat_models(source)[name], BUDGETS[name]
    far = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 3
    inside = threat.project(far, images, epsilon)
    assert threat.size(inside, images).max() <= epsilon * (1 + 1e-5)
    assert (images + inside).min() >= -1e-6
    assert (images + inside).max() <= 1 + 1e-6
    torch.testing.assert_close(threat.project(inside, images, epsilon), inside, rtol=0, atol=1e-6)
    assert threat.project(far, images, 0.0).abs().max() == 0


@pytest.mark.parametrize("name", NORMS)
def test_it_is_never_worse_than_a_random_point(source: nn.Module, images: Tensor, name: str) -> None:
    threat, epsilon = threat_models(source)[name], BUDGETS[name]
    found = label_loss(LABELS, source(attack(source, images, name, epsilon)))
    for seed in range(5):
        drawn = images + threat.project(threat.draw(images, epsilon, random(seed)), images, epsilon)
        assert (found >= label_loss(LABELS, source(drawn))).all()


@pytest.mark.parametrize("name", NORMS)
def test_a_larger_budget_finds_more(source: nn.Module, images: Tensor, name: str) -> None:
    budgets = [BUDGETS[name] * times for times in (0, 0.2, 0.6, 1, 2)]
    losses = [label_loss(LABELS, source(attack(source, images, name, size))).mean().item() for size in budgets]
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[-1]


@pytest.mark.parametrize("name", NORMS)
def test_draws_are_feasible_and_fill_the_budget(source: nn.Module, images: Tensor, name: str) -> None:
    drawn = threat_models(source)[name].draw(images, BUDGETS[name], random())
    size = threat_models(source)[name].size(drawn, images)
    assert size.max() <= BUDGETS[name] * (1 + 1e-5)
    assert size.max() > 0.9 * BUDGETS[name]


@pytest.mark.parametrize(("name", "tolerance"), [("linf", 0.0), ("l2", 1e-6)])
def test_today_s_norms_are_those_of_a_budget(source: nn.Module, images: Tensor, name: str, tolerance: float) -> None:
    budget = Budget.of(name, BUDGETS[name], images)
    with frozen(source):
        expected = pgd(source, images, partial(label_loss, LABELS), budget, steps=7, step_size=budget.epsilon / 5)
    torch.testing.assert_close(attack(source, images, name, BUDGETS[name]), expected, rtol=0, atol=tolerance)


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_each_image_of_a_mixture_has_its_own_model_s_run(source: nn.Module, images: Tensor) -> None:
    """In float64, in which the size of a batch changes no decision."""
    source, images = source.double(), images.double()
    names = list(THREATS)
    which = torch.arange(60) * 7 % len(THREATS)
    mixture = Mixture.of(names, [BUDGETS[name] for name in names], which)
    loss, calls = partial(label_loss, LABELS[mixture.order]), list[int]()
    source.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    with frozen(source):
        mixed = pgd(source, images[mixture.order], loss, mixture, steps=7, step_size=mixture.epsilon / 5)[mixture.back]
    assert calls == [60] * 7, "one run, however many models"
    for number, name in enumerate(names):
        alone = attack(source, images, name, BUDGETS[name])
        torch.testing.assert_close(mixed[which == number], alone[which == number], rtol=0, atol=1e-6)


def test_starts_are_each_image_s_own(images: Tensor) -> None:
    which = torch.arange(60) * 7 % len(THREATS)
    mixture = Mixture.of(list(THREATS), [BUDGETS[name] for name in THREATS], which)
    start = mixture.draw(images, random())
    for number, name in enumerate(THREATS):
        size = THREATS[name].size(start[which == number], images[which == number])
        assert size.max() <= BUDGETS[name] * (1 + 1e-5)
        assert size.min() > 0
    inside = mixture.inside(images[mixture.order], start[mixture.order])
    assert inside.min() >= 0
    assert inside.max() <= 1


def test_a_model_without_images_is_no_trouble(source: nn.Module, images: Tensor) -> None:
    mixture = Mixture.of(list(THREATS), [BUDGETS[name] for name in THREATS], torch.full((60,), 2))
    assert mixture.draw(images, random()).shape == images.shape
    loss = partial(label_loss, LABELS)
    moved = pgd(source, images, loss, mixture, steps=2, step_size=mixture.epsilon / 5)
    assert l1_norm(moved - images).min() > 0


# --- l_1 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_l1_projection_is_that_of_a_solver(seed: int) -> None:
    """The nearest point by SLSQP, on positive and negative parts: sum(p + n) <= epsilon, 0 <= x + p - n <= 1."""
    draw = np.random.default_rng(seed)
    pixels, far = draw.random(6), draw.normal(0, 1, 6)
    pixels[draw.random(6) < 0.3] = 0
    epsilon = float(draw.uniform(0.05, 2))
    limits = {"type": "ineq", "fun": lambda parts: epsilon - parts.sum()}
    box = [(0, value) for value in 1 - pixels] + [(0, value) for value in pixels]
    found = minimize(
        lambda parts: ((parts[:6] - parts[6:] - far) ** 2).sum(),
        np.zeros(12),
        bounds=box,
        constraints=[limits],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    shape = (1, 1, 2, 3)
    mine = l1_project(
        torch.from_numpy(far).view(shape), torch.from_numpy(pixels).view(shape), torch.tensor([epsilon]).double()
    )
    np.testing.assert_allclose(mine.flatten().numpy(), found.x[:6] - found.x[6:], atol=1e-5)


def test_the_l1_projection_uses_the_whole_budget_where_it_can(images: Tensor) -> None:
    far = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    inside = l1_project(far, images, torch.full((60,), 4.0))
    torch.testing.assert_close(l1_norm(inside), torch.full((60,), 4.0), rtol=1e-5, atol=0)
    everything = l1_project(far, images, torch.full((60,), 1e4))
    torch.testing.assert_close(everything, far.clamp(-images, 1 - images))


def test_an_l1_step_moves_the_steepest_values_that_can_move() -> None:
    grad = torch.zeros(1, 1, 10, 10)
    grad.flatten()[:4] = torch.tensor([5.0, -4.0, 3.0, -2.0])
    point = torch.full((1, 1, 10, 10), 0.5)
    point.flatten()[0] = 1.0  # the steepest one is white and should rise
    step = l1_step(grad, point).flatten()
    assert step[:4].tolist() == [0, -0.5, 0.5, 0], "two are 2 % of 100"
    assert step[4:].abs().max() == 0
    assert l1_step(torch.zeros_like(grad), point).abs().max() == 0


# --- l_0 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_the_l0_projection_is_the_nearest_of_all_choices(pixels: int) -> None:
    draw = torch.Generator().manual_seed(pixels)
    images, far = torch.rand(8, 3, 2, 3, generator=draw), torch.randn(8, 3, 2, 3, generator=draw)
    inside = far.clamp(-images, 1 - images)
    found = l0_project(far, images, pixels)
    for row in range(8):
        distances = []
        for chosen in combinations(range(6), pixels):
            candidate = torch.zeros(3, 6)
            candidate[:, list(chosen)] = inside[row].flatten(1)[:, list(chosen)]
            distances.append((candidate - far[row].flatten(1)).norm().item())
        assert (found[row] - far[row]).norm().item() == pytest.approx(min(distances))
    assert (l0_norm(found) == pixels).all()


def on_a_linear_network(norm: str, epsilon: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attack 20 images whose loss is the product of 16 pixels with weights.

    Returns:
        (images (20, 16), weights (16,), by how much the loss of each image has risen (20,)).
    """
    draw = torch.Generator().manual_seed(0)
    images, weights = torch.rand(20, 1, 4, 4, generator=draw), torch.randn(16, generator=draw)
    mixture = Mixture.of([norm], [epsilon], torch.zeros(20, dtype=torch.int64))
    moved = pgd(
        lambda points: points.flatten(1) @ weights, images, lambda sums: sums, mixture, steps=steps,
        step_size=mixture.epsilon / 5,
    )  # fmt: skip
    return images.flatten(1), weights, (moved - images).flatten(1) @ weights


def test_on_a_linear_network_l0_finds_the_best_of_all_choices() -> None:
    """The loss is a sum over pixels, so that the best are those of largest gradient times room."""
    images, weights, reached = on_a_linear_network("l0", 3.0, steps=7)
    gains = (weights * torch.where(weights > 0, 1 - images, -images)).topk(3).values.sum(1)
    assert (reached <= gains + 1e-5).all()
    assert (reached >= 0.9 * gains).all()
    assert reached.sum() >= 0.99 * gains.sum()


def test_on_a_linear_network_l1_finds_nearly_the_best() -> None:
    """The best fills the room of the values of largest gradient, one after the other, until the budget is spent."""
    images, weights, reached = on_a_linear_network("l1", 1.5, steps=20)
    for image, gain in zip(images, reached, strict=True):
        left, best = 1.5, 0.0
        for weight, pixel in sorted(zip(weights.tolist(), image.tolist(), strict=True), key=lambda pair: -abs(pair[0])):
            used = min(left, 1 - pixel if weight > 0 else pixel)
            left, best = left - used, best + abs(weight) * used
        assert 0.95 * best <= gain <= best + 1e-5


def test_an_l0_step_without_slope_moves_nothing() -> None:
    images = torch.full((2, 3, 2, 2), 0.5)
    assert l0_step(torch.zeros_like(images), images, 2).abs().max() == 0
    white, rising = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert l0_project(l0_step(rising, white, 2), white, 2).abs().max() == 0
