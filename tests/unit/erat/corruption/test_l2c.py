"""Tests L2C: its gradient against two others, its one step, the choice of a generator, and held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from erat.attacks.freezing import frozen
from erat.attacks.norms import l2_norm
from erat.corruption import l2c
from erat.corruption.base import Craft
from erat.corruption.l2c import (
    HELD_OUT,
    L2C,
    RATE,
    _confuse,
    _Confusion,
    _without_running_statistics,
    directional_derivative,
)
from erat.data.types import ImageSet
from erat.models.small import small
from erat.models.unet import UNet

Weights = list[Tensor]
BRIEF = L2C.Options(steps=3, width=4, lr=1e-2).own()


def again(order: Craft, **changes: Any) -> Craft:
    """Return the same order with its random numbers restarted."""
    return replace(order, norm="linf", epsilon=0.1, generator=torch.Generator().manual_seed(0), **changes)


@pytest.fixture
def victim() -> nn.Module:
    return _without_running_statistics(seeded(partial(small, 4, 1, 8)))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return build()


def weights_of(network: nn.Module) -> Weights:
    return [parameter.detach().clone() for parameter in network.parameters()]


def loss(network: nn.Module, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    names = [name for name, _ in network.named_parameters()]
    logits: Tensor = functional_call(network, dict(zip(names, weights, strict=True)), (images,))
    return F.cross_entropy(logits, labels)


def gradient(network: nn.Module, weights: Weights, images: Tensor, labels: Tensor, **options: Any) -> Weights:
    leaves = [weight.requires_grad_(True) for weight in weights]
    return list(torch.autograd.grad(loss(network, leaves, images, labels), leaves, **options))


# --- the directional derivative --------------------------------------------------------------------------------------


def setting(victim: nn.Module, order: Craft, dtype: torch.dtype) -> tuple[nn.Module, Weights, Weights, Tensor, Tensor]:
    """Return (network, weights, a direction in their space, images, labels) in one number format."""
    network = victim.to(dtype)
    draw = torch.Generator().manual_seed(3)
    direction = [torch.randn(weight.shape, generator=draw).to(dtype) for weight in network.parameters()]
    return network, weights_of(network), direction, order.images[:24].to(dtype), order.labels[:24]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_it_is_what_a_second_backward_pass_gives(
    victim: nn.Module, order: Craft, dtype: torch.dtype, tolerance: float
) -> None:
    """Both the number and its gradient with respect to the images agree."""
    network, weights, direction, images, labels = setting(victim, order, dtype)
    images.requires_grad_(True)
    grads = gradient(network, weights_of(network), images, labels, create_graph=True)
    expected = torch.stack([(d * grad).sum() for d, grad in zip(direction, grads, strict=True)]).sum()
    got = directional_derivative(network, weights, direction, images, labels)
    assert abs(got / expected - 1) < tolerance
    (by_images,) = torch.autograd.grad(got, images)
    (expected_by_images,) = torch.autograd.grad(expected, images)
    assert (by_images - expected_by_images).norm() < tolerance * expected_by_images.norm()


def test_it_is_the_limit_of_central_differences(victim: nn.Module, order: Craft) -> None:
    """The loss and its gradient with respect to the images agree.

    The differences are small enough that no ReLU changes sides.
    """
    network, weights, direction, images, labels = setting(victim, order, torch.float64)
    images.requires_grad_(True)
    got = directional_derivative(network, weights, direction, images, labels)
    (by_images,) = torch.autograd.grad(got, images)
    distance, at = 1e-7, []
    for sign in (1, -1):
        moved = [weight + sign * distance * d for weight, d in zip(weights, direction, strict=True)]
        at.append(loss(network, moved, images, labels))
    difference = (at[0] - at[1]) / (2 * distance)
    (difference_by_images,) = torch.autograd.grad(difference, images)
    assert abs(difference / got - 1) < 1e-6
    assert (difference_by_images - by_images).norm() < 1e-6 * by_images.norm()


def test_it_leaves_network_weights_and_direction_as_they_were(victim: nn.Module, order: Craft) -> None:
    network, weights, direction, images, labels = setting(victim, order, torch.float32)
    before = deepcopy([weights, direction, list(network.state_dict().values())])
    directional_derivative(network, weights, direction, images, labels)
    for tensors, copies in zip([weights, direction, list(network.state_dict().values())], before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


# --- one step of the generator ---------------------------------------------------------------------------------------


def fooled(victim: nn.Module, weights: Weights, images: Tensor, labels: Tensor, generator: nn.Module) -> float:
    """Return CE(theta'; x), where theta' is the victim after one step on x + delta."""
    with torch.no_grad():
        moved = (images + 0.1 * generator(images)).clamp(0, 1)
    step = gradient(victim, [weight.clone() for weight in weights], moved, labels)
    ahead = [weight - RATE * grad for weight, grad in zip(weights, step, strict=True)]
    return loss(victim, ahead, images, labels).item()


def test_a_step_of_the_generator_leaves_the_victim_worse(victim: nn.Module, order: Craft) -> None:
    """Twelve victims and generators are tested, because one step of one generator may overshoot."""
    draw, gains = torch.Generator().manual_seed(0), []
    images, labels = order.images, order.labels
    for seed in range(12):
        weights = [weight + 0.1 * torch.randn(weight.shape, generator=draw) for weight in weights_of(victim)]
        generator = seeded(partial(UNet, 1, 4), seed)
        before = fooled(victim, weights, images, labels, generator)
        moved = (images + 0.1 * generator(images)).clamp(0, 1)
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
        _confuse(victim, weights, images, moved, labels, generator, optimizer)
        gains.append(fooled(victim, weights, images, labels, generator) - before)
    assert sum(gain > 0 for gain in gains) >= 10
    assert sum(gains) > 0


def test_the_step_follows_the_gradient_of_what_it_raises(victim: nn.Module, order: Craft) -> None:
    """The reference differentiates through the victim's step in the usual way."""
    images, labels, weights = order.images[:24], order.labels[:24], weights_of(victim)
    generator = seeded(partial(UNet, 1, 4))
    parameters = list(generator.parameters())
    moved = (images + 0.1 * generator(images)).clamp(0, 1)
    step = gradient(victim, weights_of(victim), moved, labels, create_graph=True)
    ahead = [weight - RATE * grad for weight, grad in zip(weights, step, strict=True)]
    expected = torch.autograd.grad(-loss(victim, ahead, images, labels), parameters, retain_graph=True)
    _confuse(victim, weights, images, moved, labels, generator, torch.optim.SGD(parameters, lr=0.0))
    got, wanted = (torch.cat([grad.flatten() for grad in grads]) for grads in ([p.grad for p in parameters], expected))
    assert (got - wanted).norm() < 1e-4 * wanted.norm()


def test_a_victim_learns_from_the_generator_that_the_trial_began_with(
    make_images: Callable[..., ImageSet], order: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy that learns is used only to look ahead.

    Per batch the victim sees: its own x + delta, then x, then x + delta of the plain step.
    """
    seen: list[Tensor] = []
    real = l2c._gradient
    monkeypatch.setattr(
        l2c, "_gradient", lambda n, w, images, labels: (seen.append(images), real(n, w, images, labels))[1]
    )
    many = make_images(160, seed=1)
    crafted = again(order, images=many.images.float() / 255, labels=many.labels, options=BRIEF)
    confusion = _Confusion(crafted)
    learning, began = deepcopy(confusion.generator), deepcopy(confusion.generator)
    confusion._trial(learning, torch.optim.Adam(learning.parameters(), lr=1e-2))
    assert [len(images) for images in seen] == [64] * 6, "of 144 images, 16 are too few for a batch"
    for ahead, clean, plain in (seen[:3], seen[3:]):
        with torch.no_grad():
            expected = (clean + 0.1 * began(clean)).clamp(0, 1)
        torch.testing.assert_close(plain, expected)
        assert torch.allclose(ahead, expected, atol=1e-6) is (ahead is seen[0]), "they part with the first step"


# --- the choice of the generator -------------------------------------------------------------------------------------


class Scripted:
    """Real trials, except for the accuracies that they report; each also keeps the generator that it judged."""

    def __init__(self, accuracies: list[float]) -> None:
        self.accuracies: Iterator[float] = iter(accuracies)
        self.judged: list[nn.Module] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = _Confusion._trial

        def trial(confusion: _Confusion, *arguments: Any) -> float:
            real(confusion, *arguments)
            self.judged.append(deepcopy(confusion.generator))
            return next(self.accuracies)

        monkeypatch.setattr(_Confusion, "_trial", trial)


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [([0.5, 0.2, 0.7, 0.9], 1), ([0.1, 0.2, 0.7, 0.9], 0), ([0.5, 0.4, 0.3, 0.2], 3), ([0.5, 0.2, 0.2, 0.4], 1)],
)
def test_the_generator_whose_victim_knew_least_is_chosen(
    order: Craft, monkeypatch: pytest.MonkeyPatch, accuracies: list[float], best: int
) -> None:
    """Four victims judge the first generator and those of three trials; of equally good ones the first is chosen."""
    script = Scripted(accuracies)
    script.install(monkeypatch)
    delta = L2C.perturb(again(order, options=BRIEF))
    perturbations = []
    for generator in script.judged:
        with frozen(l2c._settled(generator, order)), torch.no_grad():
            perturbations.append(0.1 * generator(order.images))
    # Close but not equal: the statistics were computed over the same images in another order.
    assert [torch.allclose(delta, other, atol=1e-6) for other in perturbations] == [i == best for i in range(4)]


def test_running_statistics_are_those_of_all_images(order: Craft) -> None:
    """After a few trials they are far from those of the batches with which the generator learnt."""
    generator = seeded(partial(UNet, 1, 4))
    with torch.no_grad():
        by_batch = generator(order.images)  # 60 images: one batch
        as_left = deepcopy(generator).eval()(order.images)
        settled = l2c._settled(generator, order).eval()(order.images)
    assert (as_left - by_batch).abs().max() > 0.2
    # Not closer, because a running variance is that of the sample, over n - 1.
    torch.testing.assert_close(settled, by_batch, atol=0.08, rtol=0)


def test_the_accuracy_is_that_on_clean_held_out_images(order: Craft, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = l2c._logits

    def recorded(network: nn.Module, weights: Weights, images: Tensor) -> Tensor:
        logits = real(network, weights, images)
        seen.append((images, logits))
        return logits

    monkeypatch.setattr(l2c, "_logits", recorded)
    told: list[str] = []
    L2C.perturb(again(order, progress=lambda what, done, total: told.append(what), options=BRIEF | {"steps": 1}))
    held_out = held_out_of(order)
    judged = [logits for images, logits in seen if torch.equal(images, order.images[held_out])]
    accuracies = [(logits.argmax(1) == order.labels[held_out]).float().mean().item() for logits in judged]
    assert len(accuracies) == 2
    assert told == [f"the best leaves a victim {accuracies[0]:.1%} right; trial"]


def test_held_out_images_are_not_trained_on(order: Craft, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever these images show and whatever their labels are, the generators are the same."""
    generators = []
    for images, labels in ((order.images, order.labels), altered(order, held_out_of(order))):
        with monkeypatch.context() as patch:
            script = Scripted([0.4, 0.3, 0.2, 0.1])
            script.install(patch)
            L2C.perturb(again(order, images=images, labels=labels, options=BRIEF))
        generators.append(script.judged[-1].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in generators), strict=True))


