"""Tests data corruptions: their budgets, what defines each kind, and rounding to 8 bit without leaving the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.corruption import up
from erat.corruption.base import Craft, norms_of, quantize
from erat.corruption.classwise import descend
from erat.data.types import ImageSet
from erat.models import build_model
from erat.registry import CORRUPTIONS

K = 4


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep UP from stopping early, because the few images are learnt before its perturbation has grown."""
    monkeypatch.setattr(up, "STOP_ERROR", -1.0)


def again(order: Craft, **changes: Any) -> Craft:
    """Return the same order with its random numbers restarted."""
    return replace(order, generator=torch.Generator().manual_seed(0), **changes)


def norms(delta: Tensor, norm: str) -> Tensor:
    if norm == "l1":
        return delta.abs().flatten(1).sum(1)
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).float()
    return delta.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(delta)


def per_class(delta: Tensor, labels: Tensor) -> Tensor:
    """Return one row per class, after checking that all images of a class have the same perturbation."""
    for k in range(K):
        assert bool((delta[labels == k] == delta[labels == k][:1]).all())
    return torch.stack([delta[labels == k][0] for k in range(K)])


# --- what holds of every kind ----------------------------------------------------------------------------------------


BUDGETS = {"linf": 0.1, "l2": 1.0, "l1": 4.0, "l0": 3.0, "unbounded": math.inf}


def budgets() -> list[tuple[str, str, str]]:
    """Return every kind in every granularity under each of its norms: all but OPS and CUDA have the paper's two."""
    found = [(kind, granularity, norm) for kind, granularity in granularities() for norm in CORRUPTIONS[kind].norms]
    lacking = {kind for kind in CORRUPTIONS.names() if not {"linf", "l2"} <= set(CORRUPTIONS[kind].norms)}
    assert lacking == {"ops", "cuda"}
    return found


def granularities() -> list[tuple[str, str]]:
    return [(kind, granularity) for kind in CORRUPTIONS.names() for granularity in CORRUPTIONS[kind].granularities]


def slow_by_image(combinations: list[Any]) -> list[Any]:
    """Mark as slow what trains a network for a perturbation per image; that for a class is tried always."""
    marks = [[pytest.mark.slow] * (words[:2] in (("up", "sample"), ("l2c", "sample"))) for words in combinations]
    return [pytest.param(*words, marks=mark) for words, mark in zip(combinations, marks, strict=True)]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "granularity", "norm"), slow_by_image(budgets()))
def test_every_kind_keeps_its_budget_and_its_input(order: Craft, kind: str, granularity: str, norm: str) -> None:
    epsilon = BUDGETS[norm]
    before = order.images.clone()
    delta = CORRUPTIONS[kind].perturb(again(order, norm=norm, epsilon=epsilon, granularity=granularity))
    assert delta.shape == order.images.shape
    assert not delta.requires_grad
    assert norms(delta, norm).max() <= epsilon * (1 + 1e-5)
    least = 0.1 if norm == "unbounded" else 0.5 * epsilon
    assert norms(delta, norm).max() > least, "a budget is there to be used"
    assert torch.equal(order.images, before)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("kind", "granularity"), slow_by_image(granularities()))
def test_every_kind_is_decided_by_its_generator(order: Craft, kind: str, granularity: str) -> None:
    if kind == "ops":
        order = replace(order, norm="l0")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = CORRUPTIONS[kind].perturb(again(order, granularity=granularity))
    assert torch.equal(torch.get_rng_state(), before), "and leaves torch's own alone"
    torch.manual_seed(2)
    assert torch.equal(first, CORRUPTIONS[kind].perturb(again(order, granularity=granularity)))
    other = replace(order, granularity=granularity, generator=torch.Generator().manual_seed(1))
    same = torch.equal(first, CORRUPTIONS[kind].perturb(other))
    assert same is (kind in ("ap", "ops")), "AP draws nothing, and OPS only where two choices are equally good"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS.names() if "class" in CORRUPTIONS[kind].granularities])
def test_class_wise_means_one_perturbation_per_class(order: Craft, kind: str) -> None:
    rows = per_class(CORRUPTIONS[kind].perturb(order), order.labels)
    distances = torch.cdist(rows.flatten(1), rows.flatten(1))
    assert distances[~torch.eye(K, dtype=torch.bool)].min() > 0.1


