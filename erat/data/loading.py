"""From a configuration to a train and a test set: source, size, limit, validation split."""

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
LIMIT_SEED = 0  # `data.limit` names a data set, the same for every run seed


def load(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """The (train, test) sets that a configuration names, at the size it asks for.

    Args:
        config: `name` picks the source, `limit` thins the training set, `image_size` resizes both.

    Raises:
        UserError: unknown source; files missing; fewer than two classes; a limit or size out of range; other images
            than those of `config.fingerprint`.
    """
    train, test, _ = load_parts(config)
    return train, test


def load_parts(config: DataConfig) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    """(train, test, images whose labels are trusted; none where the source has none). As `load` otherwise."""
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
    """At most `limit` images, as equally many of each class as there are, in their old order.

    A smaller limit's images are among a larger one's.

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
    """Class counts that sum to `total` <= sum(sizes), at most `sizes`, and otherwise as equal as they can be."""
    level = 0
    while np.minimum(sizes, level + 1).sum() <= total:
        level += 1
    counts = np.minimum(sizes, level)
    larger = np.flatnonzero(sizes > level)
    counts[larger[: total - counts.sum()]] += 1
    return counts


def resize(images: ImageSet, size: int) -> ImageSet:
    """The same set at size x size pixels, rounded to 8 bit.

    Shrinking averages areas, so that a whole factor is exactly mean pooling; growing interpolates bilinearly.

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
    at least one training image, so that tiny classes may leave it smaller. One's own images (those with `positions`)
    are divided by their content instead, each held out with probability `fraction`: added files move none of the old.

    Args:
        fraction: share of the images to hold out, in [0, 1).
        seed: of the draw; the global generators are not touched.

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
    # Drawn anew from each position: which images are for testing was decided by the positions themselves.
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
    """Sorted indices on the device that the set lives on."""
    return torch.from_numpy(np.sort(indices)).to(images.labels.device)
