"""Loads the training and test set that a configuration names: source, size, limit, validation split."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from erat.data.fingerprint import ListedSource, of_arrays, read_parts, require
from erat.data.types import ImageSet
from erat.errors import UserError
from erat.registry import DATASETS
from erat.seeding import derive

if TYPE_CHECKING:
    from erat.options import DataConfig

RESIZE_CHUNK = 4096  # images that are held as float32 at a time
LIMIT_SEED = 0  # fixed, because `data.limit` defines a data set, which must be the same for every seed of a run


def load(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Load the (train, test) sets that a configuration names, at the size that it asks for.

    Args:
        config: `name` chooses the source, `limit` reduces the training set, `image_size` resizes both.

    Raises:
        UserError: the source is unknown, files are missing, there are fewer than two classes, the limit or the size is
            out of range, or the images do not have the fingerprint `config.fingerprint`.
    """
    train, test, _ = load_parts(config)
    return train, test


def load_parts(config: DataConfig) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """Load (train, test, images with trusted labels or none if the source has none); see `load`."""
    source = DATASETS[config.name]
    train, test, trusted = parts = read_parts(source, config)
    if config.fingerprint is not None and not isinstance(source, ListedSource):
        require(config, of_arrays(parts))
    if train.num_classes < 2:
        raise UserError(f"data set {config.name!r} must have at least 2 classes, got {train.num_classes}")
    assert train.class_names == test.class_names, "train and test share their classes"
    assert train.channels == test.channels, "train and test share their channels"
    if config.limit is not None:
        train = limit_balanced(train, config.limit)
    if config.image_size is not None:
        train, test = resize(train, config.image_size), resize(test, config.image_size)
        trusted = trusted and resize(trusted, config.image_size)
    return train, test, trusted


def limit_balanced(images: ImageSet, limit: int) -> ImageSet:
    """Take at most `limit` images in their old order, with class sizes as equal as possible.

    The images of a smaller limit are among those of a larger limit.

    Raises:
        UserError: `limit` is below the number of classes.
    """
    if limit < images.num_classes:
        raise UserError(f"data.limit must be at least {images.num_classes} (one image a class), got {limit}")
    if limit >= len(images):
        return images
    labels = _labels_numpy(images)
    keep = _level(np.bincount(labels, minlength=images.num_classes), limit)
    rng = np.random.RandomState(LIMIT_SEED)
    kept = [rng.permutation(np.flatnonzero(labels == k))[: keep[k]] for k in range(images.num_classes)]
    return images.take(_indices(np.concatenate(kept), images))


def _level(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return class counts, none above its `sizes`, that sum to `total` <= sum(sizes) and are as equal as possible."""
    level = 0
    while np.minimum(sizes, level + 1).sum() <= total:
        level += 1
    counts = np.minimum(sizes, level)
    larger = np.flatnonzero(sizes > level)
    counts[larger[: total - counts.sum()]] += 1
    return counts


def resize(images: ImageSet, size: int) -> ImageSet:
    """Resize a set to size x size pixels, rounded to 8 bits.

    Shrinking averages areas, so that a whole factor is exactly mean pooling; enlarging interpolates bilinearly.

    Raises:
        UserError: `size` is not positive.
    """
    if size < 1:
        raise UserError(f"data.image_size must be at least 1, got {size}")
    height, width = images.images.shape[-2:]
    if (height, width) == (size, size):
        return images
    shrinks = size <= min(height, width)
    chunks = []
    for start in range(0, len(images), RESIZE_CHUNK):
        pixels = images.images[start : start + RESIZE_CHUNK].float()
        if shrinks:
            pixels = functional.adaptive_avg_pool2d(pixels, size)
        else:
            pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        chunks.append(pixels.round_().clamp_(0, 255).to(torch.uint8))
    return replace(images, images=torch.cat(chunks))


def split_validation(train: ImageSet, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a training set into a training and a validation part.

    The validation part has round(fraction * N) images, shared among classes by largest remainder; each class keeps
    at least one training image, so that the part may be smaller if there are tiny classes. A user's own images (those
    with `positions`) are divided by their content instead, each held out with probability `fraction`, so that added
    files do not move any of the others.

    Args:
        fraction: share of the images to hold out, in [0, 1).
        seed: the seed of the draw; the global generators are not used.

    Returns:
        (train, validation) indices, int64, sorted, disjoint, together all of `train`.

    Raises:
        UserError: `fraction` is out of range.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"val.fraction must be in [0, 1), got {fraction}")
    if train.positions is not None:
        return _split_by_content(train, train.positions, fraction, seed)
    labels = _labels_numpy(train)
    sizes = np.bincount(labels, minlength=train.num_classes)
    share = fraction * sizes
    counts = np.floor(share).astype(np.int64)
    missing = round(fraction * len(labels)) - counts.sum()
    by_remainder = np.argsort(counts - share, kind="stable")
    counts[by_remainder[: max(int(missing), 0)]] += 1
    counts = np.minimum(counts, np.maximum(sizes - 1, 0))
    rng = np.random.RandomState(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for k, count in enumerate(counts):
        held_out[rng.permutation(np.flatnonzero(labels == k))[:count]] = True
    return _indices(np.flatnonzero(~held_out), train), _indices(np.flatnonzero(held_out), train)


def _split_by_content(train: ImageSet, positions: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    # Derived anew from each position, because the positions themselves have decided which images are for testing.
    places = np.array([derive(seed, "validation", position) / 2**63 for position in positions.tolist()])
    held_out, labels = places < fraction, _labels_numpy(train)
    for k in range(train.num_classes):
        members = np.flatnonzero(labels == k)
        if len(members) and held_out[members].all():
            held_out[members[places[members] == places[members].max()]] = False
    if fraction > 0 and not held_out.any() and len(labels) > train.num_classes:
        spare = [row for row in np.argsort(places, kind="stable") if (labels == labels[row]).sum() > 1]
        held_out[spare[:1]] = True
    return _indices(np.flatnonzero(~held_out), train), _indices(np.flatnonzero(held_out), train)


def _labels_numpy(images: ImageSet) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = images.labels.cpu().numpy()
    return labels


def _indices(indices: NDArray[np.int64], images: ImageSet) -> Tensor:
    """Return sorted indices on the device of the set."""
    return torch.from_numpy(np.sort(indices)).to(images.labels.device)
