"""Tests AP and AA: what each image is moved towards or away from, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from erat.attacks.norms import l2_norm
from erat.attacks.pgd import Budget, pgd
from erat.corruption.base import Craft
from erat.corruption.samplewise import BATCH, in_batches
from erat.data.types import ImageSet
from erat.errors import UserError
from erat.losses import label_gain, label_loss
from erat.registry import CORRUPTIONS


def again(order: Craft, **changes: Any) -> Craft:
    """Return the same order with its random numbers restarted."""
    return replace(order, generator=torch.Generator().manual_seed(0), **changes)


# --- AP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 2.5), ("linf", 0.3)])
def test_ap_makes_the_source_network_say_the_next_class(
    order: Craft, source: nn.Module, norm: str, epsilon: float
) -> None:
    delta = CORRUPTIONS["ap"].perturb(
        again(order, norm=norm, epsilon=epsilon, options=CORRUPTIONS["ap"].Options().own())
    )
    answers = source(order.images + delta).argmax(1)
    assert (answers == (order.labels + 1) % 4).float().mean() > 0.9
    assert (source(order.images).argmax(1) == order.labels).float().mean() > 0.9, "which it had not said before"


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 1.0), ("linf", 0.1)])
def test_ap_is_pgd_from_the_image_in_steps_of_a_fifth(
    order: Craft, source: nn.Module, norm: str, epsilon: float
) -> None:
    delta = CORRUPTIONS["ap"].perturb(again(order, norm=norm, epsilon=epsilon, options={"steps": 13}))
    budget, towards = Budget.of(norm, epsilon, order.images), (order.labels + 1) % 4
    step_size = torch.full((60,), epsilon / 5)
    moved = pgd(source, order.images, partial(label_gain, towards), budget, steps=13, step_size=step_size)
    torch.testing.assert_close(order.images + delta, moved, rtol=0, atol=1e-6)


# --- AA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("linf", 0.1), ("l2", 0.2), ("l2", 1.0)])
def test_apgd_ce_raises_the_loss_of_every_image(order: Craft, source: nn.Module, norm: str, epsilon: float) -> None:
    options = {"attack": "apgd-ce", "steps": 20}
    delta = CORRUPTIONS["aa"].perturb(again(order, norm=norm, epsilon=epsilon, options=options))
    before, after = (label_loss(order.labels, source(images)) for images in (order.images, order.images + delta))
    assert (after > before).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_ce_starts_on_the_surface_of_the_ball(order: Craft, source: nn.Module, norm: str) -> None:
    seen: list[Tensor] = []
    source.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    grey = torch.full_like(order.images, 0.5)  # no value is clipped at 0 or 1
    CORRUPTIONS["aa"].perturb(again(order, images=grey, norm=norm, epsilon=0.3))
    start = seen[0] - grey
    size = l2_norm(start) if norm == "l2" else start.abs().flatten(1).amax(1)
    torch.testing.assert_close(size, torch.full((60,), 0.3), rtol=1e-5, atol=0)
    assert start.std(0).min() > 0, "each image from its own point"


def ensemble(order: Craft, epsilon: float, *, norm: str = "linf", wrong: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Return (delta, labels, which images the order labels wrongly) of the ensemble.

    The network cannot predict the wrong labels.
    """
    labels = order.labels.clone()
    labels[:wrong] = (labels[:wrong] + 1) % 4
    options = {"attack": "standard", "steps": 5}
    crafted = again(order, labels=labels, norm=norm, epsilon=epsilon, options=options)
    return CORRUPTIONS["aa"].perturb(crafted), labels, torch.arange(60) < wrong


