"""Tests DivideMix and UNICON: what the two networks learn from, term by term, and in which order they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import betainc, betaincinv
from scipy.stats import chisquare, entropy, kstest
from test_erat import BUDGETS, CLASSES, batch, network_for
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.config import RunConfig, build
from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.data.types import CorruptedSet
from erat.defenses.base import Batch, Clock, Task
from erat.defenses.dividemix import DivideMix, DivideMixOptions
from erat.defenses.mixmatch import MIX_BLOCK, MixMatch, _partners
from erat.defenses.unicon import Unicon, UniconOptions
from erat.engine.trainer import Trainer
from erat.losses import contrastive, prior_penalty, sharpen, soft_cross_entropy, squared_error

SAMPLES = 12
FILLED: dict[str, Any] = BUDGETS | {
    "lambda_u": 25.0,
    "confidence_penalty": False,
    "warmup_epochs": 0,
    "ramp_epochs": 0.0,
}
Make = Callable[..., Any]


def dividemix(**options: Any) -> DivideMix:
    return DivideMix(DivideMixOptions(**(FILLED | options)), Task(SAMPLES, CLASSES, False, network_for))


def unicon(**options: Any) -> Unicon:
    return Unicon(UniconOptions(**(FILLED | options)), Task(SAMPLES, CLASSES, False, network_for))


def step_of(name: str, labelled: int = 8, unlabelled: int = 6, phase: str = "train") -> Batch:
    return replace(batch(labelled, unlabelled, phase), update=name)


def draws(seed: int = 0) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed))


def by_name(terms: Any) -> dict[str, float]:
    return {name: value.item() for name, (_, value) in terms.terms.items()}


# --- targets ---------------------------------------------------------------------------------------------------------


def test_sharpening_raises_the_likely_ones() -> None:
    """At T = 0.5 the values 0.6 and 0.4 become 0.36 and 0.16, divided by their sum."""
    probs = torch.tensor([[0.6, 0.4], [1.0, 0.0]])
    torch.testing.assert_close(sharpen(probs, 0.5), torch.tensor([[0.36 / 0.52, 0.16 / 0.52], [1.0, 0.0]]))
    torch.testing.assert_close(sharpen(probs, 1.0), probs)


@pytest.mark.parametrize(("name", "place"), [("main", 0), ("peer", 1)])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_targets_are_refined_by_one_network_and_guessed_by_both(name: str, place: int, temperature: float) -> None:
    """Refined: w y + (1 - w) p, where p is the mean of two views. Guessed: the mean of two views and two networks.

    Both are sharpened.
    """
    model = dividemix(temperature=temperature)
    trust = torch.linspace(0, 1, SAMPLES)
    model.trust[place] = trust
    given = step_of(name)
    views = torch.rand(28, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    got = model._targets(given, place, views)
    with torch.no_grad():
        own, other = (model.networks[key](views).softmax(1) for key in (name, {"main": "peer", "peer": "main"}[name]))
    for i in range(8):
        mean = (own[i] + own[8 + i]) / 2
        refined = trust[i] * F.one_hot(given.labels[i], CLASSES) + (1 - trust[i]) * mean
        refined = refined ** (1 / temperature) / (refined ** (1 / temperature)).sum()
        torch.testing.assert_close(got[i], refined)
        torch.testing.assert_close(got[8 + i], refined)
    for i in range(6):
        guess = (own[16 + i] + own[22 + i] + other[16 + i] + other[22 + i]) / 4
        guess = guess ** (1 / temperature) / (guess ** (1 / temperature)).sum()
        torch.testing.assert_close(got[16 + i], guess)
        torch.testing.assert_close(got[22 + i], guess)


def test_trust_belongs_to_the_sample_and_not_to_its_place_in_the_batch() -> None:
    model = dividemix(weak="none")
    model.trust[0] = torch.zeros(SAMPLES)
    model.trust[0][[9, 11]] = 1.0
    given = replace(step_of("main", 3, 0), indices=torch.tensor([9, 2, 11]))
    targets = model._targets(given, 0, given.images.repeat(2, 1, 1, 1))
    onehot = F.one_hot(given.labels, CLASSES).float()
    assert torch.equal(targets[[0, 2]], onehot[[0, 2]])
    assert targets[1].max() < 0.99


def test_the_peer_guesses_in_eval_mode_and_the_learner_as_it_trains() -> None:
    seen: list[tuple[str, bool, int]] = []
    model = dividemix().train()
    for name, network in model.networks.items():
        network.register_forward_hook(lambda module, _, out, name=name: seen.append((name, module.training, len(out))))
    model.loss(step_of("peer"), Clock(0))
    assert seen == [("peer", True, 28), ("main", False, 12), ("peer", True, 28)]


# --- mixup -----------------------------------------------------------------------------------------------------------


def blocks(sizes: tuple[int, ...]) -> Tensor:
    return torch.cat([torch.arange(size) // MIX_BLOCK for size in sizes])


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (16, 16, 24, 24), (5, 5, 11, 11), (64, 64, 64, 64), (3, 3, 0, 0)])
def test_partners_are_a_permutation_among_neighbours(sizes: tuple[int, ...]) -> None:
    for seed in range(5):
        partner = _partners(draws(seed), sizes)
        assert partner.sort().values.tolist() == list(range(sum(sizes)))
        assert torch.equal(blocks(sizes)[partner], blocks(sizes))


def test_any_neighbour_is_as_likely_a_partner() -> None:
    """The row is one of two views of 8 labelled and 8 unlabelled samples each, 32 rows in all.

    Its partner may be the row itself or a row of another group.
    """
    random = draws()
    partners = torch.stack([_partners(random, (8, 8, 8, 8)) for _ in range(3000)])
    for row in (0, 13, 31):
        assert chisquare(torch.bincount(partners[:, row], minlength=32).numpy()).pvalue > 1e-3


def test_each_row_keeps_the_larger_share_of_itself_in_image_and_target() -> None:
    images = torch.rand(32, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    mixed, targets = dividemix()._mixup(images, torch.eye(32), draws(), (8, 8, 8, 8))
    others = [(int((row * (1 - torch.eye(32)[i])).argmax()), float(row[i])) for i, row in enumerate(targets)]
    shares = {round(share, 5) for _, share in others if share < 1}
    assert len(shares) == 1, "one draw for the whole batch"
    (share,) = shares
    assert 0.5 <= share < 1
    for i, (partner, own) in enumerate(others):
        expected = images[i] if own == 1 else share * images[i] + (1 - share) * images[partner]
        torch.testing.assert_close(mixed[i], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))


@pytest.mark.parametrize("alpha", [4.0, 0.75])
def test_the_larger_share_of_a_beta_draw(alpha: float) -> None:
    """max(l, 1 - l) of a symmetric Beta has the distribution function 2 I_x(a, a) - 1 from 0.5 on."""
    model, random = dividemix(mixup_alpha=alpha), draws()
    rows, eye = torch.zeros(8, 1, 1, 1), torch.eye(8)
    shares = [float(model._mixup(rows, eye, random, (8,))[1].diagonal().min()) for _ in range(1000)]
    assert kstest(shares, lambda x: np.clip(2 * betainc(alpha, alpha, x) - 1, 0, 1)).pvalue > 0.01
    assert kstest(shares, lambda x: np.clip(2 * betainc(2.0, 2.0, x) - 1, 0, 1)).pvalue < 1e-6


@pytest.mark.parametrize("share", [8, 24])
def test_both_workers_mix_alike(share: int) -> None:
    """The reference is one worker's partners, cut in two: a share of whole blocks has all neighbours on one worker."""
    sizes = (share,) * 4
    alone = _partners(draws().grouped(*(2 * size for size in sizes)), tuple(2 * size for size in sizes))
    for rank in (0, 1):
        mine = _partners(BatchRandom(torch.Generator().manual_seed(0), rank, 2).grouped(*sizes), sizes)
        rows = torch.cat([torch.arange(share) + (2 * group + rank) * share for group in range(4)])
        assert torch.equal(rows[mine], alone[rows])


