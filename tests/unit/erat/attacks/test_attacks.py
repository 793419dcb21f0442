"""Tests the PGD loop: against two references, per image, inside its budget, and without changing the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.norms import l2_norm, l2_project, l2_step, linf_project, linf_step
from erat.attacks.pgd import Budget, pgd
from erat.data.random import BatchRandom
from erat.losses import perturbation_objective

STEPS = 7
EPSILON = {"linf": 8 / 255, "l2": 0.5}


@pytest.fixture
def network() -> nn.Module:
    """Return a network with a convolution, batch norm and dropout, which are all that eval mode changes."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        layers: Any = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 8 * 8, 10),
        )
        layers[1].running_mean.uniform_(-0.2, 0.2)
        layers[1].running_var.uniform_(0.5, 2.0)
    network: nn.Module = layers.eval()
    return network


@pytest.fixture
def images() -> Tensor:
    """Make images that reach both ends of [0, 1].

    There are fifteen, which is not a power of 2, so that dividing a loss by their number rounds.
    """
    return (1.4 * torch.rand(15, 3, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.2).clamp(0, 1)


LABELS = torch.arange(15) % 10


def label_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS, reduction="none")


def attack(network: nn.Module, images: Tensor, norm: str, epsilon: float | None = None, steps: int = STEPS) -> Tensor:
    """Attack with steps of a fifth of the budget.

    The step is rounded to float32 once, as it is where one number serves all images.
    """
    size = EPSILON[norm] if epsilon is None else epsilon
    step = torch.full((len(images),), size / 5)
    return pgd(network, images, label_loss, Budget.of(norm, size, images), steps=steps, step_size=step)


