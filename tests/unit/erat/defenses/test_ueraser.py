"""Tests UEraser-max: of several views of an image the one of largest loss is trained on, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_erat import CLASSES, batch, network_for
from torch import Tensor, nn

from erat.config import build
from erat.data.augment.views import strong_view, weak_view
from erat.data.jpeg import jpeg
from erat.data.random import BatchRandom
from erat.defenses.base import Batch, Clock, Task
from erat.defenses.options import UEraserOptions
from erat.defenses.ueraser import UEraser
from erat.errors import UserError
from erat.models.small import small

IMAGES = 24


def defense(**options: Any) -> UEraser:
    return UEraser(UEraserOptions(**options), Task(IMAGES, CLASSES, False, network_for))


def draws(seed: int = 0, rank: int = 0, workers: int = 1) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed), rank, workers)


def losses_of(model: UEraser, given: Batch, count: int) -> Tensor:
    """Return the losses of the views of a step, (count, N), judged one by one."""
    views = model.several(given.images, draws(), count).chunk(count)
    with torch.no_grad():
        found = [F.cross_entropy(model.networks["main"](view), given.labels, reduction="none") for view in views]
    return torch.stack(found)


@pytest.mark.parametrize("quality", [0, 10])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_loss_is_that_of_each_image_s_worst_view(count: int, quality: int) -> None:
    model, given = defense(worst_of=count, view_jpeg=quality), batch(IMAGES, 0)
    losses = losses_of(model, given, count)
    assert len(losses.argmax(0).unique()) == count, "each draw is someone's worst"
    terms = model.loss(given, Clock(0))
    assert terms.figures().keys() == {"total", "ce"}
    assert terms.total.item() == pytest.approx(losses.amax(0).mean().item(), rel=1e-5)


def test_the_gradient_is_that_of_the_worst_views_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = defense(), batch(IMAGES, 0)
    worst = losses_of(model, given, 5).argmax(0)
    views = model.several(given.images, draws(), 5).requires_grad_()
    monkeypatch.setattr(model, "several", lambda *_: views)
    parameters = list(model.parameters())
    of_views, *of_weights = torch.autograd.grad(model.loss(given, Clock(0)).total, [views, *parameters])
    moved = of_views.flatten(1).abs().sum(1).view(5, IMAGES) > 0
    assert torch.equal(moved, F.one_hot(worst, 5).T.bool())
    # It is the gradient of training on these views and no other.
    chosen = views.detach().view(5, IMAGES, 1, 8, 8)[worst, torch.arange(IMAGES)]
    alone = F.cross_entropy(model.networks["main"](chosen), given.labels)
    for mine, theirs in zip(of_weights, torch.autograd.grad(alone, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_of_views_of_equal_loss_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = defense(), batch(IMAGES, 0)
    views = given.images.repeat(5, 1, 1, 1).requires_grad_()
    monkeypatch.setattr(model, "several", lambda *_: views)
    (grads,) = torch.autograd.grad(model.loss(given, Clock(0)).total, views)
    assert torch.equal((grads.flatten(1).abs().sum(1) > 0).view(5, IMAGES).sum(0), torch.ones(IMAGES).long())


def test_all_views_are_made_of_one_weak_view_and_each_differently() -> None:
    given, random = batch(IMAGES, 0).images, draws(1)
    weak = weak_view(given, random, kind="crop", flip=False)
    expected = strong_view(weak.repeat(3, 1, 1, 1), random, policy="ueraser")
    found = defense().several(given, draws(1), 3)
    assert torch.equal(found, expected)
    first, second, _ = found.chunk(3)
    assert not torch.equal(first, second)
    plain = defense(strong=False, worst_of=1).several(given, draws(1), 1)
    assert torch.equal(plain, weak), "weak views alone where strong ones are off"


@pytest.mark.parametrize("strong", [True, False])
def test_jpeg_comes_after_the_augmentations(strong: bool) -> None:
    given = batch(IMAGES, 0).images
    without = defense(strong=strong, worst_of=1).several(given, draws(2), 1)
    found = defense(strong=strong, worst_of=1, view_jpeg=10).several(given, draws(2), 1)
    assert torch.equal(found, jpeg(without, 10))
    assert not torch.equal(found, without)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_together_make_the_views_of_one(workers: int) -> None:
    given, model = batch(IMAGES, 0).images, defense()
    parts = [
        model.several(part, draws(3, rank, workers), 4).view(4, -1, 1, 8, 8)
        for rank, part in enumerate(given.chunk(workers))
    ]
    together = model.several(given, draws(3), 4).view(4, -1, 1, 8, 8)
    torch.testing.assert_close(torch.cat(parts, dim=1), together, rtol=0, atol=1e-6)


def test_one_pass_in_training_mode_judges_and_trains() -> None:
    seen: list[tuple[bool, int]] = []
    model = defense(worst_of=3).train()
    model.networks["main"].register_forward_hook(lambda module, _, out: seen.append((module.training, len(out))))
    model.loss(batch(unlabelled=0), Clock(0))
    assert seen == [(True, 24)]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_images_with_batch_statistics(channels: int) -> None:
    task = Task(IMAGES, CLASSES, True, lambda _: small(CLASSES, channels, 8))
    model = UEraser(UEraserOptions(view_jpeg=10), task).train()
    images = torch.rand(IMAGES, channels, 8, 8, generator=torch.Generator().manual_seed(channels))
    given = Batch(images, torch.arange(IMAGES) % CLASSES, torch.arange(IMAGES), images[:0], torch.arange(0), draws())
    total = model.loss(given, Clock(0)).total
    total.backward()  # type: ignore[no-untyped-call]
    assert total.isfinite()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert int(norm.num_batches_tracked or 0) == 1, "statistics are of all views at once"


def test_the_worst_counts_in_the_first_epochs_and_one_view_after_them() -> None:
    model = defense(worst_epochs=2)
    assert [model.count(Clock(epoch, 3, 4)) for epoch in range(4)] == [5, 5, 1, 1]
    assert {defense().count(Clock(epoch)) for epoch in (0, 60, 199)} == {5}
    seen: list[int] = []
    model.networks["main"].register_forward_hook(lambda module, _, out: seen.append(len(out)))
    for epoch in (1, 2):
        model.loss(batch(unlabelled=0), Clock(epoch))
    assert seen == [40, 8]


@pytest.mark.parametrize("preset", ["demo", "medium", "paper", "official"])
@pytest.mark.parametrize(
    ("name", "worst_of", "view_jpeg"), [("ueraser_max", 5, 0), ("ueraser_lite", 1, 0), ("augment_jpeg", 1, 10)]
)
def test_what_the_names_stand_for(preset: str, name: str, worst_of: int, view_jpeg: int) -> None:
    options: Any = build(preset, {"defense.name": name}).defense
    assert isinstance(options, UEraserOptions)
    assert (options.strong, options.policy, options.weak) == (True, "ueraser", "crop")
    assert (options.worst_of, options.view_jpeg, options.worst_epochs) == (worst_of, view_jpeg, None)
    assert options.squeeze == "none", "images are not compressed before training"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"worst_of": 1, "worst_epochs": 3}, r"^defense\.worst_epochs=3 needs defense\.worst_of above 1, got 1$"),
        ({"strong": False}, r"^defense\.worst_of=5 needs defense\.strong=true, got false$"),
        ({"view_jpeg": 101}, r"^defense\.view_jpeg: .*100, got 101$"),
        ({"worst_of": 0}, r"^defense\.worst_of: .*1, got 0$"),
        ({"policy": "plasma"}, r"^defense\.policy: .*'ueraser', got 'plasma'$"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build("demo", {"defense.name": "ueraser_max"} | {f"defense.{key}": value for key, value in given.items()})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 900
