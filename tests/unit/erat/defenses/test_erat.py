"""Tests ERAT: the loss terms of a step and their inputs, the selection of an epoch, and what is attacked and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.config import RunConfig
from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.defenses.base import Clock, Task
from erat.defenses.erat import ERAT, ERATOptions
from erat.selection import scores
from tests.batches import batch
from tests.precise import InDouble

CLASSES = 4
# Options that a data set fills in, as tests of defenses share them.
BUDGETS: dict[str, Any] = {"epsilon_inf": 0.1, "epsilon_2": 1.0, "norms": "linf", "policy": "cifar10"}
EPSILON = {"epsilon_inf": 0.1, "epsilon_2": 1.0, "policy": "cifar10"}


def network_for(seed: int) -> nn.Module:
    """Return a smooth network without batch statistics, so that every number can be computed again."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Dropout(0.0), nn.Linear(8 * 64, CLASSES)
        )


def defense(samples: int = 12, **options: Any) -> ERAT:
    return ERAT(ERATOptions(**(EPSILON | options)), Task(samples, CLASSES, False, network_for))


def perturb(model: ERAT, images: Tensor, labels: Tensor, random: BatchRandom) -> Tensor:
    moved: Tensor = model.perturber(model.networks["main"], images, labels, random)
    return moved


def values(terms: Any) -> dict[str, float]:
    return {name: value.item() for name, (_, value) in terms.terms.items()}


# --- Eqs. 8 and 9 ----------------------------------------------------------------------------------------------------

LABELLED = {"labelled_strong", "labelled_strong_adversarial", "labelled_adversarial"}
UNLABELLED = {"unlabelled_strong", "unlabelled_strong_adversarial", "unlabelled_adversarial"}


def test_a_step_has_three_terms_of_each_kind_and_the_ramp_weighs_the_unlabelled_ones() -> None:
    model = defense(warmup_epochs=10, ramp_epochs=16.0, lambda_u=25.0)
    terms = model.loss(batch(), Clock(14, step=1, steps=2)).terms
    assert set(terms) == LABELLED | UNLABELLED
    assert {terms[name][0] for name in LABELLED} == {1.0}
    assert {terms[name][0] for name in UNLABELLED} == {25 * 4.5 / 16}


def test_total_is_the_weighted_sum() -> None:
    terms = defense(warmup_epochs=0, ramp_epochs=0.0, lambda_u=3.0).loss(batch(), Clock(0))
    expected = sum(values(terms)[name] for name in LABELLED) + 3 * sum(values(terms)[name] for name in UNLABELLED)
    assert terms.total.item() == pytest.approx(expected, rel=1e-6)


def test_a_warm_up_step_has_two_terms_on_given_labels() -> None:
    assert set(defense().loss(batch(unlabelled=0, phase="warmup"), Clock(0)).terms) == {
        "warmup_strong",
        "warmup_strong_adversarial",
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"adversarial": False}, {"labelled_strong", "unlabelled_strong"}),
        ({"uniform": False}, LABELLED | UNLABELLED),
        ({"strong": False}, LABELLED | UNLABELLED),
    ],
)
def test_terms_of_the_ablations(options: dict[str, Any], names: set[str]) -> None:
    assert set(defense(**options).loss(batch(), Clock(20)).terms) == names


def test_without_unlabelled_samples_only_the_labelled_terms_stay() -> None:
    assert set(defense().loss(batch(unlabelled=0), Clock(20)).terms) == LABELLED


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_term_is_what_eq_8_says(uniform: bool, reduction: str) -> None:
    """The loss is written out once more from its parts, with the same draws in the same order."""
    model = defense(uniform=uniform, reduction=reduction, warmup_epochs=0, ramp_epochs=0.0)
    given = batch()
    network = model.networks["main"].eval()
    with torch.no_grad():
        random = BatchRandom(torch.Generator().manual_seed(0))
        pseudo = network(weak_view(given.unlabelled, random, kind="erase", flip=False)).softmax(1)
        images = torch.cat([given.images, given.unlabelled])
    adversarial = perturb(model, images, torch.cat([given.labels, pseudo.argmax(1)]), random)
    assert len(adversarial) == (14 if uniform else 28)
    strong = strong_view(torch.cat([images, adversarial]), random, policy="cifar10")
    views = {"strong": strong[:14], "strong_adversarial": strong[14:], "adversarial": adversarial}
    expected: dict[str, Any] = {}
    for name, view in views.items():
        rounds = view.split(14)
        logits = [network(part) for part in rounds]
        expected[f"labelled_{name}"] = sum(F.cross_entropy(part[:8], given.labels) for part in logits) / len(rounds)
        errors = [(part[8:].softmax(1) - pseudo).square().sum(1).mean() for part in logits]
        expected[f"unlabelled_{name}"] = sum(errors) / len(rounds) / (CLASSES if reduction == "mean" else 1)
    got = values(model.loss(given, Clock(0)))
    assert got == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("uniform", [True, False])