@pytest.mark.usefixtures("quick")
def test_the_source_network_is_asked_for_where_it_is_used_and_left_as_it_was(order: Craft, source: nn.Module) -> None:
    before = {name: value.clone() for name, value in source.state_dict().items()}
    asked: list[int] = []

    def ask() -> nn.Module:
        asked.append(1)
        return source

    without = [(kind, 0) for kind in CORRUPTIONS.names() if CORRUPTIONS[kind].uses != "trained network"]
    for kind, times in (*without, ("uhp", 1), ("uap", 1), ("ap", 1), ("aa", 1)):
        asked.clear()
        CORRUPTIONS[kind].perturb(again(order, source=ask))
        assert len(asked) == times
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())
    assert not source.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in source.parameters())


# --- URP -------------------------------------------------------------------------------------------------------------


def test_urp_has_norm_epsilon_exactly_under_l2_and_fills_the_cube_under_linf(order: Craft) -> None:
    rows = per_class(CORRUPTIONS["urp"].perturb(again(order, epsilon=0.7)), order.labels)
    torch.testing.assert_close(l2_norm(rows), torch.full((K,), 0.7), rtol=1e-6, atol=0)
    cube = per_class(CORRUPTIONS["urp"].perturb(again(order, norm="linf", epsilon=0.7)), order.labels)
    assert cube.abs().max() <= 0.7
    assert cube.std().item() == pytest.approx(0.7 / 3**0.5, rel=0.1)


# --- UP --------------------------------------------------------------------------------------------------------------


def loss_after(images: Tensor, labels: Tensor, steps: int) -> float:
    """Return the train loss of a new network, whose weights differ from those of the crafting network."""
    trained = build_model("small", K, 1, 8, [0.5], [0.25], seed=77)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(trained(images), labels).backward()
        optimizer.step()
    return F.cross_entropy(trained(images), labels).item()


@pytest.mark.parametrize("granularity", ["class", "sample"])
def test_up_makes_images_easy_to_fit(make_images: Callable[..., ImageSet], order: Craft, granularity: str) -> None:
    """On images of pure noise only the perturbation tells the classes apart."""
    noise = make_images(60, seed=1, signal=0.0).images.float() / 255
    delta = CORRUPTIONS["up"].perturb(again(order, images=noise, norm="linf", epsilon=0.1, granularity=granularity))
    clean = loss_after(noise, order.labels, 15)
    poisoned = loss_after((noise + delta).clamp(0, 1), order.labels, 15)
    assert poisoned < 0.5 * clean


