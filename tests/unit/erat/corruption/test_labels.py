"""Tests label noise: its rates, which class turns into which, the published instance noise, seeds."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from erat.corruption.labels import (
    GENERATORS,
    LabelNoise,
    asymmetric,
    instance_cores,
    instance_pdn,
    make_label_noise,
    symmetric,
)
from erat.data.sources import cifar, mnist
from erat.data.types import ImageSet
from erat.errors import UserError

CIFAR10_MEAN = (125, 123, 114)
KINDS_WITH_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("symmetric", {}),
    ("symmetric", {"exact": False}),
    ("symmetric", {"include_self": True}),
    ("asymmetric", {}),
    ("asymmetric", {"exact": False, "similar": {0: 1}}),
    ("instance", {"generator": "cores"}),
    ("instance", {"generator": "pdn"}),
]


def balanced(per_class: int, num_classes: int = 10) -> torch.Tensor:
    return torch.arange(num_classes).repeat(per_class)


def noisy_grey_world(count: int, channels: int = 3, size: int = 32) -> ImageSet:
    """Make images with CIFAR-10's mean colour that are noise otherwise."""
    rng = np.random.RandomState(5)
    mean = np.array(CIFAR10_MEAN[:channels])[:, None, None]
    pixels = np.clip(mean + 40 * rng.standard_normal((count, channels, size, size)), 0, 255).astype(np.uint8)
    return ImageSet(torch.from_numpy(pixels), torch.arange(count) % 10, tuple("abcdefghij"))


def three_sigma(p: float, n: int) -> float:
    return 3 * math.sqrt(p * (1 - p) / n)


def check_consistent(noise: LabelNoise, true: torch.Tensor, num_classes: int) -> None:
    assert noise.labels.dtype == torch.int64
    assert noise.labels.shape == true.shape
    assert int(noise.labels.min()) >= 0
    assert int(noise.labels.max()) < num_classes
    assert noise.rate == pytest.approx((noise.labels != true).double().mean().item(), abs=1e-12)
    assert noise.transition.dtype == torch.float64
    assert noise.transition.shape == (num_classes, num_classes)
    torch.testing.assert_close(noise.transition.sum(1), torch.ones(num_classes, dtype=torch.float64))
    for k in range(num_classes):
        given = torch.bincount(noise.labels[true == k], minlength=num_classes).double()
        torch.testing.assert_close(noise.transition[k], given / given.sum())


@pytest.mark.parametrize(("kind", "options"), KINDS_WITH_OPTIONS)
@pytest.mark.parametrize("rate", [0.2, 0.6, 1.0])
def test_every_kind_reports_what_it_did(kind: str, options: dict[str, Any], rate: float) -> None:
    images = noisy_grey_world(1000, size=8)
    noise = make_label_noise(kind, images, rate=rate, seed=3, **options)
    check_consistent(noise, images.labels, 10)
    assert noise.rate > 0


@pytest.mark.parametrize(("kind", "options"), KINDS_WITH_OPTIONS)
def test_a_seed_fixes_the_labels_and_global_generators_stay_out(kind: str, options: dict[str, Any]) -> None:
    images = noisy_grey_world(500, size=8)
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index, union-attr]
    first = make_label_noise(kind, images, rate=0.4, seed=11, **options)
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])  # type: ignore[index]
    assert torch.equal(before[1], torch.get_rng_state())
    np.random.seed(2)
    torch.manual_seed(2)
    again = make_label_noise(kind, images, rate=0.4, seed=11, **options)
    other = make_label_noise(kind, images, rate=0.4, seed=12, **options)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    assert torch.equal(images.labels, torch.arange(500) % 10), "the true labels are left alone"


def test_symmetric_exact_count_and_uniform_targets() -> None:
    true = balanced(1000)
    noise = symmetric(true, 10, 0.6, seed=0)
    assert int((noise.labels != true).sum()) == 6000
    wrong = noise.transition[~torch.eye(10, dtype=torch.bool)]
    assert (wrong - 0.6 / 9).abs().max() < 4 * math.sqrt(0.067 / 1000), "90 cells, so four sigma"


def test_symmetric_bernoulli_rate() -> None:
    true = balanced(1000)
    noise = symmetric(true, 10, 0.6, seed=0, exact=False)
    assert abs(noise.rate - 0.6) < three_sigma(0.6, 10_000)
    assert noise.rate != 0.6


def test_symmetric_include_self_is_54_percent_at_60() -> None:
    for exact in (True, False):
        noise = symmetric(balanced(1000), 10, 0.6, seed=0, exact=exact, include_self=True)
        assert abs(noise.rate - 0.54) < three_sigma(0.54, 10_000)


def test_symmetric_on_two_classes_at_full_rate_swaps() -> None:
    true = balanced(10, 2)
    assert torch.equal(symmetric(true, 2, 1.0, seed=0).labels, 1 - true)


@pytest.mark.parametrize("similar", [mnist.SOURCE.facts.similar, cifar.CIFAR10.facts.similar])
def test_asymmetric_reaches_partners_only(similar: dict[int, int]) -> None:
    true = balanced(100)
    noise = asymmetric(true, 10, 0.4, seed=0, similar=similar)
    expected = torch.eye(10, dtype=torch.float64)
    for k, partner in similar.items():
        expected[k, k] -= 0.4
        expected[k, partner] += 0.4
    torch.testing.assert_close(noise.transition, expected)
    assert noise.rate == pytest.approx(0.4 * len(similar) / 10)


def test_asymmetric_without_a_map_goes_round() -> None:
    true = balanced(10, 3)
    noise = asymmetric(true, 3, 1.0, seed=0, similar=None)
    assert torch.equal(noise.labels, (true + 1) % 3)


