"""Tests accuracy against budget: where it can be computed, its order, and what of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from erat.attacks.ensemble import NORMS, standard_ensemble
from erat.attacks.threats import THREATS
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense, Predicting
from erat.losses import label_margin
from erat.robustness import curve
from erat.robustness.curve import ATTACKS, Condition, Evaluation, Protocol, Work, evenly_spaced

SIZES = {
    "linf": (0.02, 0.1, 0.4),
    "l2": (0.1, 0.5, 3.0),
    "l1": (0.3, 2.0, 20.0),
    "l0": (1.0, 4.0, 30.0),
    "ssim": (0.01, 0.1, 0.6),
    "wasserstein": (0.05, 0.3, 2.0),
}


class Linear(nn.Module):
    """Stands for a defense whose logits are linear in the image, with the class means as weights."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__()
        pixels = to_float(images.images).flatten(1)
        weights = torch.stack([pixels[images.labels == k].mean(0) for k in range(images.num_classes)])
        self.weights = nn.Parameter(weights)

    def predict(self, images: Tensor) -> Tensor:
        """Return the negative squared distances to the class means, but for the norm of the image."""
        return images.flatten(1) @ self.weights.T - self.weights.square().sum(1) / 2


@pytest.fixture
def images(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(60, seed=3)


def run(images: ImageSet, protocol: Protocol, **more: Any) -> dict[Condition, Tensor]:
    defense = Linear(images)
    wrong = defense.predict(to_float(images.images)).argmax(1) != images.labels
    return Evaluation(cast(Defense, defense), images, protocol, **more).fooled(wrong)


def test_every_threat_model_is_here() -> None:
    assert SIZES.keys() == THREATS.keys()


@pytest.mark.slow
def test_budgets_and_attacks_only_add_to_what_is_fooled(images: ImageSet) -> None:
    protocol = Protocol(SIZES, ("pgd", "apgd"))
    found = run(images, protocol)
    assert list(found) == [condition for threat in SIZES for condition in protocol.conditions(threat)]
    for threat, sizes in SIZES.items():
        for attack in protocol.attacks:
            masks = [found[Condition(threat, size, attack)] for size in sizes]
            assert all((small <= large).all() for small, large in pairwise(masks))
            assert masks[-1].double().mean() > 0.9 > masks[0].double().mean(), "there is something to measure"
        assert all((found[Condition(threat, s, "pgd")] <= found[Condition(threat, s, "apgd")]).all() for s in sizes)


def test_between_two_classes_of_a_linear_network_linf_is_exact(make_images: Callable[..., ImageSet]) -> None:
    """An image is fooled within epsilon if its margin is below epsilon times the l_1 norm of the weights.

    No pixel comes near 0 or 1, so that the box plays no part.
    """
    images = make_images(80, classes=2, seed=3, signal=12.0)
    images = replace(images, images=images.images.clamp(40, 215))
    defense = Linear(images)
    logits = defense.predict(to_float(images.images))
    slope = (defense.weights[1] - defense.weights[0]).abs().sum()
    needed = (-label_margin(images.labels, logits) / slope).detach()
    budget = float(needed.clamp_min(0).median()) + 0.002
    assert 0.002 < budget < 40 / 255
    found = run(images, Protocol({"linf": (budget,)}, ("pgd", "apgd")))
    clear = (needed - budget).abs() > 0.01 * budget
    assert clear.sum() > 70
    for mask in found.values():
        assert torch.equal(mask[clear], (needed < budget)[clear])


def test_what_leaves_the_budget_does_not_count(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "pgd", lambda network, clean, *_, **__: 1 - clean)
    found = run(images, Protocol({"linf": (0.01,), "l0": (2.0,)}, ("pgd",)))
    wrong = Linear(images).predict(to_float(images.images)).argmax(1) != images.labels
    assert all(torch.equal(mask, wrong) for mask in found.values())


def test_it_goes_on_after_what_is_known(images: ImageSet) -> None:
    protocol, kept = Protocol({"l2": SIZES["l2"], "l0": SIZES["l0"]}, ("pgd", "apgd")), dict[str, Tensor]()
    whole = run(images, protocol, keep=lambda condition, mask: kept.update({str(condition): mask}))
    assert len(kept) == len(whole) == 12
    half, again = dict(list(kept.items())[:5]), list[str]()
    rest = run(images, protocol, known=half, keep=lambda condition, _: again.append(str(condition)))
    assert again == list(kept)[5:]
    assert all(torch.equal(rest[condition], mask) for condition, mask in whole.items())


def test_work_adds_up(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "ATTACK_BATCH", 25)
    told: list[tuple[int, int, float, float]] = []

    def tell(work: Work) -> None:
        told.append((work.done, work.total, work.spent, work.ahead))

    run(images, Protocol({"linf": SIZES["linf"], "l1": SIZES["l1"]}, ("pgd",)), tell=tell)
    assert [done for done, *_ in told] == list(range(1, 19))
    assert {total for _, total, *_ in told} == {18}
    everything = [spent + ahead for *_, spent, ahead in told]
    assert everything == sorted(everything, reverse=True), "an upper bound, which falls as images are fooled"
    assert told[-1][3] == 0


def test_the_ensemble_gets_what_is_left(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float, int, int]] = []

    def still(network: nn.Module, clean: Tensor, labels: Tensor, *, norm: str, epsilon: float, **more: int) -> Tensor:
        asked.append((norm, epsilon, len(clean), more["num_classes"]))
        return clean

    monkeypatch.setattr(curve, "standard_ensemble", still)
    budgets = {"l1": (0.3, 2.0), "l0": (2.0,)}
    found = run(images, Protocol(budgets, ATTACKS))
    assert Condition("l0", 2.0, "standard") not in found
    left = {size: int((~found[Condition("l1", size, "apgd")]).sum()) for size in budgets["l1"]}
    assert asked == [("l1", size, left[size], 4) for size in budgets["l1"]]
    assert all(torch.equal(found[Condition("l1", s, "apgd")], found[Condition("l1", s, "standard")]) for s in left)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [(norm, SIZES[norm][-1]) for norm in NORMS])
def test_the_ensemble_stays_within_its_budget(images: ImageSet, norm: str, epsilon: float) -> None:
    network, clean = Predicting(cast(Defense, Linear(images))), to_float(images.images)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    moved = standard_ensemble(
        network, clean, images.labels, norm=norm, epsilon=epsilon, num_classes=4, seed=0, steps=10
    )
    size = THREATS[norm].size(moved.clamp(0, 1) - clean, clean)
    assert 0 < size.max() <= epsilon * (1 + curve.TOLERANCE)
    assert (network(moved).argmax(1) != images.labels).any()


def test_few_images_are_of_every_class(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(60, classes=3)
    by_class = images.take(images.labels.argsort(stable=True))
    assert torch.bincount(evenly_spaced(by_class, 12).labels).tolist() == [4, 4, 4]
    assert len(evenly_spaced(images, 1000)) == 60