@pytest.mark.slow
def test_up_stops_at_one_percent_of_train_error(order: Craft, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are learnt at once need few rounds; with a threshold that is never reached, all rounds are made."""
    told: list[int] = []
    watched = replace(order, progress=lambda what, done, total: told.append(done))
    CORRUPTIONS["up"].perturb(again(watched, options=CORRUPTIONS["up"].Options().own()))
    assert len(told) < 10
    monkeypatch.setattr(up, "STOP_ERROR", -1.0)
    told.clear()
    CORRUPTIONS["up"].perturb(again(watched, options={"steps": 12}))
    assert told == list(range(1, 13))


# --- UHP and UAP -----------------------------------------------------------------------------------------------------


def test_uhp_makes_the_source_network_say_the_class(order: Craft, source: nn.Module) -> None:
    vectors = per_class(
        CORRUPTIONS["uhp"].perturb(again(order, epsilon=2.5, options=CORRUPTIONS["uhp"].Options().own())), order.labels
    )
    for k in range(K):
        answers = source((order.images + vectors[k]).clamp(0, 1)).argmax(1)
        assert (answers == k).float().mean() > 0.9, "whatever the image shows"


def test_uap_gives_each_class_the_next_one_s_vector(order: Craft) -> None:
    uhp = per_class(CORRUPTIONS["uhp"].perturb(again(order)), order.labels)
    uap = per_class(CORRUPTIONS["uap"].perturb(again(order)), order.labels)
    assert torch.equal(uap, uhp.roll(-1, dims=0))


def test_a_step_descends_by_the_mean_over_each_class_and_leaves_absent_ones(source: nn.Module, order: Craft) -> None:
    from erat.attacks.pgd import Budget

    delta = 0.01 * torch.randn(K, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    budget = Budget.of("linf", 0.1, delta)
    images, labels = order.images[:9], torch.tensor([0, 0, 0, 0, 0, 1, 1, 3, 3])
    moved = descend(source, images, labels, delta, budget, budget.epsilon / 10)
    assert torch.equal(moved[2], delta[2])
    for k in (0, 1, 3):
        mine = labels == k
        point = delta[k].clone().requires_grad_(True)
        loss = F.cross_entropy(source((images[mine] + point).clamp(0, 1)), labels[mine])
        (grad,) = torch.autograd.grad(loss, point)
        torch.testing.assert_close(moved[k], delta[k] - 0.01 * grad.sign())
    under_l2 = descend(source, images, labels, delta, Budget.of("l2", 1.0, delta), torch.full((K,), 0.2))
    torch.testing.assert_close(l2_norm(under_l2 - delta)[[0, 1, 3]], torch.full((3,), 0.2))


# --- 8 bit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 8 / 255, 0.5 / 255, 0.9 / 255, 1 / 255, 0.03, 0.3, 0.0])
def test_rounding_never_exceeds_an_linf_budget(epsilon: float) -> None:
    """A budget of 0.1 is 25.5 grey levels: rounding to the nearest would give 26, which is too many."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (50, 3, 8, 8), generator=draw).to(torch.uint8)
    delta = (2 * torch.rand(clean.shape, generator=draw) - 1).sign() * epsilon
    moved = quantize(clean, delta, "linf", epsilon)
    assert moved.dtype == torch.uint8
    reached = (moved.int() - clean.int()).abs().max().item()
    assert reached <= epsilon * 255 + 1e-6
    assert reached == int(epsilon * 255 + 1e-6), "and uses what fits"


@pytest.mark.parametrize("epsilon", [0.02, 0.5, 0.77, 3.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_rounding_never_exceeds_an_l2_budget(epsilon: float, channels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (200, channels, 16, 16), generator=draw).to(torch.uint8)
    direction = torch.randn(clean.shape, generator=draw)
    moved = quantize(clean, epsilon * direction / l2_norm(direction).view(-1, 1, 1, 1), "l2", epsilon)
    reached = (moved.double() - clean.double()).div(255).flatten(1).norm(dim=1)
    assert reached.max() <= epsilon + 1e-6
    if epsilon >= 0.5:
        assert reached.max() > 0.9 * epsilon


def test_rounding_is_to_nearest_and_clips() -> None:
    clean = torch.tensor([100, 100, 100, 250, 3], dtype=torch.uint8).view(1, 1, 1, 5)
    delta = torch.tensor([1.6, -1.6, 0.4, 9.0, -9.0]).view(1, 1, 1, 5) / 255
    assert quantize(clean, delta, "linf", 0.1).flatten().tolist() == [102, 98, 100, 255, 0]


def test_truncation_is_the_last_resort() -> None:
    """Scaling does not help 0.9 grey levels under l_inf: 0.99 ** 50 of it still rounds to 1."""
    clean = torch.full((1, 1, 1, 2), 100, dtype=torch.uint8)
    delta = torch.tensor([0.9, -0.9]).view(1, 1, 1, 2) / 255
    assert torch.equal(quantize(clean, delta, "linf", 0.9 / 255), clean)


def test_only_images_over_their_budget_are_shrunk() -> None:
    clean = torch.full((2, 1, 1, 2), 100, dtype=torch.uint8)
    delta = torch.tensor([[25.5, 10.0], [25.4, 10.4]]).view(2, 1, 1, 2) / 255
    moved = quantize(clean, delta, "linf", 0.1).flatten(1).tolist()
    assert moved == [[125, 110], [125, 110]]


@pytest.mark.parametrize("norm", ["l0", "unbounded"])
def test_rounding_under_l0_or_no_bound_is_to_nearest_and_changes_no_further_pixel(norm: str) -> None:
    clean = torch.tensor([100, 100, 100, 250], dtype=torch.uint8).view(1, 1, 1, 4)
    delta = torch.tensor([155.4, -99.6, 0.0, 9.0]).view(1, 1, 1, 4) / 255
    assert quantize(clean, delta, norm, 3.0).flatten().tolist() == [255, 0, 100, 255]


def test_norms_of_grey_level_differences() -> None:
    difference = torch.tensor([[3, -4], [0, 255]], dtype=torch.int16).view(2, 1, 1, 2)
    torch.testing.assert_close(norms_of(difference, "l2"), torch.tensor([5 / 255, 1.0]))
    torch.testing.assert_close(norms_of(difference, "linf"), torch.tensor([4 / 255, 1.0]))
    colour = torch.tensor([[[0, 3], [0, 0]], [[1, -4], [0, 0]]], dtype=torch.int16).view(1, 2, 2, 2)
    assert norms_of(colour, "l0").tolist() == [2.0], "pixels, of which any channel differs"
    torch.testing.assert_close(norms_of(difference, "unbounded"), norms_of(difference, "l2"))
