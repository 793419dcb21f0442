"""Tests defenses that keep every label: ISS, adversarial training, ELR and UEraser, all based on plain training."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_erat import BUDGETS, CLASSES, batch, network_for
from torch import Tensor

from erat.attacks.norms import l2_norm
from erat.config import build
from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.data.squeeze import squeeze
from erat.defenses.at import AdversarialTraining, AdversarialTrainingOptions
from erat.defenses.base import Batch, Clock, Task
from erat.defenses.ce import CrossEntropy, CrossEntropyOptions
from erat.engine.trainer import Trainer
from erat.errors import UserError

Make = Callable[..., Any]
SAMPLES = 12


def plain(**options: Any) -> CrossEntropy:
    return CrossEntropy(CrossEntropyOptions(**(BUDGETS | options)), Task(SAMPLES, CLASSES, False, network_for))


def adversarial(**options: Any) -> AdversarialTraining:
    chosen = AdversarialTrainingOptions(**(BUDGETS | options))
    return AdversarialTraining(chosen, Task(SAMPLES, CLASSES, False, network_for))


def draws(seed: int = 0) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed))


def by_name(terms: Any) -> dict[str, float]:
    return {name: value.item() for name, (_, value) in terms.terms.items()}


# --- plain -----------------------------------------------------------------------------------------------------------


def test_plain_training_is_cross_entropy_on_weak_views() -> None:
    model, given = plain(), batch(unlabelled=0)
    view = weak_view(given.images, draws(), kind="crop", flip=False)
    expected = F.cross_entropy(model.networks["main"](view), given.labels).item()
    assert by_name(model.loss(given, Clock(0))) == pytest.approx({"ce": expected}, rel=1e-6)


# --- ISS: squeezed images --------------------------------------------------------------------------------------------


def pixels(channels: int, count: int = 5, side: int = 24) -> Tensor:
    """Make smooth shapes under noise, uint8."""
    draw = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 4, 4, generator=draw)
    smooth = F.interpolate(coarse, side, mode="bilinear")
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=draw)
    return (noisy * 255).round().clamp(0, 255).to(torch.uint8)


def through_pil(image: Tensor, quality: int) -> np.ndarray[Any, Any]:
    """Encode and decode an image of shape H, W or H, W, 3."""
    array = image.numpy()
    coded = Image.fromarray(array[0]) if len(array) == 1 else Image.merge("RGB", [Image.fromarray(c) for c in array])
    file = io.BytesIO()
    coded.save(file, format="JPEG", quality=quality)
    decoded: np.ndarray[Any, Any] = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    return decoded


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 75])
def test_jpeg_is_pil_s(channels: int, quality: int) -> None:
    given = pixels(channels)
    got = squeeze(given, "jpeg", quality=quality)
    for before, after in zip(given, got, strict=True):
        expected = through_pil(before, quality)
        assert np.array_equal(after.permute(1, 2, 0).numpy().squeeze(), expected)


def test_jpeg_of_low_quality_loses_more() -> None:
    given = pixels(3).float()
    losses = [(squeeze(pixels(3), "jpeg", quality=q).float() - given).abs().mean() for q in (10, 50, 95)]
    assert losses[0] > losses[1] > losses[2] > 0
    assert losses[0] < 30, "the image is still there"


def test_grayscale_has_three_channels_of_pil_s_luma() -> None:
    given = pixels(3)
    got = squeeze(given, "grayscale")
    assert torch.equal(got[:, 0], got[:, 1])
    assert torch.equal(got[:, 0], got[:, 2])
    for before, after in zip(given, got, strict=True):
        luma = np.asarray(Image.fromarray(before.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(after[0].numpy().astype(int) - luma.astype(int)).max() <= 1


def test_an_image_of_one_channel_is_grey_already() -> None:
    assert torch.equal(squeeze(pixels(1), "grayscale"), pixels(1))


@pytest.mark.parametrize(
    ("bits", "levels"), [(1, [0, 255]), (2, [0, 85, 170, 255]), (3, [0, 36, 73, 109, 146, 182, 219, 255])]
)
def test_few_bits_leave_evenly_spread_levels(bits: int, levels: list[int]) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    got = squeeze(every, "bits", bits=bits).flatten().int()
    assert got.unique().tolist() == levels
    nearest = torch.tensor(levels)[(every.flatten().int()[:, None] - torch.tensor(levels)).abs().argmin(1)]
    off = (got != nearest).sum()
    assert off <= len(levels), "each pixel goes to the nearest level, but for ties"
    assert (got - every.flatten().int()).abs().max() <= 128 / (2**bits - 1) + 0.5


def test_eight_bits_are_all_there_are() -> None:
    assert torch.equal(squeeze(pixels(3), "bits", bits=8), pixels(3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["none", "jpeg", "grayscale", "bits"])
def test_squeezing_keeps_shape_type_and_the_images_themselves(kind: str, channels: int) -> None:
    given = pixels(channels)
    got = squeeze(given, kind)
    assert got.shape == given.shape
    assert got.dtype == torch.uint8
    assert torch.equal(given, pixels(channels))
    assert torch.equal(squeeze(pixels(channels), kind), got)
    assert torch.equal(got, given) is (kind == "none" or (kind == "grayscale" and channels == 1))


@pytest.mark.parametrize(
    ("options", "kind", "settings"),
    [
        ({"defense.name": "iss"}, "jpeg", {"quality": 10}),
        ({"defense.name": "iss", "defense.jpeg_quality": 40}, "jpeg", {"quality": 40}),
        ({"defense.name": "iss", "defense.squeeze": "bits", "defense.bits": 3}, "bits", {"bits": 3}),
        ({"defense.name": "erat", "defense.squeeze": "bits"}, "bits", {"bits": 2}),
    ],
)
def test_training_images_are_squeezed_once_and_no_others(
    make_config: Make, make_data: Make, options: dict[str, Any], kind: str, settings: dict[str, Any]
) -> None:
    data = make_data(32)
    trainer = Trainer(make_config({"train.epochs": 1} | options), data)
    expected = squeeze(data.train.images, kind, **settings)
    assert torch.equal(trainer._train.images, expected)
    assert not torch.equal(expected, make_data(32).train.images)
    next(trainer.run())
    assert torch.equal(trainer._train.images, expected)
    for part, theirs in ((trainer._val, data.val), (trainer._test, data.test)):
        assert torch.equal(part.images, theirs.images)
    fresh = make_data(32)
    for mine, theirs in ((data.train, fresh.train), (data.val, fresh.val), (data.test, fresh.test)):
        assert torch.equal(mine.images, theirs.images)


def test_iss_learns_from_squeezed_pixels(make_config: Make, make_data: Make) -> None:
    trainer = Trainer(make_config({"defense.name": "iss", "defense.weak": "none", "train.epochs": 1}), make_data(32))
    expected = squeeze(make_data(32).train.images, "jpeg")
    for given, _ in trainer.steps(trainer.plan(Clock(0)), Clock(0)):
        assert torch.equal((given.images * 255).round().to(torch.uint8), expected[given.indices])


# --- adversarial training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("poison", "norm"),
    [
        ("up", "linf"),
        ("l2c", "linf"),
        ("aa", "linf"),
        ("uhp", "l2"),
        ("uap", "l2"),
        ("ap", "l2"),
        ("urp", "l2"),
        ("lsp", "l2"),
        ("ar", "l2"),
        ("ops", "linf"),
        ("cuda", "linf"),
        ("rem", "linf"),
        ("none", "linf"),
    ],
)
def test_the_attack_has_the_norm_of_the_poison(poison: str, norm: str) -> None:
    options: Any = build("demo", {"defense.name": "at", "corruption.data": poison}, quiet=True).defense
    assert options.norms == norm
    assert (options.epsilon_inf, options.epsilon_2) == (0.1, 1.0), "customary for the digits"
    assert (options.adversarial, options.random_start, options.consistency) == (True, True, False)
    assert (options.steps, options.step_ratio) == (7, 0.2)


def test_a_norm_that_was_said_is_kept() -> None:
    poison = {"corruption.data": "uhp", "corruption.norm": "linf", "corruption.epsilon": 0.1}
    options: Any = build("demo", {"defense.name": "at"} | poison).defense
    assert options.norms == "linf", "of the poison at hand, not of its kind"
    options = build("demo", {"defense.name": "at", "defense.norms": "linf", "corruption.data": "uhp"}).defense
    assert options.norms == "linf"


def learnt_from(model: CrossEntropy, given: Batch) -> Tensor:
    """Return the images on which a step trains."""
    seen: list[tuple[bool, Tensor]] = []
    hook = (
        model.train()
        .networks["main"]
        .register_forward_hook(lambda module, inputs, _: seen.append((module.training, inputs[0])))
    )
    model.loss(given, Clock(0))
    hook.remove()
    (images,) = [images for training, images in seen if training]
    return images


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_only_perturbed_images_are_learnt_from_and_within_their_budget(norm: str) -> None:
    model, given = adversarial(norms=norm, weak="none"), batch(unlabelled=0)
    images = learnt_from(model, given)
    assert images.shape == given.images.shape, "none is there as it was"
    delta = images - given.images
    sizes = delta.abs().flatten(1).amax(1) if norm == "linf" else l2_norm(delta)
    budget = 0.1 if norm == "linf" else 1.0
    assert sizes.max() <= budget * (1 + 1e-5)
    assert sizes.min() > budget / 2
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_loss_is_cross_entropy_after_plain_pgd_from_a_random_start() -> None:
    model, given = adversarial(), batch(unlabelled=0)
    network, random = model.networks["main"].eval(), draws()
    view = weak_view(given.images, random, kind="crop", flip=False)
    moved = (view + (2 * random.rand(8, 1, 8, 8) - 1) * 0.1).clamp(0, 1)
    for _ in range(7):
        point = moved.clone().requires_grad_(True)
        loss = F.cross_entropy(network(point), given.labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, point)
        moved = (view + (moved + 0.02 * grad.sign() - view).clamp(-0.1, 0.1)).clamp(0, 1)
    terms = model.loss(given, Clock(0))
    expected = F.cross_entropy(network(moved), given.labels)
    assert by_name(terms) == pytest.approx({"ce": expected.item()}, rel=1e-5)
    assert expected > F.cross_entropy(network(view), given.labels)
    parameters = list(model.parameters())
    theirs = torch.autograd.grad(expected, parameters)
    for mine, other in zip(torch.autograd.grad(terms.total, parameters), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_random_unless_told_otherwise(norm: str) -> None:
    still = {"norms": norm, "steps": 1, "step_ratio": 1e-9, "weak": "none"}
    given = batch(unlabelled=0)
    moved = learnt_from(adversarial(**still), given) - given.images
    assert moved.abs().flatten(1).amax(1).min() > 0.005
    again = learnt_from(adversarial(**still), batch(unlabelled=0, seed=1)) - given.images
    assert not torch.equal(moved, again)
    assert (learnt_from(adversarial(random_start=False, **still), given) - given.images).abs().max() < 1e-6


def test_without_uniform_sampling_every_norm_is_learnt_from() -> None:
    given = batch(unlabelled=0)
    model = adversarial(norms="both", uniform=False, weak="none")
    images = learnt_from(model, given)
    assert len(images) == 16
    assert (images[:8] - given.images).abs().max() <= 0.1 * (1 + 1e-5)
    assert l2_norm(images[8:] - given.images).max() <= 1 + 1e-5
    expected = F.cross_entropy(model.networks["main"](images), given.labels.repeat(2)).item()
    assert by_name(model.loss(batch(unlabelled=0), Clock(0))) == pytest.approx({"ce": expected}, rel=1e-5)


# --- ELR -------------------------------------------------------------------------------------------------------------


def test_early_learning_regularisation_by_hand() -> None:
    """From 0 on, t <- 0.7 t + 0.3 p; the loss is cross-entropy plus 3 log(1 - <p, t>), with the gradient of p only."""
    model = plain(criterion="elr", weak="none")
    given = replace(batch(unlabelled=0), indices=torch.tensor([3, 1, 0, 2, 7, 6, 5, 11]))
    network, target = model.networks["main"], torch.zeros(8, CLASSES)
    parameters = list(network.parameters())
    for _ in range(3):
        logits = network(given.images)
        probs = logits.softmax(1)
        target = 0.7 * target + 0.3 * probs.detach()
        regularisation = (1 - (probs * target).sum(1)).log().mean()
        label = F.cross_entropy(logits, given.labels)
        expected = torch.autograd.grad(label + 3 * regularisation, parameters)

        terms = model.loss(given, Clock(0))
        assert by_name(terms) == pytest.approx({"ce": label.item(), "elr": regularisation.item()}, rel=1e-4)
        assert terms.total.item() == pytest.approx((label + 3 * regularisation).item(), rel=1e-4)
        torch.testing.assert_close(model.targets[given.indices], target, rtol=1e-4, atol=1e-6)
        gradients = torch.autograd.grad(terms.total, parameters)
        for mine, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
    absent = [i for i in range(SAMPLES) if i not in given.indices.tolist()]
    assert not model.targets[absent].any()


def test_early_learning_targets_are_state_and_others_have_none() -> None:
    model = plain(criterion="elr", elr_momentum=0.5, elr_weight=0.0)
    terms = model.loss(batch(unlabelled=0), Clock(0)).terms
    assert terms["elr"][0] == 0
    assert model.state_dict()["targets"].sum() == pytest.approx(8 * 0.5, rel=1e-3)
    assert "targets" not in plain().state_dict()


def test_early_learning_needs_one_worker() -> None:
    with pytest.raises(UserError, match=r"^defense\.criterion=elr needs train\.workers=1, got 2"):
        build("demo", {"defense.name": "ce", "defense.criterion": "elr", "train.workers": 2})
    with pytest.raises(UserError, match=r"^defense\.criterion=elr needs train\.workers=1, got 2"):
        build("demo", {"defense.name": "elr", "train.workers": 2})
    build("demo", {"defense.name": "ce", "train.workers": 2})


# --- UEraser ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_worst_of_several_views_counts_for_each_image(count: int) -> None:
    model, given = plain(strong=True, worst_of=count), batch(24, 0)
    network, random = model.networks["main"].eval(), draws()
    views = torch.stack([strong_view(given.images, random, policy="cifar10") for _ in range(count)])
    with torch.no_grad():
        loss = torch.stack([F.cross_entropy(network(view), given.labels, reduction="none") for view in views])
    worst = loss.argmax(0)
    assert len(worst.unique()) == count, "each draw is someone's worst"
    expected = views[worst, torch.arange(24)]
    got = model.views.strong(given.images, draws(), network, given.labels)
    assert torch.equal(got, expected)
    assert by_name(model.loss(given, Clock(0))) == pytest.approx({"ce": loss.amax(0).mean().item()}, rel=1e-5)


def test_views_are_judged_in_eval_mode_and_the_worst_is_trained_on() -> None:
    seen: list[tuple[bool, int]] = []
    model = plain(strong=True, worst_of=3).train()
    model.networks["main"].register_forward_hook(lambda module, _, out: seen.append((module.training, len(out))))
    model.loss(batch(unlabelled=0), Clock(0))
    assert seen == [(False, 8)] * 3 + [(True, 8)]


# --- adversarial training that begins slowly -------------------------------------------------------------------------


def test_at_begins_on_clean_images_and_its_budget_grows() -> None:
    model = adversarial(warmup_epochs=2, epsilon_ramp=4.0, norms="linf")
    clocks = [Clock(0), Clock(1, 3, 4), Clock(2), Clock(3, 1, 2), Clock(4), Clock(6), Clock(9)]
    assert [model.strength(clock) for clock in clocks] == [0, 0, 0, 0.375, 0.5, 1, 1]
    assert [adversarial().strength(clock) for clock in clocks] == [1] * len(clocks), "as published"


def test_at_attacks_within_the_grown_share_of_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[float] = []
    model = adversarial(warmup_epochs=1, epsilon_ramp=2.0, norms="linf", weak="none", epsilon_inf=0.2)
    given = batch(unlabelled=0)
    model.networks["main"].register_forward_hook(
        lambda module, inputs, output: moved.append(float((inputs[0] - given.images).detach().abs().max()))
    )
    largest = []
    for clock in (Clock(0), Clock(2), Clock(3)):
        moved.clear()
        model.loss(given, clock)
        largest.append(moved[-1])
    assert largest[0] == 0
    assert 0.05 < largest[1] <= 0.1 + 1e-6
    assert 0.1 < largest[2] <= 0.2 + 1e-6


def test_the_demo_s_at_begins_slowly_and_the_paper_s_does_not() -> None:
    lengths = {16: (2, 6.0), 28: (2, 6.0), 8: (1, 3.0), 1: (0, 0.375)}
    for epochs, expected in lengths.items():
        options = build("demo", {"defense.name": "at", "train.epochs": epochs}).defense
        assert isinstance(options, AdversarialTrainingOptions)
        assert (options.warmup_epochs, options.epsilon_ramp) == expected
    for preset in ("paper", "official"):
        options = build(preset, {"defense.name": "at"}).defense
        assert isinstance(options, AdversarialTrainingOptions)
        assert (options.warmup_epochs, options.epsilon_ramp) == (0, 0)