def test_asymmetric_bernoulli_rate_per_class() -> None:
    noise = asymmetric(balanced(2000), 10, 0.4, seed=0, similar={9: 1}, exact=False)
    assert abs(noise.transition[9, 1].item() - 0.4) < three_sigma(0.4, 2000)
    assert torch.equal(noise.transition[:9], torch.eye(10, dtype=torch.float64)[:9])


def test_cifar_partners_are_the_published_ones() -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pairs = {(names[k], names[partner]) for k, partner in (cifar.CIFAR10.facts.similar or {}).items()}
    assert pairs == {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("deer", "horse"),
        ("cat", "dog"),
        ("dog", "cat"),
    }


@pytest.mark.parametrize("generator", GENERATORS)
def test_instance_noise_follows_the_rate(generator: str) -> None:
    images = noisy_grey_world(4000, size=8)
    noise = make_label_noise("instance", images, rate=0.4, seed=0, generator=generator)
    assert abs(noise.rate - 0.4) < three_sigma(0.4, 4000) + 0.001


@pytest.mark.parametrize("generator", [instance_cores, instance_pdn])
@pytest.mark.parametrize("channels", [1, 3])
def test_instance_noise_depends_on_the_image(generator: Any, channels: int) -> None:
    """Copies of one image mostly get the same wrong class, where uniform noise would spread them over nine."""
    images = noisy_grey_world(2, channels, size=8).images.repeat_interleave(500, dim=0)
    true = torch.zeros(1000, dtype=torch.int64)
    noise = generator(images, true, 10, 0.6, 4)
    for part in (noise.labels[:500], noise.labels[500:]):
        wrong = part[part != 0]
        assert torch.bincount(wrong).max() > 0.5 * len(wrong)


def test_cores_prefers_the_published_classes() -> None:
    """On CIFAR-10 nearly all wrong labels fall into class 2, then 8, 7, 6 and 9: its mean colour alone causes that."""
    images = noisy_grey_world(10_000)
    noise = instance_cores(images.images, images.labels, 10, 0.6, 0)
    counts = torch.bincount(noise.labels, minlength=10)
    assert counts.argsort(descending=True)[:5].tolist() == [2, 8, 7, 6, 9]
    assert counts[2] > 5000
    assert abs(noise.rate - 0.6) < three_sigma(0.6, 10_000)


def test_cores_draws_like_one_choice_per_image() -> None:
    """The reference is the definition, written out image by image with numpy's own `choice`."""
    images = noisy_grey_world(200, size=4)
    rng = np.random.RandomState(0)
    draws = rng.normal(0.6, 0.1, 10**6)
    flip = draws[(draws > 0) & (draws < 1)]
    weights = rng.normal(0, 1, (48, 10))
    expected = []
    for image, true, q in zip(images.images.numpy(), images.labels.tolist(), flip, strict=False):
        logits = image.transpose(1, 2, 0).reshape(-1).astype(np.float64) @ weights
        others = [k for k in range(10) if k != true]
        p = np.zeros(10)
        p[others] = q * torch.softmax(torch.from_numpy(logits[others]), 0).numpy()
        p[true] = 1 - q
        expected.append(rng.choice(10, p=p / p.sum()))
    assert instance_cores(images.images, images.labels, 10, 0.6, 0).labels.tolist() == expected


@pytest.mark.needs_cifar10
@pytest.mark.skipif("CIFAR10_ROOT" not in os.environ, reason="CIFAR10_ROOT names no folder with the real CIFAR-10")
def test_cores_golden_on_cifar10() -> None:
    config: Any = SimpleNamespace(name="cifar10", root=os.environ["CIFAR10_ROOT"], download=False)
    train, _ = cifar.CIFAR10.load(config)
    noise = make_label_noise("instance", train, rate=0.6, seed=0)
    golden = [2031, 2015, 27634, 2026, 2091, 1937, 2574, 2894, 4542, 2256]
    assert torch.bincount(noise.labels, minlength=10).tolist() == golden


@pytest.mark.parametrize("kind", ["none", "symmetric", "asymmetric", "instance"])
def test_rate_zero_changes_nothing(kind: str) -> None:
    images = noisy_grey_world(50, size=4)
    noise = make_label_noise(kind, images, rate=0.0, seed=0)
    assert torch.equal(noise.labels, images.labels)
    assert noise.labels.data_ptr() != images.labels.data_ptr(), "a result of its own"
    assert noise.rate == 0
    assert torch.equal(noise.transition, torch.eye(10, dtype=torch.float64))


def test_a_class_without_images_has_an_identity_row() -> None:
    noise = symmetric(torch.zeros(10, dtype=torch.int64), 3, 1.0, seed=0)
    assert noise.transition[0, 0] == 0
    assert torch.equal(noise.transition[1:], torch.eye(3, dtype=torch.float64)[1:])


@pytest.mark.parametrize("rate", [1.4, -0.1, float("nan")])
def test_rate_out_of_range(rate: float) -> None:
    with pytest.raises(UserError, match=rf"^corruption.rate must be in \[0, 1\], got {rate}$"):
        make_label_noise("symmetric", noisy_grey_world(20, size=4), rate=rate, seed=0)


def test_unknown_names() -> None:
    images = noisy_grey_world(20, size=4)
    with pytest.raises(UserError, match="did you mean symmetric"):
        make_label_noise("symetric", images, rate=0.1, seed=0)
    with pytest.raises(UserError, match="allowed: cores, pdn"):
        make_label_noise("instance", images, rate=0.1, seed=0, generator="xia")
