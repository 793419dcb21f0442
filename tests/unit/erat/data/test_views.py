"""Tests weak and strong views: the draws, their frequencies, per image, and the same on any number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import AutoAugment

from erat.data.augment.policies import OPERATIONS, POLICIES, SIGNED, SLOTS, UNCHANGED, draw_policy
from erat.data.augment.traced import traced_view
from erat.data.augment.views import ERASE_RATIO, ERASE_SCALE, WEAK_KINDS, crop_view, strong_view, weak_view
from erat.data.random import BatchRandom
from erat.errors import UserError

View = Callable[[Tensor, BatchRandom], Tensor]
VIEWS: dict[str, View] = {
    **{
        f"{kind}-{flip}": lambda images, random, kind=kind, flip=flip: weak_view(images, random, kind=kind, flip=flip)
        for kind in WEAK_KINDS
        for flip in (True, False)
    },
    **{policy: lambda images, random, policy=policy: strong_view(images, random, policy=policy) for policy in POLICIES},
    "ueraser": lambda images, random: strong_view(images, random, policy="ueraser"),
}


def seeded(seed: int = 0, rank: int = 0, workers: int = 1) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed), rank, workers)


def photos(n: int, channels: int = 3, size: int = 32) -> Tensor:
    """Make smooth float images on the 8-bit grid, all different."""
    coarse = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(9))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (smooth * 255).round() / 255


def assert_share(count: int, n: int, probability: float) -> None:
    """Assert that a binomial count is within four standard deviations of its mean."""
    assert abs(count - n * probability) <= 4 * math.sqrt(n * probability * (1 - probability)), (count / n, probability)


def assert_same_mean(ours: Tensor, theirs: Tensor) -> None:
    """Assert that the difference of two means is within four standard deviations."""
    ours, theirs = ours.double(), theirs.double()
    deviation = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 4 * deviation, (ours.mean(), theirs.mean())


# --- what holds of every view -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 14, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_shape_and_range_and_its_input(name: str, channels: int, size: int) -> None:
    images = photos(64, channels, size).requires_grad_()
    before = images.detach().clone()
    view = VIEWS[name](images, seeded())
    assert view.shape == images.shape
    assert view.dtype == torch.float32
    assert not view.requires_grad
    assert view.min() >= 0
    assert view.max() <= 1
    assert torch.equal(images.detach(), before)
    assert view.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", VIEWS)
def test_adversarial_images_stay_in_range(name: str) -> None:
    images = photos(64)
    perturbed = (images + (torch.rand(images.shape, generator=torch.Generator().manual_seed(3)) - 0.5) / 8).clamp(0, 1)
    view = VIEWS[name](perturbed, seeded())
    assert view.min() >= 0
    assert view.max() <= 1


@pytest.mark.parametrize("name", VIEWS)
def test_every_image_of_a_batch_has_its_own_draw(name: str) -> None:
    same = photos(1).expand(64, -1, -1, -1)
    different = VIEWS[name](same, seeded()).flatten(1).unique(dim=0)
    assert len(different) > 10


@pytest.mark.parametrize("name", VIEWS)
def test_equal_generators_give_equal_views(name: str) -> None:
    images = photos(32)
    assert torch.equal(VIEWS[name](images, seeded(4)), VIEWS[name](images, seeded(4)))
    assert not torch.equal(VIEWS[name](images, seeded(4)), VIEWS[name](images, seeded(5)))


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_workers_together_see_the_views_of_one_worker(name: str, workers: int) -> None:
    images = photos(24)
    alone = seeded(6)
    together = [seeded(6, rank, workers) for rank in range(workers)]
    for _ in range(2):  # the second round shows that the generators remain equal
        parts = [VIEWS[name](part, random) for part, random in zip(images.chunk(workers), together, strict=True)]
        torch.testing.assert_close(torch.cat(parts), VIEWS[name](images, alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", VIEWS)
def test_an_empty_batch_has_an_empty_view(name: str) -> None:
    assert VIEWS[name](photos(4)[:0], seeded()).shape == (0, 3, 32, 32)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_on_a_gpu_is_that_on_the_cpu_and_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(64)
    on_device = images.cuda()
    VIEWS[name](on_device, seeded(1))  # the first call may allocate pinned memory, which synchronises
    torch.cuda.set_sync_debug_mode("error")
    try:
        view = VIEWS[name](on_device, seeded(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert view.device.type == "cuda"
    monkeypatch.setattr("erat.data.random.ON_DEVICE", ())  # with the CPU's draws in place of the GPU's own
    view = VIEWS[name](on_device, seeded(2))
    differs = (view.cpu() - VIEWS[name](images, seeded(2))).abs() > 1.5 / 255
    assert differs.float().mean() < 1e-3


# --- the draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["rand", "randn", "randint", "bernoulli"])
def test_workers_share_the_draws_of_one_worker(draw: str) -> None:
    def call(random: BatchRandom, n: int) -> Tensor:
        match draw:
            case "randint":
                return random.randint(1000, n, 2)
            case "bernoulli":
                return random.bernoulli(0.3, n)
            case _:
                return getattr(random, draw)(n, 2, 3)

    alone, together = seeded(), [seeded(0, rank, 2) for rank in range(2)]
    for n in (6, 4):  # a labelled part, and an unlabelled part of another size
        parts = [call(random, n // 2) for random in together]
        assert all(len(part) == n // 2 for part in parts)
        assert torch.equal(torch.cat(parts), call(alone, n))


@pytest.mark.parametrize("draw", ["rand", "randn", "randint", "bernoulli"])
def test_a_device_draws_for_itself_what_workers_share(draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that makes its own draws takes a key from the stream; the CPU stands for it here."""
    monkeypatch.setattr("erat.data.random.ON_DEVICE", ("cpu",))

    def call(random: BatchRandom, n: int) -> Tensor:
        match draw:
            case "randint":
                return random.randint(1000, n, 2, device=torch.device("cpu"))
            case "bernoulli":
                return random.bernoulli(0.3, n)
            case _:
                return getattr(random, draw)(n, 2, 3)

    alone, together = seeded(), [seeded(0, rank, 2) for rank in range(2)]
    for n in (6, 4):
        parts = [call(random, n // 2) for random in together]
        assert torch.equal(torch.cat(parts), call(alone, n))
    streams = [random._generator.get_state() for random in (alone, *together)]
    few = seeded()
    for _ in range(2):
        torch.randint(2**63 - 1, (), generator=few._generator)
    assert all(torch.equal(stream, few._generator.get_state()) for stream in streams), "a key a draw, however large"


def test_a_device_s_draws_differ_from_draw_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erat.data.random.ON_DEVICE", ("cpu",))
    random = seeded()
    many = torch.cat([random.rand(1000) for _ in range(50)])
    assert len(many.unique()) > 49_000
    assert float(many.mean()) == pytest.approx(0.5, abs=0.01)


def test_draws_for_another_device_are_the_cpu_s() -> None:
    assert seeded().rand(3, 2, device=torch.device("meta")).device.type == "meta"
    assert torch.equal(seeded().rand(3, 2), torch.rand(3, 2, generator=torch.Generator().manual_seed(0)))


def test_bernoulli_knows_never_and_always() -> None:
    random = seeded()
    assert not random.bernoulli(0.0, 10_000).any()
    assert random.bernoulli(1.0, 10_000).all()
    assert_share(int(random.bernoulli(0.3, 10_000).sum()), 10_000, 0.3)


# --- weak views ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
def test_a_crop_is_a_window_of_the_padded_image(flip: bool) -> None:
    n, height, width = 600, 16, 24
    image = torch.arange(1.0, 2 * height * width + 1).view(2, height, width) / (2 * height * width)
    views = weak_view(image.expand(n, -1, -1, -1), seeded(), kind="crop", flip=flip)
    pad_y, pad_x = height // 8, width // 8
    seen = torch.zeros(n, dtype=torch.int64)
    counts = []
    for source in (image, image.flip(-1)) if flip else (image,):
        padded = torch.nn.functional.pad(source, (pad_x, pad_x, pad_y, pad_y))
        for top in range(2 * pad_y + 1):
            for left in range(2 * pad_x + 1):
                equal = (views == padded[:, top : top + height, left : left + width]).flatten(1).all(dim=1)
                seen += equal
                counts.append(int(equal.sum()))
    assert (seen == 1).all()
    expected = n / len(counts)
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    degrees = len(counts) - 1
    assert abs(chi_square - degrees) < 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_mirrored_only_if_asked(flip: bool) -> None:
    n = 4000
    ramp = torch.linspace(0.5, 1, 16).expand(n, 1, 16, 16)
    views = weak_view(ramp, seeded(), kind="erase", flip=flip)
    mirrored = ((views == ramp.flip(-1)) | (views == 0)).flatten(1).all(dim=1)
    straight = ((views == ramp) | (views == 0)).flatten(1).all(dim=1)
    assert (mirrored ^ straight).all()
    assert_share(int(mirrored.sum()), n, 0.5 if flip else 0.0)


def test_erased_rectangles_are_those_of_torchvision() -> None:
    n, size = 6000, 32
    erased = weak_view(torch.ones(n, 1, size, size), seeded(), kind="erase", flip=False)[:, 0] == 0
    rows, columns = erased.any(dim=2), erased.any(dim=1)
    touched = rows.any(dim=1)
    assert_share(int(touched.sum()), n, 0.5)
    rows, columns = rows[touched].long(), columns[touched].long()
    tall, wide, area = rows.sum(1), columns.sum(1), erased[touched].sum(dim=(1, 2))
    assert torch.equal(tall * wide, area), "what is erased is one full rectangle"
    torch.manual_seed(0)  # the reference draws from torch's global generator
    image = torch.ones(1, size, size)
    reference = [RandomErasing.get_params(image, ERASE_SCALE, ERASE_RATIO, [0.0])[:4] for _ in range(3000)]
    top, left, their_tall, their_wide = torch.tensor(reference).unbind(1)
    for ours, theirs in (
        (tall, their_tall),
        (wide, their_wide),
        (area, their_tall * their_wide),
        (area.double() ** 2, (their_tall * their_wide).double() ** 2),
        ((tall / wide).log(), (their_tall / their_wide).log()),
        (rows.argmax(1), top),
        (columns.argmax(1), left),
        (rows.argmax(1) + tall == size, top + their_tall == size),  # touches the lower border
    ):
        assert_same_mean(ours, theirs)
    assert tall.max() < size
    assert wide.max() < size


def test_erased_pixels_take_the_fill_and_others_stay() -> None:
    images = photos(200)
    views = weak_view(images, seeded(), kind="erase", flip=False, fill=0.25)
    changed = (views != images).any(dim=1)
    assert changed.any()
    assert (views.movedim(1, -1)[changed] == 0.25).all()


# --- strong views -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_drawn_with_their_probabilities(policy: str) -> None:
    n = 50_000
    draws = draw_policy(seeded(), n, policy, 32, 32)
    kinds = len(POLICIES[policy])
    assert kinds == (6 if policy == "digits" else 25)
    counts = torch.bincount(draws.subpolicy, minlength=kinds)
    chi_square = float(((counts - n / kinds) ** 2 / (n / kinds)).sum())
    assert abs(chi_square - (kinds - 1)) < 4 * math.sqrt(2 * (kinds - 1))
    for number, steps in enumerate(POLICIES[policy]):
        members = draws.subpolicy == number
        applied = draws.operations[members] != UNCHANGED
        for slot, (name, probability, _) in enumerate(steps):
            operations = draws.operations[members, slot][applied[:, slot]]
            assert (operations == OPERATIONS.index(name)).all()
            assert_share(int(applied[:, slot].sum()), len(applied), probability)
        both = steps[0][1] * steps[1][1]
        assert_share(int(applied.all(dim=1).sum()), len(applied), both)


@pytest.mark.parametrize("policy", POLICIES)
def test_signs_are_fair_where_there_are_any(policy: str) -> None:
    draws = draw_policy(seeded(1), 50_000, policy, 32, 32)
    for number, steps in enumerate(POLICIES[policy]):
        for slot, (name, _, index) in enumerate(steps):
            magnitudes = draws.magnitudes[draws.subpolicy == number, slot]
            assert len(magnitudes.abs().unique()) == 1
            if name in SIGNED and index:
                assert_share(int((magnitudes < 0).sum()), len(magnitudes), 0.5)
            else:
                assert (magnitudes >= 0).all()


EXACT = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate", "posterize", "solarize", "equalize", "invert"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_strong_view_is_what_torchvision_makes_of_the_same_draws(policy: str, channels: int) -> None:
    images = photos(150, channels)
    views = strong_view(images, seeded(7), policy=policy) * 255
    draws = draw_policy(seeded(7), len(images), policy, 32, 32)
    theirs = AutoAugment()
    names = {name.lower(): name for name in theirs._AUGMENTATION_SPACE}
    compared_exactly = 0
    for image, view, operations, magnitudes in zip(images, views, draws.operations, draws.magnitudes, strict=True):
        expected = (image * 255).round().to(torch.uint8)
        applied = [(OPERATIONS[operations[s]], float(magnitudes[s])) for s in range(SLOTS) if operations[s] < UNCHANGED]
        for name, magnitude in applied:
            expected = theirs._apply_image_or_video_transform(
                expected, names[name.replace("_", "")], magnitude, theirs.interpolation, theirs._fill
            )
        difference = (view.round() - expected).abs()
        if all(name in EXACT for name, _ in applied):
            compared_exactly += 1
            assert difference.max() == 0, applied
        elif len(applied) == 1:
            assert difference.max() <= 1, applied
        else:  # a second operation may magnify a level, or move it over a threshold in a few pixels
            assert difference.median() <= 3, applied
    assert compared_exactly > 20


@pytest.mark.parametrize("bad", ["erasing", ""])
def test_unknown_names_are_named(bad: str) -> None:
    with pytest.raises(UserError, match="allowed: crop, erase"):
        weak_view(photos(2), seeded(), kind=bad, flip=False)
    with pytest.raises(UserError, match="allowed: cifar10, digits, imagenet, svhn"):
        strong_view(photos(2), seeded(), policy=bad)


# --- views with a gradient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_traced_view_is_the_strong_view_of_the_same_draws(policy: str, channels: int) -> None:
    images = photos(200, channels)
    expected = strong_view(images, seeded(), policy=policy)
    torch.testing.assert_close(traced_view(images, seeded(), policy=policy), expected, rtol=0, atol=1e-5)
    assert torch.equal(crop_view(images, seeded(), flip=True), weak_view(images, seeded(), kind="crop", flip=True))


@pytest.mark.parametrize("view", ["digits", "crop"])
def test_the_gradient_of_a_view_that_moves_pixels_leads_each_back_to_where_it_was(view: str) -> None:
    """Such a view is linear in the image: its gradient, times the image, is what was asked of the view."""
    images = photos(100, 1, 14).requires_grad_(True)
    seen = crop_view(images, seeded(), flip=True) if view == "crop" else traced_view(images, seeded(), policy=view)
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(5))
    (back,) = torch.autograd.grad((seen * weights).sum(), images)
    torch.testing.assert_close((back * images).flatten(1).sum(1), (seen * weights).flatten(1).sum(1))
    assert not torch.equal(back, weights)


@pytest.mark.parametrize("operation", ["invert", "solarize", "brightness", "equalize"])
def test_the_gradient_turns_its_sign_where_a_pixel_is_inverted(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other operations pass it on, though one that rounds to levels has none of its own."""
    alone = f"{operation} alone"
    monkeypatch.setitem(POLICIES, alone, (((operation, 1.0, 5), ("invert", 0.0, None)),))
    images = photos(20, 3, 20).requires_grad_(True)
    seen = traced_view(images, seeded(), policy=alone)
    (back,) = torch.autograd.grad(seen.sum(), images)
    inverted = torch.full_like(images, operation == "invert", dtype=torch.bool)
    if operation == "solarize":
        inverted = images >= 4 / 9
    torch.testing.assert_close(back, 1 - 2 * inverted.float())