def test_every_other_image_is_trained_on(order: Craft, monkeypatch: pytest.MonkeyPatch) -> None:
    generators, held_out = [], held_out_of(order)
    trained_on = torch.tensor([index for index in range(60) if index not in held_out][:1])
    for images, labels in ((order.images, order.labels), altered(order, trained_on)):
        with monkeypatch.context() as patch:
            script = Scripted([0.4, 0.3, 0.2, 0.1])
            script.install(patch)
            L2C.perturb(again(order, images=images, labels=labels, options=BRIEF))
        generators.append(script.judged[-1].state_dict())
    assert not torch.equal(generators[0]["last.weight"], generators[1]["last.weight"])


def held_out_of(order: Craft) -> Tensor:
    """Return the images that judge: a tenth, drawn by the order's own generator."""
    chosen = _Confusion(again(order, options=BRIEF)).val
    assert len(chosen) == round(HELD_OUT * 60)
    return chosen


def altered(order: Craft, which: Tensor) -> tuple[Tensor, Tensor]:
    images, labels = order.images.clone(), order.labels.clone()
    images[which] = 1 - images[which]
    labels[which] = (labels[which] + 1) % 4
    return images, labels


# --- the whole -------------------------------------------------------------------------------------------------------


def test_torch_s_own_random_numbers_neither_matter_nor_move(order: Craft) -> None:
    crafted = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        crafted.append(L2C.perturb(again(order, options=BRIEF)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*crafted)


def test_under_l2_each_image_moves_by_all_of_its_budget(order: Craft) -> None:
    delta = L2C.perturb(replace(again(order, options=BRIEF), norm="l2", epsilon=0.7))
    torch.testing.assert_close(l2_norm(delta), torch.full((60,), 0.7), rtol=1e-4, atol=0)


def test_it_is_one_function_of_the_image(order: Craft) -> None:
    """Equal images have equal perturbations, whatever their labels and neighbours are."""
    images = order.images.clone()
    images[50] = images[1]
    delta = L2C.perturb(again(order, images=images, options=BRIEF))
    torch.testing.assert_close(delta[50], delta[1])
    assert (delta[2] - delta[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("channels", "size"), [(3, 14), (1, 7)])
def test_other_shapes(order: Craft, channels: int, size: int) -> None:
    images = F.interpolate(order.images, size).expand(-1, channels, -1, -1).contiguous()
    delta = L2C.perturb(again(order, images=images, options=BRIEF | {"steps": 1}))
    assert delta.shape == (60, channels, size, size)
    assert 0 < delta.abs().max() <= 0.1


@pytest.mark.slow
def test_its_authors_generator_learns_against_a_deep_victim_of_several_passes(
    order: Craft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG-11 has maximum pooling and biases, through which the derivative of a derivative must go as well."""
    lengths: list[int] = []
    batches = _Confusion._batches
    monkeypatch.setattr(
        _Confusion, "_batches", lambda self: iter((found := list(batches(self)), lengths.append(len(found)))[0])
    )
    options = {"steps": 1, "width": 4, "lr": 1e-3, "unet": "official", "victim": "vgg11", "victim_epochs": 2}
    delta = L2C.perturb(again(order, options=options))
    assert delta.shape == order.images.shape
    assert 0 < float(delta.abs().max()) <= order.epsilon + 1e-6
    single = len(list(batches(_Confusion(again(order, options=options | {"victim_epochs": 1})))))
    assert lengths == [2 * single, 2 * single], "in the trial, and for the victim that judges the last generator"
