"""Corrupt labels: symmetric, asymmetric and instance-dependent noise, as functions of arrays and a seed.

Every draw comes from `numpy.random.RandomState`, whose streams numpy promises never to change, so one seed gives the
same noisy labels on every machine and version. The global generators are neither read nor advanced.

Symbols: N images, K classes, D = H * W * C pixels per image, kappa the requested share of wrong labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erat.data.types import ImageSet
from erat.errors import UserError, unknown_name

KINDS = ("none", "symmetric", "asymmetric", "instance")
GENERATORS = ("cores", "pdn")

FLIP_RATE_STD = 0.1  # standard deviation of the flip rates of single images around kappa
FLIP_RATE_DRAWS = 10**6  # drawn at once whatever N is, as in the published generator, which draws W after them
PROJECTION_CHUNK = 1024  # number of images that are held as float64 at a time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelNoise:
    """Given labels and their statistics against the true ones.

    Attributes:
        labels: the given (partly wrong) labels, int64 (N,), on the device of the true ones.
        rate: the realised share of wrong labels, in [0, 1].
        transition: the realised transition matrix, float64 (K, K): row k is the distribution of given labels among the
            images of true class k; a class without images has the row of the identity matrix.
    """

    labels: Tensor
    rate: float
    transition: Tensor


def make_label_noise(
    kind: str,
    images: ImageSet,
    *,
    rate: float,
    seed: int,
    exact: bool = True,
    include_self: bool = False,
    similar: Mapping[int, int] | None = None,
    generator: str = "cores",
) -> LabelNoise:
    """Corrupt the labels of a set by the named kind of noise.

    Args:
        kind: one of `KINDS`.
        images: the set with its true labels.
        rate: kappa, in [0, 1]; 0 leaves every label unchanged (the instance generators would flip some even then).
        seed: the seed of all draws, in [0, 2**32).
        exact: for symmetric and asymmetric noise: flip a fixed count instead of each label with probability `rate`.
        include_self: for symmetric noise: draw the new class from all K, so that some labels stay right.
        similar: for asymmetric noise: class -> the class it is turned into; absent classes do not change; None:
            k -> k + 1 mod K.
        generator: for instance-dependent noise: one of `GENERATORS`.

    Raises:
        UserError: the kind or generator is unknown, or `rate` is out of range.
    """
    if kind not in KINDS:
        raise unknown_name("label noise", kind, KINDS)
    if generator not in GENERATORS:
        raise unknown_name("instance noise generator", generator, GENERATORS)
    if not 0 <= rate <= 1:
        raise UserError(f"corruption.rate must be in [0, 1], got {rate}")
    labels, classes = images.labels, images.num_classes
    if kind == "none" or rate == 0:
        return noise_of(labels, _numpy(labels), classes)
    if kind == "symmetric":
        return symmetric(labels, classes, rate, seed, exact=exact, include_self=include_self)
    if kind == "asymmetric":
        return asymmetric(labels, classes, rate, seed, similar=similar, exact=exact)
    instance = instance_cores if generator == "cores" else instance_pdn
    return instance(images.images, labels, classes, rate, seed)


def symmetric(
    labels: Tensor, num_classes: int, rate: float, seed: int, *, exact: bool = True, include_self: bool = False
) -> LabelNoise:
    """Replace a share of all labels by another class, drawn uniformly.

    Args:
        labels: the true classes, int64 (N,).
        num_classes: K, at least 2.
        rate: the share of labels that are redrawn, in [0, 1].
        seed: the seed of the draws.
        exact: redraw exactly round(rate * N) labels instead of each with probability `rate`.
        include_self: redraw from all K classes (DivideMix, UNICON), so that only rate * (K - 1) / K become wrong.
    """
    rng = np.random.RandomState(seed)
    true = _numpy(labels)
    chosen = _choose(rng, np.arange(len(true)), rate, exact)
    shift = rng.randint(0 if include_self else 1, num_classes, size=len(chosen))
    given = true.copy()
    given[chosen] = (true[chosen] + shift) % num_classes
    return noise_of(labels, given, num_classes)


def asymmetric(
    labels: Tensor, num_classes: int, rate: float, seed: int, *, similar: Mapping[int, int] | None, exact: bool = True
) -> LabelNoise:
    """Turn a share of each class into the one class with which it is confused.

    Args:
        labels: the true classes, int64 (N,).
        num_classes: K, at least 2.
        rate: the share of each class that flips, in [0, 1]; the share of all labels is smaller where some classes have
            no partner.
        seed: the seed of the draws.
        similar: class -> partner; absent classes do not change; None: k -> k + 1 mod K.
        exact: flip exactly round(rate * n_k) of the n_k labels of a class instead of each with probability `rate`.
    """
    partners = {k: (k + 1) % num_classes for k in range(num_classes)} if similar is None else similar
    rng = np.random.RandomState(seed)
    true = _numpy(labels)
    given = true.copy()
    for k, partner in sorted(partners.items()):
        assert {k, partner} <= set(range(num_classes)), "partners are classes"
        given[_choose(rng, np.flatnonzero(true == k), rate, exact)] = partner
    return noise_of(labels, given, num_classes)


def instance_cores(images_NCHW: Tensor, labels: Tensor, num_classes: int, rate: float, seed: int) -> LabelNoise:
    """Draw instance-dependent noise by one projection that all classes share.

    Source: the noise generator published with Cheng et al., "Learning with Instance-Dependent Label Noise: A Sample
    Sieve Approach", ICLR 2021. The pixels stay raw and uncentred: their common mean, multiplied by W, decides into
    which few classes nearly all wrong labels fall.

    Args:
        images_NCHW: the images, uint8 (N, C, H, W).
        labels: the true classes, int64 (N,).
        num_classes: K, at least 2.
        rate: kappa, the mean of the images' flip rates before those outside (0, 1) are dropped.
        seed: the seed of the draws; the published labels were made with 0.
    """
    rng = np.random.RandomState(seed)
    true = _numpy(labels)
    flip = _flip_rates(rng, rate, len(true))
    weights_DK = rng.normal(0.0, 1.0, size=(images_NCHW[0].numel(), num_classes))
    logits = np.empty((len(true), num_classes))
    for rows, pixels in _pixel_chunks(images_NCHW, np.arange(len(true))):
        logits[rows] = pixels @ weights_DK
    return noise_of(labels, _sample(rng, logits, true, flip), num_classes)


def instance_pdn(images_NCHW: Tensor, labels: Tensor, num_classes: int, rate: float, seed: int) -> LabelNoise:
    """Draw instance-dependent noise by one projection per true class.

    Source: Xia et al., "Part-dependent Label Noise", NeurIPS 2020, Algorithm 2: q ~ N(kappa, 0.1^2) truncated to
    [0, 1], pixels in [0, 1].

    Args: as `instance_cores`.
    """
    rng = np.random.RandomState(seed)
    true = _numpy(labels)
    flip = _flip_rates(rng, rate, len(true))
    logits = np.empty((len(true), num_classes))
    for k in range(num_classes):
        weights_DK = rng.normal(0.0, 1.0, size=(images_NCHW[0].numel(), num_classes))
        for rows, pixels in _pixel_chunks(images_NCHW, np.flatnonzero(true == k)):
            logits[rows] = (pixels / 255) @ weights_DK
    return noise_of(labels, _sample(rng, logits, true, flip), num_classes)


def _choose(rng: np.random.RandomState, members: Ints, rate: float, exact: bool) -> Ints:
    """Return those of the n `members` that flip: exactly round(rate * n) of them, or each with probability `rate`."""
    if exact:
        return rng.permutation(members)[: round(rate * len(members))]
    return members[rng.random_sample(len(members)) < rate]


def _flip_rates(rng: np.random.RandomState, rate: float, count: int) -> Floats:
    """Return `count` draws of N(rate, 0.1^2) that lie inside (0, 1), that is, of the truncated normal distribution."""
    kept = np.empty(0)
    while len(kept) < count:  # one pass is enough for any usual data set
        draws = rng.normal(rate, FLIP_RATE_STD, size=FLIP_RATE_DRAWS)
        kept = np.concatenate([kept, draws[(draws > 0) & (draws < 1)]])
    return kept[:count]


def _pixel_chunks(images_NCHW: Tensor, indices: Ints) -> Iterator[tuple[Ints, Floats]]:
    """Yield successive parts of `indices` with their raw pixels 0-255, flattened in HWC order, float64 (chunk, D)."""
    for start in range(0, len(indices), PROJECTION_CHUNK):
        rows = indices[start : start + PROJECTION_CHUNK]
        chunk = images_NCHW[torch.from_numpy(rows).to(images_NCHW.device)]
        yield rows, chunk.permute(0, 2, 3, 1).flatten(1).cpu().numpy().astype(np.float64)


def _sample(rng: np.random.RandomState, logits: Floats, true: Ints, flip: Floats) -> Ints:
    """Draw one label per row, int64 (N,).

    It is the true label with probability 1 - flip, otherwise another class by the softmax over the others' logits.

    Args:
        logits: float64 (N, K).
        true: the true classes, int64 (N,).
        flip: the probability of a wrong label, float64 (N,) in [0, 1].
    """
    rows = np.arange(len(true))
    logits[rows, true] = -np.inf
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p *= flip[:, None] / p.sum(axis=1, keepdims=True)
    p[rows, true] = 1 - flip
    # Inverting the distribution function at one uniform draw per row is what `rng.choice(K, p=...)` does row by row.
    cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
    cumulative /= cumulative[:, -1:]
    labels: Ints = (cumulative <= rng.random_sample(len(true))[:, None]).sum(axis=1)
    return labels


def _numpy(labels: Tensor) -> Ints:
    array: Ints = labels.cpu().numpy()
    return array


def noise_of(labels: Tensor, given: Ints, num_classes: int) -> LabelNoise:
    """Return the given labels with their noise rate and transition matrix.

    Args:
        labels: the true labels, int64 (N,).
        given: the given labels, int64 (N,).
        num_classes: K.
    """
    true = _numpy(labels)
    counts = np.bincount(true * num_classes + given, minlength=num_classes**2).reshape(num_classes, num_classes)
    sizes = counts.sum(axis=1, keepdims=True)
    transition = np.where(sizes > 0, counts / np.maximum(sizes, 1), np.eye(num_classes))
    wrong = float((given != true).mean()) if len(true) else 0.0
    return LabelNoise(torch.from_numpy(given.copy()).to(labels.device), wrong, torch.from_numpy(transition))