@pytest.fixture
def without_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the last attack of the ensemble, which spends 5,000 queries on each image that is left."""
    monkeypatch.setattr(SquareAttack, "perturb", lambda self, x, y=None: x)


@pytest.mark.usefixtures("without_square")
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.15), ("l2", 0.8)])
def test_standard_moves_only_images_that_it_turns(order: Craft, source: nn.Module, norm: str, epsilon: float) -> None:
    delta, labels, wrong = ensemble(order, epsilon, norm=norm)
    moved = delta.flatten(1).any(1)
    assert not moved[wrong].any(), "wrong already: left clean"
    assert 0 < moved.sum() < 48, "some are turned, some are not"
    right = source(order.images + delta).argmax(1) == labels
    assert not right[moved].any()
    assert right[~moved & ~wrong].all()
    size = l2_norm(delta) if norm == "l2" else delta.abs().flatten(1).amax(1)
    assert size.max() <= epsilon * (1 + 1e-5)


@pytest.mark.usefixtures("without_square")
def test_standard_is_decided_by_its_generator_and_leaves_torch_s_own_alone(order: Craft) -> None:
    """The authors' program sets the global seed instead."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, *_ = ensemble(order, 0.15)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(ensemble(order, 0.15)[0], first)
    options = {"attack": "standard", "steps": 5}
    other = replace(order, norm="linf", epsilon=0.15, options=options, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(CORRUPTIONS["aa"].perturb(other)[12:], first[12:])


@pytest.mark.usefixtures("without_square")
def test_standard_moves_nothing_where_all_is_wrong_and_one_image_alone(order: Craft, source: nn.Module) -> None:
    assert not ensemble(order, 0.15, wrong=60)[0].any()
    one = {"images": order.images[:1], "labels": order.labels[:1]}
    options = {"attack": "standard", "steps": 5}
    delta = CORRUPTIONS["aa"].perturb(again(order, norm="l2", epsilon=2.5, options=options, **one))
    assert source(order.images[:1] + delta).argmax(1) != order.labels[:1]


@pytest.mark.parametrize("steps", [3, 50, 100])
def test_standard_reviews_step_sizes_as_often_as_its_steps_ask(
    order: Craft, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The authors' program computes its intervals from the number of steps with which it is created."""
    made: list[AutoAttack] = []
    monkeypatch.setattr(
        AutoAttack, "run_standard_evaluation", lambda self, images, *_, **__: (made.append(self), (images, None))[1]
    )
    CORRUPTIONS["aa"].perturb(again(order, options={"attack": "standard", "steps": steps}))
    (ensemble,) = made
    assert ensemble.fab.n_iter == steps
    for attack in (ensemble.apgd, ensemble.apgd_targeted):
        assert (attack.n_iter, attack.n_restarts) == (steps, 1)
        intervals = tuple(max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        assert (attack.n_iter_2, attack.n_iter_min, attack.size_decr) == intervals
    assert (ensemble.apgd_targeted.n_target_classes, ensemble.fab.n_target_classes) == (3, 3), "of four classes"


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.15), ("l2", 0.8)])
def test_the_whole_ensemble(order: Craft, source: nn.Module, norm: str, epsilon: float) -> None:
    before = torch.get_rng_state()
    delta, labels, wrong = ensemble(order, epsilon, norm=norm)
    assert torch.equal(torch.get_rng_state(), before)
    moved = delta.flatten(1).any(1)
    assert not moved[wrong].any()
    assert moved.any()
    assert torch.equal(source(order.images + delta).argmax(1) == labels, ~moved & ~wrong)


@pytest.mark.parametrize("classes", [2, 3])
def test_standard_needs_four_classes(order: Craft, classes: int) -> None:
    few = again(order, num_classes=classes, options={"attack": "standard", "steps": 3})
    with pytest.raises(
        UserError, match=rf"^corruption.attack=standard needs at least 4 classes, the set has {classes}$"
    ):
        CORRUPTIONS["aa"].perturb(few)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_every_image_is_moved_once_with_its_own_label(make_images: Callable[..., ImageSet], order: Craft) -> None:
    images = make_images(2 * BATCH + 7, seed=1)
    sizes, told = [], []

    def brighten(part: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(part))
        return part + labels.view(-1, 1, 1, 1)

    many = again(
        order,
        images=images.images.float() / 255,
        labels=images.labels,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    delta = in_batches(many, "images", brighten)
    torch.testing.assert_close(delta, images.labels.view(-1, 1, 1, 1).expand_as(delta).float())
    assert sizes == [BATCH, BATCH, 7]
    total = 2 * BATCH + 7
    assert told == [("images", BATCH, total), ("images", 2 * BATCH, total), ("images", total, total)]


@pytest.mark.parametrize("kind", ["ap", "aa"])
def test_no_image_depends_on_its_neighbours(order: Craft, kind: str) -> None:
    """The exception is AA's random starts, which are the same numbers for the first images."""
    delta = CORRUPTIONS[kind].perturb(again(order))
    alone = CORRUPTIONS[kind].perturb(again(order, images=order.images[:5], labels=order.labels[:5]))
    torch.testing.assert_close(alone, delta[:5], rtol=0, atol=1e-4)