def reference_linf(network: nn.Module, images: Tensor, epsilon: float, step: float) -> Tensor:
    """Run Madry et al.'s attack, written for reading: mean loss over the batch, one norm, no options."""
    moved = images.clone()
    for _ in range(STEPS):
        moved.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(network(moved), LABELS), moved)
        moved = moved.detach() + step * grad.sign()
        moved = (images + (moved - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    return moved


def reference_l2(network: nn.Module, images: Tensor, epsilon: float, step: float) -> Tensor:
    """Run the same attack under l_2, image by image."""
    rows = []
    for image, label in zip(images, LABELS, strict=True):
        moved = image
        for _ in range(STEPS):
            point = moved.clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(network(point[None]), label[None]), point)
            delta = moved + step * grad / grad.norm() - image
            moved = (image + delta * min(1.0, epsilon / float(delta.norm()))).clamp(0, 1)
        rows.append(moved)
    return torch.stack(rows)


# --- against references ----------------------------------------------------------------------------------------------


def test_linf_is_the_reference_bit_for_bit(network: nn.Module, images: Tensor) -> None:
    expected = reference_linf(network, images, EPSILON["linf"], EPSILON["linf"] / 5)
    assert torch.equal(attack(network, images, "linf"), expected)


def test_l2_is_the_reference(network: nn.Module, images: Tensor) -> None:
    expected = reference_l2(network, images, EPSILON["l2"], EPSILON["l2"] / 5)
    torch.testing.assert_close(attack(network, images, "l2"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "tolerance"), [("linf", 0.0), ("l2", 1e-6)])
def test_torchattacks_agrees(network: nn.Module, images: Tensor, norm: str, tolerance: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    theirs = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    attacker = theirs(network, eps=EPSILON[norm], alpha=EPSILON[norm] / 5, steps=STEPS, random_start=False)
    difference = (attacker(images, LABELS) - attack(network, images, norm)).abs().max().item()
    print(f"{norm}: largest difference from torchattacks {torchattacks.__version__}: {difference:.3g}")
    assert difference <= tolerance


def test_the_literal_l2_of_the_paper_is_linf_with_the_l2_budget(network: nn.Module, images: Tensor) -> None:
    """It is not the default because sign steps and clipping to 0.5 allow a norm of 0.5 sqrt(3 * 16 * 16) = 13.9."""
    literal = reference_linf(network, images, EPSILON["l2"], EPSILON["l2"] / 5)
    assert l2_norm(literal - images).min() > 5


# --- norms -----------------------------------------------------------------------------------------------------------


def test_steps_have_unit_length_and_point_uphill() -> None:
    grad = torch.tensor([3.0, 0.0, -4.0]).view(1, 1, 1, 3)
    assert linf_step(grad).flatten().tolist() == [1.0, 0.0, -1.0]
    torch.testing.assert_close(l2_step(grad).flatten(), torch.tensor([0.6, 0.0, -0.8]))
    assert l2_step(torch.zeros(1, 1, 1, 3)).abs().max() == 0, "no gradient, no step, no NaN"


def test_projections_are_the_nearest_points_of_the_ball() -> None:
    delta = torch.tensor([3.0, 0.1, -4.0]).view(1, 1, 1, 3)
    assert linf_project(delta, torch.tensor([0.5])).flatten().tolist() == pytest.approx([0.5, 0.1, -0.5])
    shrunk = l2_project(delta, torch.tensor([0.5])).flatten()
    torch.testing.assert_close(shrunk, delta.flatten() * 0.5 / math.sqrt(9 + 0.01 + 16))
    assert torch.equal(l2_project(delta, torch.tensor([6.0])), delta), "inside: left as it is, bit for bit"
    assert l2_project(torch.zeros(1, 1, 1, 3), torch.tensor([0.0])).abs().max() == 0


# --- what holds of every run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", EPSILON)
def test_mixed_norms_are_each_image_s_own_run(network: nn.Module, images: Tensor, norm: str) -> None:
    network, images = network.double(), images.double()
    linf = torch.tensor([True, False, False] * 5)
    epsilon = torch.where(linf, EPSILON["linf"], EPSILON["l2"])
    mixed = pgd(network, images, label_loss, Budget(epsilon, linf), steps=STEPS, step_size=epsilon / 5)
    mine = linf if norm == "linf" else ~linf
    torch.testing.assert_close(
        mixed[mine], attack(network, images, norm)[mine], rtol=0, atol=1e-8
    )  # epsilon is float32
    assert not torch.allclose(mixed[~mine], attack(network, images, norm)[~mine], atol=1e-3)


def test_an_image_does_not_depend_on_its_neighbours(network: nn.Module, images: Tensor) -> None:
    everyone = attack(network, images, "l2")
    budget = Budget.of("l2", EPSILON["l2"], images[:1])
    loss = partial(F.cross_entropy, target=LABELS[:1], reduction="none")
    alone = pgd(network, images[:1], loss, budget, steps=STEPS, step_size=budget.epsilon / 5)
    torch.testing.assert_close(everyone[:1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("epsilon", [1 / 255, 0.3, 5.0])
def test_the_result_is_in_the_ball_and_in_range(network: nn.Module, images: Tensor, norm: str, epsilon: float) -> None:
    moved = attack(network, images, norm, epsilon)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad
    delta = moved - images
    size = l2_norm(delta) if norm == "l2" else delta.abs().flatten(1).amax(1)
    assert size.max() <= epsilon * (1 + 1e-5)
    assert size.max() > 0.5 * min(epsilon, 1.0)


@pytest.mark.parametrize("norm", EPSILON)
def test_it_raises_the_loss(network: nn.Module, images: Tensor, norm: str) -> None:
    moved = attack(network, images, norm)
    assert (label_loss(network(moved)) > label_loss(network(images))).all()


@pytest.mark.parametrize("norm", EPSILON)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_budget_of_zero_leaves_the_clean_image(network: nn.Module, images: Tensor, norm: str, steps: int) -> None:
    assert torch.equal(attack(network, images, norm, 0.0, steps), images)


def test_steps_forward_passes_and_the_first_sees_the_clean_image(network: nn.Module, images: Tensor) -> None:
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    attack(network, images, "linf")
    assert len(seen) == STEPS
    assert torch.equal(seen[0], images)


def test_the_input_is_neither_changed_nor_tracked(network: nn.Module, images: Tensor) -> None:
    before = images.clone()
    tracked = images.clone().requires_grad_(True)
    assert not attack(network, tracked, "l2").requires_grad
    assert torch.equal(tracked.detach(), before)


def test_no_weight_gets_a_gradient(network: nn.Module, images: Tensor) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    with frozen(network):
        attack(network, images, "linf")
    attack(network, images, "linf")
    assert all(bool((parameter.grad == 1).all()) for parameter in network.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in network.parameters())


# --- random starts ---------------------------------------------------------------------------------------------------


def test_random_starts_fill_the_ball(images: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    many = images[:1].expand(4000, -1, -1, -1)
    uniform = Budget.of("linf", 0.1, many).draw(many, BatchRandom(generator))
    assert uniform.abs().max() <= 0.1
    assert uniform.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)
    radii = l2_norm(Budget.of("l2", 0.5, many).draw(many, BatchRandom(generator)))
    assert radii.max() <= 0.5 * (1 + 1e-5)
    assert radii.mean().item() == pytest.approx(0.25, rel=0.05)
    assert radii.std().item() == pytest.approx(0.5 / math.sqrt(12), rel=0.05), "the radius is uniform"


def test_a_start_outside_the_ball_is_projected(network: nn.Module, images: Tensor) -> None:
    budget = Budget.of("l2", 0.5, images)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    outside = torch.ones_like(images)
    pgd(network, images, label_loss, budget, steps=1, step_size=budget.epsilon / 5, start_NCHW=outside)
    torch.testing.assert_close(seen[0], (images + 0.5 / l2_norm(outside)[0]).clamp(0, 1))


# --- frozen ----------------------------------------------------------------------------------------------------------


def flags(network: nn.Module) -> list[bool]:
    return [m.training for m in network.modules()] + [p.requires_grad for p in network.parameters()]


def unlike(network: Any) -> Any:
    """Set flags that differ from module to module and from weight to weight."""
    network.train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    return network


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_every_flag(network: nn.Module, fails: bool) -> None:
    before = flags(unlike(network))
    assert True in before
    assert False in before

    def inside(run: Callable[[], None]) -> None:
        with frozen(network) as same:
            assert same is network
            assert not any(flags(network))
            run()

    if fails:
        with pytest.raises(ZeroDivisionError):
            inside(lambda: print(1 // 0))
    else:
        inside(lambda: None)
    assert flags(network) == before


def test_frozen_inside_frozen(network: nn.Module) -> None:
    before = flags(unlike(network))
    with frozen(network):
        with frozen(network):
            pass
        assert not any(flags(network))
    assert flags(network) == before


# --- the objective ---------------------------------------------------------------------------------------------------


def test_objective_is_the_distance_moved_plus_the_cross_entropy() -> None:
    """Eq. 6: p goes from (0.5, 0.5) to (0.8, 0.2): 2 * 0.3^2 = 0.18; label 1: -ln 0.2."""
    logits = torch.tensor([[0.8, 0.2]]).log()
    got = perturbation_objective(logits, torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
    torch.testing.assert_close(got, torch.tensor([0.18 - math.log(0.2)]))


def test_consistency_alone_has_no_gradient_at_the_clean_image() -> None:
    """This is why the pseudo-label is needed: without a cross-entropy term an unlabelled image would never move."""
    logits = torch.tensor([[1.0, -0.5, 0.3]], requires_grad=True)
    clean = logits.detach().softmax(1)
    labels = logits.detach().argmax(1)
    (grad,) = torch.autograd.grad((logits.softmax(1) - clean).square().sum(), logits)
    assert grad.abs().max() == 0
    (grad,) = torch.autograd.grad(perturbation_objective(logits, clean, labels).sum(), logits)
    assert grad.abs().max() > 0.1