# --- loss ------------------------------------------------------------------------------------------------------------


def slow_partners(random: BatchRandom, sizes: tuple[int, ...]) -> Tensor:
    """Sort the rows of each block of neighbours by their keys."""
    keys, block = random.rand(sum(sizes)), blocks(sizes)
    partner = torch.empty(sum(sizes), dtype=torch.int64)
    for number in block.unique():
        rows = (block == number).nonzero().flatten().tolist()
        partner[rows] = torch.tensor(sorted(rows, key=lambda row: float(keys[row])))
    return partner


def slow_contrastive(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent pair by pair."""
    both, count = torch.cat([first, second]), len(first)
    total = torch.zeros(())
    for i in range(2 * count):
        similar = [torch.exp(both[i] @ both[j] / temperature) for j in range(2 * count)]
        others = torch.stack([value for j, value in enumerate(similar) if j != i]).sum()
        total = total - (similar[(i + count) % (2 * count)] / others).log()
    return total / (2 * count)


def recomputed(model: MixMatch, given: Batch, strong: bool) -> dict[str, Tensor]:
    """Compute every term once more, with the same draws in the same order; targets and views are constants."""
    place = {"main": 0, "peer": 1}[given.update]
    network, random = model.networks[given.update], draws()
    images = torch.cat([given.images, given.images, given.unlabelled, given.unlabelled])
    views = weak_view(images, random, kind="crop", flip=False)
    targets = model._targets(given, place, views).detach()
    if strong:
        views = strong_view(weak_view(images, random, kind="crop", flip=False), random, policy="cifar10")
    if model.options.adversarial:
        views = model.perturbers[given.update](network, views, targets.argmax(1), random)
    share = betaincinv(4.0, 4.0, float(random.shared()))
    share = max(share, 1 - share)
    partner = slow_partners(random, (8, 8, 6, 6))
    mixed = share * views + (1 - share) * views[partner]
    target = share * targets + (1 - share) * targets[partner]
    logits = network(mixed)
    expected = {
        "labelled": -(target[:16] * logits[:16].log_softmax(1)).sum(1).mean(),
        "unlabelled": (logits[16:].softmax(1) - target[16:]).square().sum() / (12 * CLASSES),
        "prior": (torch.log(1 / CLASSES / logits.softmax(1).mean(0)) / CLASSES).sum(),
    }
    if isinstance(model, Unicon):
        _, (projected,) = network(views[16:], project=True)
        expected["contrastive"] = slow_contrastive(projected[:6], projected[6:], 0.05)
    return expected


@pytest.mark.parametrize("name", ["main", "peer"])
@pytest.mark.parametrize(
    ("make", "options", "strong"),
    [
        (dividemix, {}, False),
        (dividemix, {"strong": True}, True),
        (dividemix, {"adversarial": True}, False),
        (unicon, {}, True),
        (unicon, {"strong": False}, False),
    ],
)
def test_every_term_and_gradient_is_what_its_formula_says(
    make: Callable[..., MixMatch], options: dict[str, Any], strong: bool, name: str
) -> None:
    """The targets are constants in the formula, so that equal gradients mean that none flows into the targets."""
    model = make(**options)
    model.trust[:] = torch.linspace(0, 1, SAMPLES)
    given = step_of(name)
    terms, expected = model.loss(given, Clock(0)), recomputed(model, given, strong)
    assert by_name(terms) == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-4)
    weights = {"labelled": 1.0, "unlabelled": 25.0, "prior": 1.0, "contrastive": 0.025}
    assert {key: weight for key, (weight, _) in terms.terms.items()} == {key: weights[key] for key in expected}
    total = sum((weights[key] * value for key, value in expected.items()), start=torch.zeros(()))
    parameters = list(model.networks[name].parameters())
    ours = torch.autograd.grad(terms.total, parameters)
    for mine, theirs in zip(ours, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [dividemix, unicon])
@pytest.mark.parametrize(("name", "peer"), [("main", "peer"), ("peer", "main")])
def test_the_other_network_gets_no_gradient(make: Callable[..., MixMatch], name: str, peer: str) -> None:
    model = make()
    total = model.loss(step_of(name), Clock(0)).total
    parameters = list(model.networks[peer].parameters())
    assert torch.autograd.grad(total, parameters, allow_unused=True) == (None,) * len(parameters)


def test_the_weight_of_the_unlabelled_term_grows_with_the_epochs_since_the_warm_up() -> None:
    model = dividemix(warmup_epochs=10, ramp_epochs=16.0, lambda_u=25.0)
    for clock, weight in [(Clock(10), 0.0), (Clock(14, step=1, steps=2), 25 * 4.5 / 16), (Clock(40), 25.0)]:
        terms = model.loss(step_of("main"), clock).terms
        assert {key: value for key, (value, _) in terms.items()} == {"labelled": 1, "unlabelled": weight, "prior": 1}


@pytest.mark.parametrize("make", [dividemix, unicon])
def test_without_unlabelled_samples_only_labels_and_prior_stay(make: Callable[..., MixMatch]) -> None:
    assert set(make().loss(step_of("main", unlabelled=0), Clock(0)).terms) == {"labelled", "prior"}


def test_without_weight_there_is_no_contrastive_pass() -> None:
    assert "contrastive" not in unicon(contrastive_weight=0.0).loss(step_of("main"), Clock(0)).terms


def test_each_norm_s_perturbed_views_are_mixed_and_learnt_from() -> None:
    seen: list[tuple[bool, Tensor]] = []
    model = dividemix(adversarial=True, norms="both", uniform=False, weak="none", mixup_alpha=1e-6).train()

    def look(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        seen.append((module.training and torch.is_grad_enabled(), inputs[0]))

    model.networks["main"].register_forward_hook(look)
    given = step_of("main")
    model.loss(given, Clock(0))
    (views,) = [images for learning, images in seen if learning]
    # With a share of 1 nothing is mixed, and the perturbed views can be seen.
    plain = torch.cat([given.images, given.images, given.unlabelled, given.unlabelled])
    assert len(views) == 56
    assert (views[:28] - plain).abs().max() <= 0.1 + 1e-5
    assert l2_norm(views[28:] - plain).max() <= 1 + 1e-5
    assert l2_norm(views[28:] - plain).min() > 0.1
    assert (views[28:] - plain).abs().max() > 0.11


# --- the terms alone -------------------------------------------------------------------------------------------------


def test_soft_cross_entropy_and_squared_error_by_hand() -> None:
    logits, target = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]])
    assert soft_cross_entropy(logits, target).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert squared_error(logits, target).item() == pytest.approx(0.0625)


def test_the_prior_penalty_is_the_relative_entropy_of_the_uniform_one() -> None:
    even = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    assert prior_penalty(even).item() == pytest.approx(0, abs=1e-6), "of the batch's mean, not of each sample"
    odd = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
    assert prior_penalty(odd).item() == pytest.approx(entropy([0.5, 0.5], [0.75, 0.25]), rel=1e-5)
    never = torch.tensor([[200.0, 0.0]])
    assert bool(prior_penalty(never).isfinite())


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_contrastive_term_is_a_slow_nt_xent(temperature: float) -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (F.normalize(torch.randn(5, 7, generator=draw), dim=1) for _ in range(2))
    expected = slow_contrastive(first.double(), second.double(), temperature)
    assert contrastive(first, second, temperature).item() == pytest.approx(expected.item(), rel=1e-4)
    assert contrastive(first, first, temperature) < contrastive(first, second, temperature)


def test_a_single_pair_and_none_cost_nothing() -> None:
    one = F.normalize(torch.ones(1, 3), dim=1).requires_grad_(True)
    assert contrastive(one, -one, 0.5).item() == pytest.approx(0, abs=1e-6), "there is nobody else to be confused with"
    assert contrastive(one[:0], one[:0], 0.5).item() == 0


# --- warm-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [False, True])
def test_the_warm_up_is_cross_entropy_and_under_a_penalty_negative_entropy(penalty: bool) -> None:
    model = dividemix(confidence_penalty=penalty, warmup_epochs=5)
    given = step_of("peer", unlabelled=0, phase="warmup")
    logits = model.networks["peer"](weak_view(given.images, draws(), kind="crop", flip=False))
    probs = logits.softmax(1)
    expected = {"warmup": F.cross_entropy(logits, given.labels).item()}
    if penalty:
        expected["negative_entropy"] = (probs * probs.log()).sum(1).mean().item()
    terms = model.loss(given, Clock(0))
    assert by_name(terms) == pytest.approx(expected, rel=1e-5)
    assert all(weight == 1 for weight, _ in terms.terms.values())


def weights(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(48)


@pytest.mark.parametrize("warmup", [1, 0])
def test_each_network_trains_in_a_phase_of_its_own(
    make_config: Callable[..., RunConfig], data: CorruptedSet, warmup: int
) -> None:
    trainer = Trainer(make_config({"defense.name": "dividemix", "defense.warmup_epochs": warmup}), data)
    networks = trainer.defense.networks
    plan = trainer.plan(Clock(0))
    assert [phase.name for phase in plan.phases] == ["warmup" if warmup else "train"] * 2
    before = {name: weights(network) for name, network in networks.items()}
    order: list[str] = []
    for step, _ in trainer.steps(plan, Clock(0)):
        order.append(step.update)
        other = "peer" if step.update == "main" else "main"
        assert same(weights(networks[other]), before[other])
        assert not same(weights(networks[step.update]), before[step.update])
        before[step.update] = weights(networks[step.update])
    assert order == sorted(order)
    assert set(order) == {"main", "peer"}
    if warmup:
        assert order == ["main"] * 3 + ["peer"] * 3
        assert plan.selected is None
        assert all(phase.labelled.tolist() == list(range(48)) for phase in plan.phases)


# --- when splits are made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", ["together", "in_turn"])
def test_in_turn_the_second_split_is_made_after_the_first_network_has_trained(
    make_config: Callable[..., RunConfig], data: CorruptedSet, monkeypatch: pytest.MonkeyPatch, splits: str
) -> None:
    overrides = {"defense.name": "dividemix", "defense.warmup_epochs": 1, "defense.splits": splits}
    trainer = Trainer(make_config(overrides), data)
    defense: Any = trainer.defense
    next(trainer.run())
    asked: list[Tensor] = []
    predict = defense._probabilities

    def recorded(given: Any) -> Tensor:
        asked.append(predict(given))
        return asked[-1]

    monkeypatch.setattr(defense, "_probabilities", recorded)
    plan = trainer.plan(Clock(1))
    batches: dict[str, list[Batch]] = {"main": [], "peer": []}
    for step, _ in trainer.steps(plan, Clock(1)):
        batches[step.update].append(step)
    assert len(asked) == (2 if splits == "in_turn" else 1)
    if splits == "in_turn":
        assert not torch.equal(asked[0][:, 0], asked[1][:, 0]), "main has trained meanwhile"
        assert torch.equal(asked[0][:, 1], asked[1][:, 1]), "peer has not"
    for place, name in enumerate(("main", "peer")):
        expected = defense._split(place, asked[place if splits == "in_turn" else 0], trainer._train.labels)
        labelled = torch.cat([step.indices for step in batches[name]])
        assert expected.mask[labelled].all()
        assert not expected.mask[torch.cat([step.unlabelled_indices for step in batches[name]])].any()
        torch.testing.assert_close(defense.trust[place], expected.trust)
    assert plan.selected is not None
    assert torch.equal(plan.selected, defense._split(0, asked[0], trainer._train.labels).mask)


# --- what is left open -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "labels", "lambda_u"),
    [
        ("dividemix", "cifar10", "symmetric", 25.0),
        ("dividemix", "cifar10", "instance", 25.0),
        ("dividemix", "cifar10", "none", 0.0),
        ("dividemix", "cifar10", "asymmetric", 0.0),
        ("dividemix", "mnist", "asymmetric", 0.0),
        ("dividemix", "cifar100", "symmetric", 150.0),
        ("dividemix", "cifar100", "asymmetric", 150.0),
        ("dividemix", "tiny-imagenet", "symmetric", 150.0),
        ("unicon", "cifar10", "symmetric", 30.0),
        ("unicon", "cifar10", "asymmetric", 30.0),
        ("unicon", "cifar100", "symmetric", 30.0),
    ],
)
def test_lambda_u_and_the_penalty_follow_from_data_and_noise(
    name: str, data: str, labels: str, lambda_u: float
) -> None:
    overrides = {"defense.name": name, "data.name": data, "corruption.labels": labels, "corruption.data": "none"}
    options: Any = build("paper", overrides, quiet=True).defense
    assert options.lambda_u == lambda_u
    assert options.confidence_penalty is (labels == "asymmetric")


def test_what_was_said_is_kept() -> None:
    overrides = {
        "defense.name": "dividemix",
        "corruption.labels": "asymmetric",
        "defense.lambda_u": 7,
        "defense.confidence_penalty": False,
    }
    options: Any = build("paper", overrides).defense
    assert options.lambda_u == 7
    assert options.confidence_penalty is False


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dividemix, unicon])
def test_an_answer_is_the_sum_of_both_networks_logits(make: Callable[..., MixMatch]) -> None:
    model = make().eval()
    images = batch().images
    with torch.no_grad():
        first, second = model.networks["main"](images), model.networks["peer"](images)
        assert not torch.allclose(first, second)
        torch.testing.assert_close(model.predict(images), first + second)
