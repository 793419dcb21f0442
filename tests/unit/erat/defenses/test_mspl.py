"""Tests MSPL: prototypes and their updates, its answer, its loss term by term, and networks without the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_erat import BUDGETS, CLASSES, batch, network_for
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.data.augment.views import weak_view
from erat.data.random import BatchRandom
from erat.defenses.base import Batch, Clock, Task
from erat.defenses.mspl import HEADS, MSPL, MSPLOptions
from erat.models import build_model
from erat.models.heads import Projecting, cut_head
from erat.registry import BACKBONES
from erat.selection import scores

SAMPLES = 12
FILLED: dict[str, Any] = BUDGETS | {"warmup_epochs": 0, "ramp_epochs": 0.0}


def defense(**options: Any) -> MSPL:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return MSPL(MSPLOptions(**(FILLED | options)), Task(SAMPLES, CLASSES, False, network_for))


def trained_a_little(**options: Any) -> MSPL:
    """Train a little, until all classes have prototypes."""
    model = defense(**options)
    model.loss(batch(seed=5), Clock(0))
    return model


def draws(seed: int = 0) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed))


def by_name(terms: Any) -> dict[str, float]:
    return {name: value.item() for name, (_, value) in terms.terms.items()}


def unit(*rows: list[float]) -> Tensor:
    """Make rows of unit length, padded with zeros."""
    return F.normalize(F.pad(torch.tensor(rows), (0, 128 - len(rows[0]))), dim=1)


# --- prototypes ------------------------------------------------------------------------------------------------------


def test_a_first_meeting_sets_a_prototype_to_the_direction_of_its_class_s_mean() -> None:
    model = defense()
    z = unit([1.0, 0.0], [0.0, 1.0], [1.0, 0.0])
    model._move_prototypes([z, -z], torch.tensor([2, 2, 0]))
    torch.testing.assert_close(model.prototypes[0, 2], unit([1.0, 1.0])[0])
    torch.testing.assert_close(model.prototypes[0, 0], unit([1.0, 0.0])[0])
    torch.testing.assert_close(model.prototypes[1], -model.prototypes[0])
    assert not model.prototypes[:, [1, 3]].any(), "whom nobody met"


@pytest.mark.parametrize("momentum", [0.99, 0.5])
def test_later_a_prototype_follows_slowly_and_keeps_its_length(momentum: float) -> None:
    model = defense(momentum=momentum)
    model.prototypes[:] = unit([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, -1.0])
    before = model.prototypes.clone()
    z = unit([0.0, 1.0], [0.0, 1.0], [-1.0, 0.0])
    model._move_prototypes([z, z], torch.tensor([0, 0, 1]))
    for head in range(HEADS):
        torch.testing.assert_close(model.prototypes[head, 0], unit([momentum, 1 - momentum])[0])
        torch.testing.assert_close(model.prototypes[head, 1], unit([-(1 - momentum), momentum])[0])
        assert torch.equal(model.prototypes[head, 2:], before[head, 2:]), "classes that the batch lacks stay"
    torch.testing.assert_close(model.prototypes.norm(dim=2), torch.ones(HEADS, CLASSES))


def test_a_step_moves_prototypes_by_the_weak_views_of_labelled_samples_alone() -> None:
    model, given = defense(), batch(8, 6)
    weak = weak_view(torch.cat([given.images, given.unlabelled]), draws(), kind="crop", flip=False)
    with torch.no_grad():
        _, projected = model.networks["main"](weak[:8], project=True)
    model.loss(batch(8, 6), Clock(0))
    for head, z in enumerate(projected):
        expected = torch.stack([F.normalize(z[given.labels == k].mean(0), dim=0) for k in range(CLASSES)])
        torch.testing.assert_close(model.prototypes[head], expected, rtol=1e-4, atol=1e-6)
    assert not model.prototypes.requires_grad


def test_prototypes_are_state() -> None:
    model, other = trained_a_little(), defense()
    other.load_state_dict(model.state_dict())
    assert model.prototypes.any()
    assert torch.equal(other.prototypes, model.prototypes)


# --- the prediction that selects -------------------------------------------------------------------------------------


def test_the_answer_is_the_mean_of_classifier_and_prototypes() -> None:
    model = trained_a_little()
    images = batch().images
    with torch.no_grad():
        answer = model._answer(images)
        logits, projected = model.networks["main"](images, project=True)
        parts = [logits.softmax(1)]
        parts += [F.softmax(z @ model.prototypes[head].T / 0.1, 1) for head, z in enumerate(projected)]
    assert answer.shape == (8, CLASSES)
    assert answer.min() >= 0
    torch.testing.assert_close(answer.sum(1), torch.ones(8))
    torch.testing.assert_close(answer, sum(parts) / 3)  # type: ignore[arg-type]


def test_before_any_class_was_met_prototypes_say_nothing() -> None:
    model, images = defense(), batch().images
    with torch.no_grad():
        torch.testing.assert_close(
            model._answer(images), (model.networks["main"](images).softmax(1) + HEADS / CLASSES) / (1 + HEADS)
        )


def test_a_prototype_counts_by_its_direction() -> None:
    """Several workers average their prototypes after an epoch, and a mean of unit vectors is shorter than they are."""
    model, images = trained_a_little(), batch().images
    with torch.no_grad():
        before = model._answer(images)
        model.prototypes.mul_(torch.tensor([0.5, 1.0, 0.9, 0.25])[:, None])
        torch.testing.assert_close(model._answer(images), before)


def test_the_classifier_alone_answers_for_test_images() -> None:
    model, images = trained_a_little().eval(), batch().images
    with torch.no_grad():
        assert torch.equal(model.predict(images), model.networks["main"](images))


class Data:
    """Twelve images of four classes, as training data."""

    num_classes = CLASSES

    def __init__(self) -> None:
        self.images = torch.rand(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        self.labels = torch.arange(SAMPLES) % CLASSES

    def __len__(self) -> int:
        return SAMPLES

    @torch.no_grad()
    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(self.images)


def test_the_selection_goes_by_that_answer() -> None:
    model, data = trained_a_little(warmup_epochs=2), Data()
    (phase,) = model.plan_epoch(Clock(1), data).phases
    assert (phase.name, len(phase.labelled), phase.unlabelled) == ("warmup", SAMPLES, None)
    plan = model.plan_epoch(Clock(2), data)
    answer = data.map(model._answer)
    errors = scores(answer, data.labels, "ce")
    by_class = torch.stack([errors[data.labels == k].mean() for k in range(CLASSES)])[data.labels]
    assert plan.selected is not None and plan.predicted is not None
    assert torch.equal(plan.selected, (errors < errors.mean()) | (errors < by_class))
    assert torch.equal(plan.predicted, answer.argmax(1))
    assert 0 < int(plan.selected.sum()) < SAMPLES


# --- the loss --------------------------------------------------------------------------------------------------------


def slow_contrastive(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent row by row."""
    both, count = torch.cat([first, second]), len(first)
    rows = []
    for i in range(2 * count):
        similar = torch.stack([both[i] @ both[j] / temperature for j in range(2 * count) if j != i])
        rows.append(similar.logsumexp(0) - both[i] @ both[(i + count) % (2 * count)] / temperature)
    return torch.stack(rows).mean()


