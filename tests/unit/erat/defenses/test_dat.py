"""Tests DAT: the discrepancy between two heads, and the weights that each of its updates moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from test_erat import BUDGETS, CLASSES, batch, network_for
from torch import Tensor, nn

from erat.data.augment.views import weak_view
from erat.defenses.base import Batch, Clock, Task
from erat.defenses.dat import DAT, DATOptions, discrepancy
from erat.engine.trainer import Trainer

Make = Callable[..., Any]
PARTS = ("features", "head", "rival")


def defense(**options: Any) -> DAT:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return DAT(DATOptions(**(BUDGETS | {"weak": "none"} | options)), Task(12, CLASSES, False, network_for))


def step_of(update: str) -> Batch:
    return replace(batch(unlabelled=0), update=update)


def by_name(terms: Any) -> dict[str, float]:
    return {name: value.item() for name, (_, value) in terms.terms.items()}


def logits_of(model: DAT, images: Tensor) -> tuple[Tensor, Tensor]:
    features = model.networks["features"](images)
    return model.networks["head"](features), model.networks["rival"](features)


# --- the discrepancy -------------------------------------------------------------------------------------------------

P, Q = np.array([[0.75, 0.25], [0.2, 0.8]]), np.array([[0.5, 0.5], [0.6, 0.4]])
LOGITS = torch.from_numpy(P).float().log() + 3, torch.from_numpy(Q).float().log()


def test_the_discrepancy_is_the_sum_of_both_cross_entropies() -> None:
    """Both equal the symmetric relative entropy plus both entropies."""
    crossed = -(P * np.log(Q) + Q * np.log(P)).sum(1).mean()
    by_parts = np.mean([entropy(p, q) + entropy(q, p) + entropy(p) + entropy(q) for p, q in zip(P, Q, strict=True)])
    assert crossed == pytest.approx(by_parts)
    assert discrepancy(*LOGITS).item() == pytest.approx(crossed, rel=1e-5)
    assert discrepancy(*LOGITS[::-1]).item() == pytest.approx(crossed, rel=1e-5)


def test_the_published_discrepancy_takes_a_softmax_over_the_batch_and_one_over_the_classes() -> None:
    """Relative entropies of the second softmax are summed over the batch.

    The entropies are averaged over batch and classes.
    """
    over_batch = (np.exp(x) / np.exp(x).sum(0, keepdims=True) for x in (logits.numpy() for logits in LOGITS))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in over_batch)
    divergence = sum(entropy(a, b) + entropy(b, a) for a, b in zip(p, q, strict=True))
    entropies = -(P * np.log(P + 1e-6)).mean() - (Q * np.log(Q + 1e-6)).mean()
    assert discrepancy(*LOGITS, published=True).item() == pytest.approx(divergence + entropies, rel=1e-5)


@pytest.mark.parametrize("published", [False, True])
def test_the_discrepancy_is_least_where_both_are_sure_of_the_same(published: bool) -> None:
    # Two samples of different classes, because the published form compares the samples of a batch.
    sure = torch.tensor([[20.0, 0.0], [0.0, 20.0]])
    unsure, other = torch.zeros(2, 2), sure.flip(0)
    values = [discrepancy(sure, head, published=published).item() for head in (sure, unsure, other)]
    assert values[0] == pytest.approx(0, abs=1e-4)
    assert values[0] < values[1] < values[2]
    assert discrepancy(unsure, unsure, published=published) > values[0], "agreeing is not enough"


# --- terms -----------------------------------------------------------------------------------------------------------


def test_a_fit_is_cross_entropy_of_both_heads() -> None:
    model, given = defense(weak="crop"), step_of("fit")
    first, second = logits_of(model, weak_view(given.images, given.random, kind="crop", flip=False))
    expected = {
        "head": F.cross_entropy(first, given.labels).item(),
        "rival": F.cross_entropy(second, given.labels).item(),
    }
    terms = model.loss(step_of("fit"), Clock(0))
    assert by_name(terms) == pytest.approx(expected, rel=1e-5)
    assert all(weight == 1 for weight, _ in terms.terms.values())


def test_the_head_s_update_is_its_cross_entropy_and_leaves_features_alone() -> None:
    model, given = defense(), step_of("head")
    terms = model.loss(given, Clock(0))
    expected = F.cross_entropy(logits_of(model, given.images)[0], given.labels)
    assert by_name(terms) == pytest.approx({"head": expected.item()}, rel=1e-5)
    for part in ("features", "rival"):
        parameters = list(model.networks[part].parameters())
        assert torch.autograd.grad(terms.total, parameters, allow_unused=True, retain_graph=True) == (None,) * len(
            parameters
        )
    assert all(bool(grad.abs().sum() > 0) for grad in grads(terms.total, model.networks["head"])[-2:])


def grads(total: Tensor, network: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, list(network.parameters()), retain_graph=True)


@pytest.mark.parametrize("form", ["mean", "published"])
@pytest.mark.parametrize(("update", "weight"), [("rival", -0.005), ("features", 1.0)])
def test_the_rival_raises_what_the_features_lower(update: str, weight: float, form: str) -> None:
    model, given = defense(discrepancy=form), step_of(update)
    terms = model.loss(given, Clock(0))
    expected = discrepancy(*logits_of(model, given.images), published=form == "published")
    assert by_name(terms) == pytest.approx({"discrepancy": expected.item()}, rel=1e-5)
    assert terms.terms["discrepancy"][0] == weight
    theirs = grads(weight * expected, model.networks[update])
    for mine, other in zip(grads(terms.total, model.networks[update]), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_rival_s_update_leaves_features_alone() -> None:
    model = defense()
    parameters = list(model.networks["features"].parameters())
    total = model.loss(step_of("rival"), Clock(0)).total
    assert torch.autograd.grad(total, parameters, allow_unused=True) == (None,) * len(parameters)


def test_alpha_and_beta_are_the_weights() -> None:
    model = defense(alpha=0.5, beta=2.0)
    assert model.loss(step_of("rival"), Clock(0)).terms["discrepancy"][0] == -0.5
    assert model.loss(step_of("features"), Clock(0)).terms["discrepancy"][0] == 2.0


@pytest.mark.parametrize("update", ["fit", "head", "rival", "features"])
def test_perturbed_images_stand_in_for_the_plain_ones(update: str) -> None:
    seen: list[tuple[bool, Tensor]] = []
    model, given = defense(adversarial=True, norms="both", uniform=False).train(), step_of(update)
    model.networks["features"].register_forward_hook(
        lambda module, inputs, _: seen.append((module.training, inputs[0].detach()))
    )
    model.loss(given, Clock(0))
    assert [(training, len(images)) for training, images in seen] == [(False, 16)] * 7 + [(True, 16)]
    assert 0.05 < (seen[-1][1][:8] - given.images).abs().max() <= 0.1 * (1 + 1e-5)


# --- turns -----------------------------------------------------------------------------------------------------------


def weights(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_every_other_step_fits_all_and_the_one_between_moves_part_after_part(
    make_config: Make, make_data: Make
) -> None:
    trainer = Trainer(make_config({"defense.name": "dat"}), make_data(64))
    networks = trainer.defense.networks
    before = {part: weights(networks[part]) for part in PARTS}
    moved: list[tuple[int, str, list[str]]] = []
    indices: list[Tensor] = []
    for given, _ in trainer.steps(trainer.plan(Clock(0)), Clock(0)):
        after = {part: weights(networks[part]) for part in PARTS}
        changed = [
            part for part in PARTS if any(not torch.equal(a, b) for a, b in zip(before[part], after[part], strict=True))
        ]
        if not indices or not torch.equal(given.indices, indices[-1]):
            indices.append(given.indices)
        moved.append((len(indices) - 1, given.update, changed))
        before = after
    fit, between = [("fit", list(PARTS))], [(part, [part]) for part in ("head", "rival", "features")]
    turns = fit + between + fit + between
    assert [entry[1:] for entry in moved] == turns
    assert [step for step, _, _ in moved] == [0, 1, 1, 1, 2, 3, 3, 3], "on the same batch"


def test_a_part_that_does_not_move_does_not_even_decay(make_config: Make, make_data: Make) -> None:
    trainer = Trainer(make_config({"defense.name": "dat", "train.weight_decay": 0.5}), make_data(32))
    rival = trainer.defense.networks["rival"]
    for given, _ in trainer.steps(trainer.plan(Clock(0)), Clock(0)):
        if given.update == "fit":
            before = weights(rival)
        if given.update == "head":
            assert all(torch.equal(a, b) for a, b in zip(weights(rival), before, strict=True))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_the_first_head_answers() -> None:
    model = defense().eval()
    images = batch().images
    with torch.no_grad():
        first, second = logits_of(model, images)
        assert torch.equal(model.predict(images), first)
        assert not torch.allclose(first, second)


def test_features_are_128_numbers_and_the_heads_small_networks_of_the_same_make() -> None:
    model = defense()
    assert model.networks["features"](batch().images).shape == (8, 128)
    for part in ("head", "rival"):
        kinds = [type(module) for module in model.networks[part]]  # type: ignore[union-attr, arg-type]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert [tuple(parameter.shape) for parameter in model.networks[part].parameters()] == [
            (64, 128),
            (64,),
            (64,),
            (64,),
            (CLASSES, 64),
            (CLASSES,),
        ]