def test_warm_up_terms_are_what_eq_9_says(uniform: bool) -> None:
    model, given = defense(uniform=uniform), batch(unlabelled=0, phase="warmup")
    network = model.networks["main"].eval()
    random = BatchRandom(torch.Generator().manual_seed(0))
    adversarial = perturb(model, given.images, given.labels, random)
    strong = strong_view(torch.cat([given.images, adversarial]), random, policy="cifar10")
    expected = {
        "warmup_strong": F.cross_entropy(network(strong[:8]), given.labels),
        "warmup_strong_adversarial": F.cross_entropy(
            network(strong[8:]), torch.cat([given.labels] * (1 if uniform else 2))
        ),
    }
    got = values(model.loss(given, Clock(0)))
    assert got == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)


def test_no_gradient_flows_into_targets_or_perturbations() -> None:
    """If views and attacks are replaced by constants, the gradient of the loss is the same."""
    model = defense(warmup_epochs=0, ramp_epochs=0.0)
    given = batch()
    parameters = list(model.parameters())
    whole = torch.autograd.grad(model.loss(given, Clock(0)).total, parameters)
    random = BatchRandom(torch.Generator().manual_seed(0))
    with torch.no_grad():
        pseudo = model.networks["main"](weak_view(given.unlabelled, random, kind="erase", flip=False)).softmax(1)
    images = torch.cat([given.images, given.unlabelled])
    adversarial = perturb(model, images, torch.cat([given.labels, pseudo.argmax(1)]), random).clone()
    strong = strong_view(torch.cat([images, adversarial]), random, policy="cifar10").clone()
    loss = torch.zeros(())
    for view in (strong[:14], strong[14:], adversarial):
        logits = model.networks["main"](view)
        loss = loss + F.cross_entropy(logits[:8], given.labels) + 25 * F.mse_loss(logits[8:].softmax(1), pseudo)
    for ours, expected in zip(whole, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_loss_with_eval_statistics_for_the_attack_and_training_ones_for_the_student() -> None:
    seen: list[tuple[bool, int]] = []
    model = defense()
    model.train()
    network = model.networks["main"]
    network.register_forward_hook(lambda module, _, logits: seen.append((module.training, len(logits))))
    model.loss(batch(), Clock(20))
    assert seen == [(False, 6)] + [(False, 14)] * 7 + [(True, 42)]


# --- Eqs. 6, 7 and 10 ------------------------------------------------------------------------------------------------


def perturbed(options: dict[str, Any], count: int = 400) -> tuple[Tensor, Tensor]:
    given = batch(count, 0)
    # In float64, so that the batch size does not change how an image moves.
    model = ERAT(ERATOptions(**(EPSILON | options)), Task(12, CLASSES, False, lambda seed: InDouble(network_for(seed))))
    random = BatchRandom(torch.Generator().manual_seed(0))
    return given.images, perturb(model, given.images, given.labels, random) - given.images.repeat(
        1 if options.get("uniform", True) else 2, 1, 1, 1
    )


def test_every_image_draws_its_norm() -> None:
    _, delta = perturbed({})
    linf = delta.abs().flatten(1).amax(1) <= 0.1 * (1 + 1e-5)
    assert bool(linf.any())
    assert 160 < int(linf.sum()) < 240, "about half of 400"
    assert l2_norm(delta[~linf]).max() <= 1.0 * (1 + 1e-5)
    assert l2_norm(delta[linf]).min() > 0.3
    other = perturb(
        defense(), batch(400, 0).images, batch(400, 0).labels, BatchRandom(torch.Generator().manual_seed(1))
    )
    assert not torch.equal(linf, (other - batch(400, 0).images).abs().flatten(1).amax(1) <= 0.1 * (1 + 1e-5))


@pytest.mark.parametrize(("norms", "inside"), [("linf", "linf"), ("l2", "l2")])
def test_one_norm_alone(norms: str, inside: str) -> None:
    _, delta = perturbed({"norms": norms})
    if inside == "linf":
        assert delta.abs().max() <= 0.1 * (1 + 1e-5)
        assert l2_norm(delta).max() < 0.1 * 8 * 1.01
    else:
        assert l2_norm(delta).max() <= 1 + 1e-5
        assert delta.abs().max() > 0.15


def test_without_uniform_sampling_each_image_meets_each_norm() -> None:
    images, delta = perturbed({"uniform": False})
    assert len(delta) == 2 * len(images)
    # A batch of 800 and one of 400 may use other kernels: equal except for float32's last bits.
    torch.testing.assert_close(delta[:400], perturbed({"norms": "linf"})[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(delta[400:], perturbed({"norms": "l2"})[1], rtol=0, atol=1e-6)


def test_the_literal_l2_exceeds_the_ball_of_its_budget() -> None:
    _, delta = perturbed({"norms": "l2", "l2_update": "literal", "epsilon_2": 0.2})
    assert delta.abs().max() <= 0.2 * (1 + 1e-5)
    assert l2_norm(delta).max() > 1.0


def test_random_starts_move_even_a_zero_step() -> None:
    assert perturbed({"steps": 1, "step_ratio": 1e-9})[1].abs().max() < 1e-6
    assert perturbed({"steps": 1, "step_ratio": 1e-9, "random_start": True})[1].abs().max() > 0.05


def test_the_objective_has_both_parts() -> None:
    """The reference is Eq. 6 in a plain loop that computes the clean prediction by a separate pass."""
    given = batch(10, 0)
    model = defense(norms="linf")
    network = model.networks["main"].eval()
    clean = network(given.images).softmax(1).detach()
    moved = given.images.clone()
    for _ in range(7):
        point = moved.clone().requires_grad_(True)
        logits = network(point)
        both = (logits.softmax(1) - clean).square().sum() + F.cross_entropy(logits, given.labels, reduction="sum")
        (grad,) = torch.autograd.grad(both, point)
        moved = (given.images + (moved + 0.02 * grad.sign() - given.images).clamp(-0.1, 0.1)).clamp(0, 1)
    got = perturb(model, given.images, given.labels, given.random)
    assert (got - moved).abs().max() < 1e-6


# --- Algorithm 1, once per epoch -------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A network whose predictions are stored in the image: pixel k of the only row is the probability of class k."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).log() + 0 * self.unused


class Data:
    """Training data with a given list of predictions."""

    num_classes = 2

    def __init__(self, probs: list[float], labels: list[int]) -> None:
        first = torch.tensor(probs)
        self.images = torch.stack([first, 1 - first], 1).view(-1, 1, 1, 2)
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    @torch.no_grad()
    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(self.images)


# Score of p on the labelled class: 2 (1 - p)^2.
# Class 0: p = 0.9 0.8 0.3 0.2 -> 0.02 0.08 0.98 1.28, mean 0.59. Class 1: 0.7 0.6 0.5 0.1 -> 0.18 0.32 0.5 1.62, 0.655.
# Mean of all 4.98 / 8 = 0.6225: N_l = 5.
TWO_CLASSES = ([0.9, 0.8, 0.3, 0.2, 0.3, 0.4, 0.5, 0.9], [0, 0, 0, 0, 1, 1, 1, 1])


def selecting(**options: Any) -> ERAT:
    options = EPSILON | {"warmup_epochs": 2} | options
    return ERAT(ERATOptions(**options), Task(8, 2, False, Fixed))


def test_warm_up_takes_everything_and_then_the_selection_splits() -> None:
    data, model = Data(*TWO_CLASSES), selecting(eta=1.0)
    for epoch in (0, 1):
        plan = model.plan_epoch(Clock(epoch), data)
        assert [phase.name for phase in plan.phases] == ["warmup"]
        assert plan.phases[0].labelled.tolist() == list(range(8))
        assert plan.selected is None
    plan = model.plan_epoch(Clock(2), data)
    (phase,) = plan.phases
    # R = (0.705, 0.6725) / 1.3775: 5 R = 2.559, 2.441 -> 3, 2.
    assert phase.labelled.tolist() == [0, 1, 2, 4, 5]
    assert phase.unlabelled is not None
    assert phase.unlabelled.tolist() == [3, 6, 7]
    assert plan.selected is not None
    assert plan.selected.tolist() == [True, True, True, False, True, True, False, False]
    assert phase.name != "warmup"


def test_the_second_selection_uses_the_first_one_s_class_scores() -> None:
    """Labelled before: class 0 0.02 0.08 0.98 (mean 0.36), class 1 0.18 0.32 (mean 0.25).

    R = (0.82, 0.875) / 1.695: 5 R = 2.419, 2.581 -> 2, 3: the third of class 0 is dropped, the third of class 1 is
    added.
    """
    data, model = Data(*TWO_CLASSES), selecting(eta=1.0)
    model.plan_epoch(Clock(2), data)
    plan = model.plan_epoch(Clock(3), data)
    assert plan.phases[0].labelled.tolist() == [0, 1, 4, 5, 6]


def test_the_labelled_set_is_part_of_the_state() -> None:
    data, model = Data(*TWO_CLASSES), selecting(eta=1.0)
    model.plan_epoch(Clock(2), data)
    copy = selecting(eta=1.0)
    copy.load_state_dict(model.state_dict())
    assert copy.plan_epoch(Clock(3), data).phases[0].labelled.tolist() == [0, 1, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "labelled"),
    [
        ({"rebalance": False}, [0, 1, 4, 5, 6]),  # the five at or below 0.6225
        ({"eta": 0.0}, [0, 1, 2, 4, 5]),  # 2.5 each, the lower class first
        # Cross-entropy: class 0 0.105 0.223 1.204 1.609 (mean 0.785), class 1 0.357 0.511 0.693 2.303 (0.966); mean
        # of all 0.876: N_l = 5. Of at most 2.303: R = (0.659, 0.581) / 1.240: 5 R = 2.66, 2.34 -> 3, 2.
        ({"score": "ce", "eta": 1.0}, [0, 1, 2, 4, 5]),
        ({"score": "ce", "rebalance": False}, [0, 1, 4, 5, 6]),
    ],
)
def test_selection_options(options: dict[str, Any], labelled: list[int]) -> None:
    plan = selecting(**options).plan_epoch(Clock(2), Data(*TWO_CLASSES))
    assert plan.phases[0].labelled.tolist() == labelled


def test_a_cross_entropy_has_no_bound_of_2() -> None:
    """Class 0 as before, 0.785; class 1 0.357 and three times 4.605, mean 3.543. Mean of all 2.164: N_l = 5.

    Of at most 4.605: R = (0.830, 0.231) / 1.060: 5 R = 3.91, 1.09 -> 4, 1. A bound of 2 would leave no quota to class
    1.
    """
    data = Data([0.9, 0.8, 0.3, 0.2, 0.3, 0.99, 0.99, 0.99], TWO_CLASSES[1])
    plan = selecting(score="ce", eta=1.0).plan_epoch(Clock(2), data)
    assert plan.phases[0].labelled.tolist() == [0, 1, 2, 3, 4]


def test_the_cross_entropy_score_may_choose_otherwise() -> None:
    """With the label at 0.4, l_2 prefers other mass spread thin; cross-entropy takes the first of equal scores."""
    probs = torch.tensor([[0.4, 0.6, 0.0], [0.4, 0.3, 0.3], [0.1, 0.9, 0.0]])
    labels = torch.zeros(3, dtype=torch.int64)
    assert scores(probs, labels).argmin() == 1
    assert scores(probs, labels, "ce").argmin() == 0


def test_without_selection_everything_stays_labelled() -> None:
    plan = selecting(selection=False).plan_epoch(Clock(5), Data(*TWO_CLASSES))
    assert plan.phases[0].labelled.tolist() == list(range(8))
    assert plan.phases[0].unlabelled is None
    assert plan.phases[0].name != "warmup", "Eq. 8's labelled part, with the third view"


def test_selection_looks_at_plain_images_in_eval_mode(make_config: Callable[..., RunConfig], make_data: Any) -> None:
    from erat.engine.trainer import Trainer

    trainer = Trainer(make_config({"defense.warmup_epochs": 0}), make_data(32))
    seen: list[tuple[bool, Tensor]] = []
    network = trainer.defense.networks["main"]
    network.register_forward_hook(lambda module, inputs, _: seen.append((module.training, inputs[0])))
    trainer.defense.plan_epoch(Clock(0), trainer._train)
    ((training, images),) = seen
    assert not training
    assert torch.equal((images * 255).round().to(torch.uint8), make_data(32).train.images)


def test_the_step_s_draws_depend_on_the_generator_alone() -> None:
    model = defense()
    first, again = model.loss(batch(seed=4), Clock(20)), model.loss(batch(seed=4), Clock(20))
    assert values(first) == values(again)
    assert values(model.loss(batch(seed=5), Clock(20))) != values(first)
    shifted = replace(batch(seed=4), indices=torch.arange(8) + 100)
    assert values(model.loss(shifted, Clock(20))) == values(first)
