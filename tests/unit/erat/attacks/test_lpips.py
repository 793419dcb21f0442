"""Tests the distance of a network's own feature maps: against a calculation by hand, and what it asks of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erat.attacks.lpips import feature_maps, has_feature_maps, lpips_distance, lpips_project, lpips_step
from erat.data.random import BatchRandom
from erat.data.types import ImageSet
from erat.defenses.base import Task
from erat.defenses.erat import ERATOptions
from erat.defenses.perturbation import Perturber
from erat.errors import UserError
from erat.models import build_model
from erat.registry import BACKBONES

SIDE = 16


@pytest.fixture
def network() -> nn.Module:
    return build_model("small", 4, 1, SIDE, [0.5], [0.25], seed=0)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def far(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(2)) * 0.3


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("small", [16, 8, 4]), ("resnet18", [16, 8, 4, 2]), ("preact_resnet18", [16, 8, 4, 2]), ("vgg11", [16, 8, 4, 2])],
)
def test_the_maps_are_those_before_each_reduction(name: str, sizes: list[int]) -> None:
    made = build_model(name, 4, 3, SIDE, [0.5] * 3, [0.25] * 3, seed=0)
    maps = feature_maps(made, torch.rand(2, 3, SIDE, SIDE))
    assert sorted((each.shape[-1] for each in maps), reverse=True) == sizes
    assert has_feature_maps(made, (3, SIDE, SIDE))


def test_the_distance_is_that_of_a_calculation_by_hand(network: nn.Module, images: Tensor) -> None:
    """From the outputs of the ReLUs before the three reductions, position by position, in numpy."""
    stack = network.eval().network
    assert isinstance(stack, nn.Sequential)
    layers = [module for module in stack if not isinstance(module, nn.Flatten)]
    assert [type(layers[at]) for at in (2, 8, 11)] == [nn.ReLU] * 3
    moved = images + 0.3 * far(images)
    total = np.zeros(len(images))
    with torch.no_grad():
        for at in (2, 8, 11):
            one, other = (
                nn.Sequential(*layers[: at + 1])((each - 0.5) / 0.25).double().numpy() for each in (images, moved)
            )
            for row in range(len(images)):
                for y in range(one.shape[2]):
                    for x in range(one.shape[3]):
                        pair = [part[row, :, y, x] for part in (one, other)]
                        unit = [vector / max(np.linalg.norm(vector), 1e-12) for vector in pair]
                        total[row] += ((unit[0] - unit[1]) ** 2).sum() / (one.shape[2] * one.shape[3])
    found = lpips_distance(network, moved - images, images).numpy()
    np.testing.assert_allclose(found, np.sqrt(total), rtol=1e-4)


def test_the_projection_is_the_largest_scale_of_those_tried(network: nn.Module, images: Tensor) -> None:
    cut = far(images).clamp(-images, 1 - images)
    whole = lpips_distance(network, cut, images)
    epsilon = 0.5 * float(whole.min())
    inside = lpips_project(network, far(images), images, epsilon)
    size = lpips_distance(network, inside, images)
    assert (size <= epsilon).all()
    scale = (inside.flatten(1) * cut.flatten(1)).sum(1) / cut.flatten(1).square().sum(1)
    torch.testing.assert_close(inside, scale.view(-1, 1, 1, 1) * cut)
    beyond = lpips_distance(network, (scale + 2 / 1024).view(-1, 1, 1, 1) * cut, images)
    assert (beyond > epsilon).all()


def test_a_step_has_the_length_of_the_distance_it_covers(network: nn.Module, images: Tensor) -> None:
    step = lpips_step(network, far(images), images)
    length = step.flatten(1).norm(dim=1)
    covered = lpips_distance(network, step * (0.1 / length).view(-1, 1, 1, 1), images)
    torch.testing.assert_close(covered / (0.1 / length), torch.ones(6), rtol=2e-3, atol=0)
    white = torch.ones_like(images)
    assert lpips_step(network, torch.ones_like(images), white).abs().max() == 0, "white cannot rise"
    assert lpips_step(network, torch.zeros_like(images), images).abs().max() == 0


def test_looking_leaves_a_network_as_it_was(network: nn.Module, images: Tensor) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lpips_project(network, far(images), images, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def perturber(name: str, side: int, **options: Any) -> Perturber:
    budgets: dict[str, Any] = {"epsilon_inf": 0.1, "epsilon_2": 1.0, "epsilon_lpips": 0.2}
    chosen = ERATOptions(policy="cifar10", **budgets | options)
    made = lambda seed: build_model(name, 4, 1, side, [0.5], [0.25], seed=seed)  # noqa: E731
    return Perturber(chosen, Task(6, 4, False, made, (1, side, side), name))


def test_a_network_without_feature_maps_is_refused_in_one_line(register: Callable[..., None]) -> None:
    register(
        BACKBONES, "flat", lambda classes, channels, side: nn.Sequential(nn.Flatten(), nn.Linear(side**2, classes))
    )
    said = r"^defense\.norms with lpips needs a network with feature maps of several sizes, got flat$"
    with pytest.raises(UserError, match=said):
        perturber("flat", 8, norms="linf,lpips")
    perturber("flat", 8, norms="both")


@pytest.mark.parametrize("options", [{}, {"random_start": True}, {"pgd_precision": "bf16"}])
def test_a_defense_attacks_itself_within_its_budget(
    network: nn.Module, images: Tensor, options: dict[str, Any]
) -> None:
    labels = torch.arange(6) % 4
    random = BatchRandom(torch.Generator().manual_seed(0))
    moved = perturber("small", SIDE, norms="lpips", **options)(network, images, labels, random)
    size = lpips_distance(network, moved - images, images)
    assert size.max() <= 0.2 * (1 + 1e-5)
    assert size.min() > 0.05
    network.eval()
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(network(each), labels).item() for each in (images, moved)]
    assert losses[1] > losses[0]


def test_images_of_every_model_in_one_run(network: nn.Module, make_images: Callable[..., ImageSet]) -> None:
    several = make_images(40, seed=1, size=SIDE).images.float() / 255
    made, random = (
        perturber("small", SIDE, norms="linf,lpips", epsilon_inf=0.03),
        BatchRandom(torch.Generator().manual_seed(0)),
    )
    moved = made(network, several, torch.arange(40) % 4, random)
    linf = (moved - several).abs().flatten(1).amax(1) <= 0.03 + 1e-6
    near = lpips_distance(network, moved - several, several) <= 0.2 * (1 + 1e-5)
    assert (linf | near).all()
    assert (near & ~linf).sum() > 5
    assert (linf & ~near).sum() > 5
