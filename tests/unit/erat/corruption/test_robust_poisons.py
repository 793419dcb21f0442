"""Tests the poisons against networks that defend themselves (REM, the adaptive one), TUE, PIL and sparse budgets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from erat.attacks.pgd import Budget, pgd
from erat.config import build
from erat.corruption import pil, tue
from erat.corruption.adaptive import ADAPTIVE
from erat.corruption.base import Craft
from erat.corruption.classwise import SharedBudget
from erat.corruption.rem import REM
from erat.corruption.robust import minimised
from erat.data.augment.views import crop_view, strong_view
from erat.data.random import BatchRandom
from erat.errors import UserError
from erat.losses import label_loss, perturbation_objective
from erat.registry import CORRUPTIONS

K = 4


def again(order: Craft, **changes: Any) -> Craft:
    """Return the same order, within l_inf 0.1 and with its random numbers restarted, with other options of its own."""
    options = {key: changes.pop(key) for key in list(changes) if key in order.options}
    made = {"norm": "linf", "epsilon": 0.1, "generator": torch.Generator().manual_seed(0)} | changes
    return replace(order, options={**order.options, **options}, **made)


def draws(seed: int = 0) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed))


# --- REM -------------------------------------------------------------------------------------------------------------


def test_rem_expects_adversarial_training_on_crops(order: Craft, source: nn.Module) -> None:
    asked = again(order, attack_steps=3, attack_share=0.25, flip=True)
    images = order.images.clone().requires_grad_(True)
    views, labels = REM.defended(asked)(source, images, order.labels, draws())
    random = draws()
    crop = crop_view(order.images, random, flip=True)
    budget = Budget.of("linf", 0.025, crop)
    start = budget.draw(crop, random)
    expected = pgd(
        source, crop, partial(label_loss, labels), budget, steps=3, step_size=budget.epsilon / 5, start_NCHW=start
    )
    torch.testing.assert_close(views, expected)
    assert torch.equal(labels, order.labels)
    # The attack is held constant: a gradient comes back through the crop alone.
    weights = torch.randn(views.shape, generator=torch.Generator().manual_seed(1))
    (back,) = torch.autograd.grad((views * weights).sum(), images)
    plain = order.images.clone().requires_grad_(True)
    (through_crop,) = torch.autograd.grad((crop_view(plain, draws(), flip=True) * weights).sum(), plain)
    assert torch.equal(back, through_crop)


def test_a_descent_step_takes_the_mean_over_its_draws(order: Craft, source: nn.Module) -> None:
    """The expected defense is replaced by one that shows one of two images, each half of the time."""
    weights = torch.randn(2, *order.images.shape[1:], generator=torch.Generator().manual_seed(3))
    turns: list[int] = []

    def defended(network: nn.Module, images: Tensor, labels: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        turns.append(len(turns) % 2)
        return images * weights[turns[-1]], labels

    asked = again(order, descents=1, draws=2)
    noise = minimised(source, asked, defended, order.images, order.labels, draws())
    assert turns == [0, 1]
    start = Budget.of("linf", 0.1, order.images).draw(order.images, draws()).requires_grad_(True)
    both = [source((order.images + start).clamp(0, 1) * weight) for weight in weights]
    (slope,) = torch.autograd.grad(
        sum(F.cross_entropy(logits, order.labels, reduction="sum") for logits in both), start
    )
    torch.testing.assert_close(noise, (start.detach() - 0.02 * slope.sign()).clamp(-0.1, 0.1))


# --- the adaptive poisoner -------------------------------------------------------------------------------------------


def test_the_adaptive_poisoner_expects_erat_s_three_views(order: Craft, source: nn.Module) -> None:
    asked = again(order, attack_steps=2, flip=False, policy="digits", epsilon_inf=0.05, epsilon_2=0.5)
    views, labels = ADAPTIVE.defended(asked)(source, order.images, order.labels, draws())
    random = draws()
    linf = random.randint(2, 60) == 0  # Eq. 7
    budget = Budget(torch.where(linf, 0.05, 0.5), linf)
    clean = source(order.images).softmax(1).detach()
    moved = pgd(
        source,
        order.images,
        lambda logits: perturbation_objective(logits, clean, order.labels),
        budget,
        steps=2,
        step_size=budget.epsilon * 0.2,
    )
    strong = strong_view(torch.cat([order.images, moved]), random, policy="digits")
    torch.testing.assert_close(views, torch.cat([strong, moved]))
    assert torch.equal(labels, order.labels.repeat(3))


def test_it_lowers_erat_s_loss(order: Craft, source: nn.Module) -> None:
    asked = again(order, flip=False, policy="digits", attack_steps=3, descents=6, draws=2)
    defended = ADAPTIVE.defended(asked)
    noise = minimised(source, asked, defended, order.images, order.labels, draws())
    losses = []
    for images in (order.images, (order.images + noise).clamp(0, 1)):
        views, labels = defended(source, images, order.labels, draws(9))
        losses.append(F.cross_entropy(source(views), labels).item())
    assert losses[1] < 0.7 * losses[0]


def test_its_budgets_and_views_follow_the_data_set_unless_they_are_given() -> None:
    def own(**keys: Any) -> dict[str, Any]:
        given = {f"corruption.{key}": value for key, value in keys.items()}
        return build("paper", {"corruption.data": "adaptive"} | given).corruption.own()

    assert {key: own()[key] for key in ("epsilon_inf", "epsilon_2", "policy", "flip")} == {
        "epsilon_inf": 8 / 255,
        "epsilon_2": 0.5,
        "policy": "cifar10",
        "flip": True,
    }
    assert own(epsilon_inf=0.01, policy="svhn", flip=False) == own() | {
        "epsilon_inf": 0.01,
        "policy": "svhn",
        "flip": False,
    }
    digits = build("demo", {"corruption.data": "rem", "data.flip": True}).corruption.own()
    assert digits["flip"] is True, "as the views of the run"
    with pytest.raises(UserError, match=r"^corruption.policy: input should be 'cifar10', .* got 'ueraser'$"):
        own(policy="ueraser")


# --- TUE -------------------------------------------------------------------------------------------------------------


def by_hand(noise: Tensor, labels: Tensor) -> float:
    """Return the discriminant of noise, pair by pair of classes."""
    rows = noise.flatten(1).double().numpy()
    parts = [rows[labels.numpy() == k] for k in range(K)]
    means = [part.mean(0) for part in parts]
    scatters = [np.linalg.norm(part - mean, axis=1).mean() for part, mean in zip(parts, means, strict=True)]
    terms = [
        (scatters[i] + scatters[j]) / np.linalg.norm(means[i] - means[j]) for i in range(K) for j in range(K) if i != j
    ]
    return float(np.mean(terms))


def test_tue_s_discriminant_is_that_of_its_paper_and_its_slope_that_of_the_means(order: Craft) -> None:
    noise = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = noise.clone().requires_grad_(True)
    means = torch.stack([point[order.labels == k].flatten(1).mean(0) for k in range(K)])
    scatters = (point.detach().flatten(1) - means.detach()[order.labels]).norm(dim=1)
    scatters = torch.stack([scatters[order.labels == k].mean() for k in range(K)])
    value = tue.discriminant(means, scatters)
    assert value.item() == pytest.approx(by_hand(noise, order.labels), rel=1e-4)
    (slope,) = torch.autograd.grad(value, point)
    torch.testing.assert_close(tue._slope(noise, order.labels, K), slope)
    only = torch.zeros(60, dtype=torch.int64)
    assert not tue._slope(noise, only, K).any(), "one class is apart from nothing"


def test_tue_s_noise_is_linearly_separable_and_random_noise_is_not(order: Craft) -> None:
    noise = CORRUPTIONS["tue"].perturb(again(order, steps=3))
    start = Budget.of("linf", 0.1, order.images).draw(order.images, draws())
    assert by_hand(noise, order.labels) < 0.5 * by_hand(start, order.labels)
    accuracies = []
    for delta in (noise, start):
        rows = delta.flatten(1).numpy()
        rule = LogisticRegression(C=1e3, max_iter=500).fit(rows[:40], order.labels[:40])
        accuracies.append(rule.score(rows[40:], order.labels[40:]))
    assert accuracies[0] == 1.0
    assert accuracies[1] < 0.6
    moved = order.images + noise
    assert moved.min() >= 0 and moved.max() <= 1


# --- PIL -------------------------------------------------------------------------------------------------------------


def test_pil_s_rule_reads_the_class_from_what_it_takes_off_and_little_from_the_rest(order: Craft) -> None:
    asked = again(order, steps=30, linear_epochs=60)
    taken = -CORRUPTIONS["pil"].perturb(asked)
    rule = pil._rule(again(order, linear_epochs=60))
    assert rule.shape == (K, 64)

    def said(images: Tensor) -> Tensor:
        return (images.flatten(1) @ rule.T).softmax(1)

    mine = order.labels[:, None]
    assert (said(order.images).argmax(1) == order.labels).float().mean() > 0.9
    assert (said(taken).argmax(1) == order.labels).all()
    assert said(order.images - taken).gather(1, mine).mean() < 0.8 * said(order.images).gather(1, mine).mean()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pil_descends_on_its_two_terms(order: Craft, norm: str) -> None:
    rule = torch.randn(K, 64, generator=torch.Generator().manual_seed(0))
    delta = 0.05 * torch.randn(order.images.shape, generator=torch.Generator().manual_seed(1))
    point = delta.clone().requires_grad_(True)
    uniform = torch.full((60, K), 1 / K)
    away = F.kl_div((order.images - point).flatten(1).matmul(rule.T).log_softmax(1), uniform, reduction="sum")
    loss = 0.9 * F.cross_entropy(point.flatten(1) @ rule.T, order.labels, reduction="sum") + 0.1 * away
    (slope,) = torch.autograd.grad(loss, point)
    torch.testing.assert_close(pil._slope(rule, delta, order.images, order.labels), slope, rtol=1e-4, atol=1e-6)
    moved = order.images + CORRUPTIONS["pil"].perturb(again(order, norm=norm, steps=3, linear_epochs=1))
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6


# --- class-wise under l1 and l0 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 3.0), ("l0", 5.0)])
def test_a_budget_that_images_share_is_kept_and_used(norm: str, epsilon: float) -> None:
    shape = (K, 3, 6, 6)
    budget = SharedBudget(norm, epsilon, torch.zeros(shape))

    def size(delta: Tensor) -> Tensor:
        changed = (delta != 0).any(1) if norm == "l0" else delta.abs()
        return changed.flatten(1).sum(1).float()

    drawn = budget.draw(draws())
    torch.testing.assert_close(size(drawn), torch.full((K,), epsilon), rtol=1e-5, atol=0)
    assert drawn.abs().max() <= 1
    far = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    near = budget.project(far)
    torch.testing.assert_close(size(near), torch.full((K,), epsilon), rtol=1e-5, atol=0)
    assert near.abs().max() <= 1, "from black to white at most"
    torch.testing.assert_close(budget.project(near), near)
    # No random perturbation within the budget is nearer.
    others = torch.cat(
        [
            budget.project(near + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))[None]
            for seed in range(50)
        ]
    )
    assert ((others - far).flatten(2).norm(dim=2) >= (near - far).flatten(1).norm(dim=1) - 1e-4).all()
    step = budget.direction(far)
    assert ((step * far).flatten(1).sum(1) > 0).all(), "uphill"


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_uhp_s_few_pixels_make_the_source_network_say_the_class(order: Craft, source: nn.Module, norm: str) -> None:
    delta = CORRUPTIONS["uhp"].perturb(again(order, norm=norm, epsilon=16.0, steps=30))
    before, after = [], []
    for label in range(K):
        wanted = torch.full_like(order.labels, label)
        vector = delta[order.labels == label][:1]
        before.append(F.cross_entropy(source(order.images), wanted).item())
        after.append(F.cross_entropy(source((order.images + vector).clamp(0, 1)), wanted).item())
    assert sum(after) < 0.6 * sum(before), "whatever the image shows"
