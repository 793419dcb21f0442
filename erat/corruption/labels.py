"""Label noise: symmetric, asymmetric and instance-dependent, as functions of arrays and a seed.

Every draw comes from `numpy.random.RandomState`, whose streams numpy promises never to change: one seed gives the same
noisy labels on every machine and version. The global generators are neither read nor moved.

Symbols: N images, K classes, D = H * W * C pixels an image, kappa the asked-for share of wrong labels.
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

FLIP_RATE_STD = 0.1  # how far the flip rates of single images spread around kappa
FLIP_RATE_DRAWS = 10**6  # drawn at once whatever N is: the published generator does, and W comes after them
PROJECTION_CHUNK = 1024  # images that are held as float64 at a time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelNoise:
    """Given labels and what became of the true ones.

    Attributes:
        labels: int64 (N,), the given (partly wrong) labels, on the device of the true ones.
        rate: realised share of wrong labels, in [0, 1].
        transition: float64 (K, K), row k the distribution of given labels among images of true class k; a class
            without images has a row of the identity.
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
        rate: kappa, in [0, 1]; 0 leaves every label (the instance generators alone would flip some even then).
        seed: of all draws, in [0, 2**32).
        exact: symmetric and asymmetric: flip a fixed count rather than each label with probability `rate`.
        include_self: symmetric: the new class is any of the K, so that some labels stay right.
        similar: asymmetric: class -> the class it turns into; absent classes stay; None: k -> k + 1 mod K.
        generator: instance: one of `GENERATORS`.

    Raises:
        UserError: unknown kind or generator; `rate` out of range.
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
    """Give a share of all labels another class, uniformly.

    Args:
        labels: int64 (N,), true classes.
        num_classes: K, at least 2.
        rate: share of labels that are redrawn, in [0, 1].
        seed: of the draws.
        exact: redraw exactly round(rate * N) labels, else each with probability `rate`.
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
    """Turn a share of each class into the one class that it is mistaken for.

    Args:
        labels: int64 (N,), true classes.
        num_classes: K, at least 2.
        rate: share of each class that flips, in [0, 1]; over all classes less where some have no partner.
        seed: of the draws.
        similar: class -> partner; absent classes stay; None: k -> k + 1 mod K.
        exact: flip exactly round(rate * n_k) of a class's n_k labels, else each with probability `rate`.
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
    """Instance-dependent noise by one projection that all classes share.

    Source: the noise generator published with Cheng et al., "Learning with Instance-Dependent Label Noise: A Sample
    Sieve Approach", ICLR 2021. The pixels stay raw and uncentred: their common mean, times W, decides which few
    classes nearly all wrong labels fall into.

    Args:
        images_NCHW: uint8 (N, C, H, W).
        labels: int64 (N,), true classes.
        num_classes: K, at least 2.
        rate: kappa, the mean of the images' flip rates before those outside (0, 1) are dropped.
        seed: of the draws; the published labels have 0.
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
    """Instance-dependent noise by one projection per true class.

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
    """Those of `members` that flip: exactly round(rate * n) of the n, or each with probability `rate`."""
    if exact:
        return rng.permutation(members)[: round(rate * len(members))]
    return members[rng.random_sample(len(members)) < rate]


def _flip_rates(rng: np.random.RandomState, rate: float, count: int) -> Floats:
    """`count` draws of N(rate, 0.1^2) that lie inside (0, 1), which is the truncated normal distribution."""
    kept = np.empty(0)
    while len(kept) < count:  # once for any usual data set
        draws = rng.normal(rate, FLIP_RATE_STD, size=FLIP_RATE_DRAWS)
        kept = np.concatenate([kept, draws[(draws > 0) & (draws < 1)]])
    return kept[:count]


def _pixel_chunks(images_NCHW: Tensor, indices: Ints) -> Iterator[tuple[Ints, Floats]]:
    """Parts of `indices` with their raw pixels 0-255, flattened in HWC order, float64 (chunk, D)."""
    for start in range(0, len(indices), PROJECTION_CHUNK):
        rows = indices[start : start + PROJECTION_CHUNK]
        chunk = images_NCHW[torch.from_numpy(rows).to(images_NCHW.device)]
        yield rows, chunk.permute(0, 2, 3, 1).flatten(1).cpu().numpy().astype(np.float64)


def _sample(rng: np.random.RandomState, logits: Floats, true: Ints, flip: Floats) -> Ints:
    """One label per row: the true one with probability 1 - flip, else another by the softmax of the others' logits."""
    rows = np.arange(len(true))
    logits[rows, true] = -np.inf
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p *= flip[:, None] / p.sum(axis=1, keepdims=True)
    p[rows, true] = 1 - flip
    # The inverse of the distribution function at one uniform draw per row: what `rng.choice(K, p=...)` row by row does.
    cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
    cumulative /= cumulative[:, -1:]
    labels: Ints = (cumulative <= rng.random_sample(len(true))[:, None]).sum(axis=1)
    return labels


def _numpy(labels: Tensor) -> Ints:
    array: Ints = labels.cpu().numpy()
    return array


def noise_of(labels: Tensor, given: Ints, num_classes: int) -> LabelNoise:
    """The given labels beside the true ones, int64 (N,) both, with what they amount to."""
    true = _numpy(labels)
    counts = np.bincount(true * num_classes + given, minlength=num_classes**2).reshape(num_classes, num_classes)
    sizes = counts.sum(axis=1, keepdims=True)
    transition = np.where(sizes > 0, counts / np.maximum(sizes, 1), np.eye(num_classes))
    wrong = float((given != true).mean()) if len(true) else 0.0
    return LabelNoise(torch.from_numpy(given.copy()).to(labels.device), wrong, torch.from_numpy(transition))