def recomputed(model: MSPL, given: Batch) -> dict[str, Tensor]:
    """Compute every term once more, with the same draws in the same order, and move the prototypes as a step does."""
    labelled, rows = len(given.labels), len(given.labels) + len(given.unlabelled)
    network, random = model.networks["main"], draws()
    plain = torch.cat([given.images, given.unlabelled])
    weak = weak_view(plain, random, kind="crop", flip=False)
    with torch.no_grad():
        guess = model._answer(weak[labelled:]) ** 2
        guess = guess / guess.sum(1, keepdim=True)
    hard = torch.cat([given.labels, guess.argmax(1)])
    if model.options.adversarial:
        second = model.perturber(network, weak, hard, random)[:rows]
    else:
        second = weak_view(plain, random, kind="crop", flip=False)
    (logits, mine), (other_logits, others) = (network(view, project=True) for view in (weak, second))
    model._move_prototypes([z[:labelled].detach() for z in mine], given.labels)
    terms: dict[str, list[Tensor]] = {"prototypes": [], "contrastive": []}
    similar = []
    for head in range(HEADS):
        both = torch.stack([z @ model.prototypes[head].clone().T / 0.1 for z in (mine[head], others[head])])
        similar.append(both.flatten(0, 1).softmax(1))
        terms["prototypes"] += [F.cross_entropy(part[:labelled], given.labels) for part in both]
        terms["contrastive"].append(slow_contrastive(mine[head], others[head], 0.1))
    expected = {name: torch.stack(values).mean() for name, values in terms.items()}
    expected["labelled"] = (
        F.cross_entropy(logits[:labelled], given.labels) + F.cross_entropy(other_logits[:labelled], given.labels)
    ) / 2
    expected["agreement"] = (similar[0] - similar[1]).square().sum() / (2 * rows)
    if len(guess):
        log_p = torch.stack([logits[labelled:], other_logits[labelled:]]).log_softmax(2)
        expected["unlabelled"] = -(guess * log_p).sum(2).mean()
    return expected


@pytest.mark.parametrize("unlabelled", [6, 0])
@pytest.mark.parametrize("options", [{}, {"norms": "both", "uniform": False}, {"adversarial": False}])
def test_every_term_and_gradient_is_what_its_formula_says(options: dict[str, Any], unlabelled: int) -> None:
    model, twin = trained_a_little(**options), trained_a_little(**options)
    terms = model.loss(batch(8, unlabelled), Clock(0))
    expected = recomputed(twin, batch(8, unlabelled))
    assert by_name(terms) == pytest.approx({key: value.item() for key, value in expected.items()}, rel=1e-4, abs=1e-7)
    weights = {"labelled": 1.0, "prototypes": 1.0, "contrastive": 0.1, "agreement": 1.0, "unlabelled": 1.0}
    assert {key: weight for key, (weight, _) in terms.terms.items()} == {key: weights[key] for key in expected}
    total = sum((weights[key] * value for key, value in expected.items()), start=torch.zeros(()))
    ours = torch.autograd.grad(terms.total, list(model.parameters()))
    for mine, theirs in zip(ours, torch.autograd.grad(total, list(twin.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_a_warm_up_has_no_pseudo_labels_and_they_come_by_and_by() -> None:
    model = defense(warmup_epochs=10, ramp_epochs=16.0, lambda_u=2.0)
    assert "unlabelled" not in model.loss(batch(8, 0, phase="warmup"), Clock(0)).terms
    assert model.loss(batch(8, 6), Clock(14)).terms["unlabelled"][0] == 0.5


@pytest.mark.parametrize(("norm", "budget"), [("linf", 0.1), ("l2", 1.0)])
def test_the_second_view_is_the_first_one_perturbed_within_the_budget(norm: str, budget: float) -> None:
    model, seen = trained_a_little(norms=norm).train(), []
    model.networks["main"].register_forward_hook(
        lambda module, inputs, _: seen.append(inputs[0].detach()) if module.training else None
    )
    model.loss(batch(8, 6), Clock(0))
    first, second = seen[-1].split(14)
    delta = second - first
    size = delta.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(delta)
    assert size.max() <= budget * (1 + 1e-5)
    assert size.min() > budget / 4


# --- networks cut before their last layer ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_ends_in_the_layer_that_is_cut(name: str) -> None:
    with torch.device("meta"):
        network = BACKBONES[name](7, 3, 32)
        features, head = cut_head(network)
        images = torch.empty(2, 3, 32, 32)
        seen = features.eval()(images)
        assert head.out_features == 7
        assert seen.shape == (2, head.in_features)


def test_a_cut_network_and_its_head_say_what_the_whole_one_said() -> None:
    whole = build_model("small", CLASSES, 1, 8, [0.5], [0.25], seed=0).eval()
    features, head = cut_head(build_model("small", CLASSES, 1, 8, [0.5], [0.25], seed=0).eval())
    projecting = Projecting(build_model("small", CLASSES, 1, 8, [0.5], [0.25], seed=0), heads=3, width=5).eval()
    images = batch().images
    with torch.no_grad():
        assert torch.equal(head(features(images)), whole(images))
        assert torch.equal(projecting(images), whole(images))
        logits, projected = projecting(images, project=True)
    assert torch.equal(logits, projecting(images))
    assert [tuple(z.shape) for z in projected] == [(8, 5)] * 3
    for z in projected:
        torch.testing.assert_close(z.norm(dim=1), torch.ones(8))
    assert not torch.allclose(projected[0], projected[1])


def test_a_network_without_a_linear_layer_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="must end in a linear layer"):
        cut_head(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
