"""Converts the input of `ERATClassifier` (arrays of images, labels of any kind, a seed) to what it trains on."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state, column_or_1d  # type: ignore[import-untyped,unused-ignore]
from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from erat.data.image_files import scale_deep
from erat.data.loading import resize
from erat.data.types import ImageSet
from erat.errors import UserError

# If no value of 16-bit images reaches this, they probably hold fewer bits and would turn out dark.
DEEP = 2**14


def seed_of(random_state: Any) -> int:
    """Return the seed for a `random_state`: an integer itself; for none or a RandomState, a random draw.

    Raises:
        UserError: `random_state` is none of these.
    """
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except ValueError:
        got = f"{random_state!r}"[:80]
        raise UserError(f"random_state must be none, an integer or a numpy RandomState, got {got}") from None


def pixels_of(X: ArrayLike, image_size: int | None, known: np.dtype[Any] | None) -> tuple[Tensor, np.dtype[Any]]:
    """Convert images to (uint8 (N, C, H, W), the type of the given values).

    Args:
        X: (N, H, W) or (N, H, W, 1 or 3); booleans, integers in 0-255, 16-bit integers, or floats in [0, 1].
        image_size: side in pixels to which they are resized; none: they keep their size.
        known: the type of the images on which the classifier was fitted. A very dark batch of the same type is
            accepted; one of another type may be on another scale, and is refused.

    Raises:
        UserError: the images have another shape, type or range, or their scale cannot be told.
    """
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise UserError("X must be one array, got images of different shapes") from error
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise UserError(f"X must be of shape (N, H, W) or (N, H, W, 1 or 3), got {shape}")
    if array.shape[1] != array.shape[2]:
        raise UserError(f"X must have square images, got {array.shape[1]} x {array.shape[2]}")
    levels = _levels(array, sure=known is not None and array.dtype == known)
    pixels = torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 3, 1, 2)))
    if image_size is not None:
        pixels = resize(ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), ("",)), image_size).images
    return pixels, array.dtype


def _levels(array: NDArray[Any], *, sure: bool) -> NDArray[np.uint8]:
    """Convert values to levels from 0 to 255, of the same shape.

    Args:
        sure: whether the scale is known, so that very dark images are accepted.

    Raises:
        UserError: the type or range is not allowed, or the scale cannot be told.
    """
    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind not in "uif":
        raise UserError(f"X must be of uint8 or of floats in [0, 1], got {array.dtype}")
    if kind == "f" and not np.isfinite(array).all():
        raise UserError("X must not contain NaN or infinity")
    low, high = array.min(), array.max()
    if kind == "f":
        if low < 0 or high > 1:
            raise UserError(f"X of floats must be in [0, 1], got {low:g} to {high:g}")
        if 0 < high <= 1 / 255 and not sure:
            raise UserError(f"X of floats has nothing above {high:.3g}, which is black: the scale must be [0, 1]")
        levels: NDArray[np.uint8] = np.rint(array * 255).astype(np.uint8)
        return levels
    if array.dtype == np.uint16:
        if 0 < high < DEEP and not sure:
            raise UserError(
                f"X of uint16 must be on the scale 0-65535, got nothing above {high}: give values of 8 bits as uint8, "
                "others as floats in [0, 1]"
            )
        return scale_deep(array)
    if low < 0 or high > 255:
        raise UserError(f"X of {array.dtype} must be in [0, 255], got {low} to {high}")
    if high == 1 and not sure:
        raise UserError(f"X of {array.dtype} has values 0 and 1 alone, which are black: give them as bool or floats")
    return array.astype(np.uint8)


def labels_of(y: ArrayLike, count: int) -> tuple[NDArray[Any], Tensor]:
    """Return (the K labels, sorted; the index of each image's label among them, int64 (count,)).

    Args:
        y: (count,), or (count, 1), for which scikit-learn's DataConversionWarning is given.
        count: the number of images.

    Raises:
        UserError: there is not one label per image, labels are missing, cannot be sorted or are no classes, or there
            are fewer than two classes.
    """
    if y is None:
        raise UserError("y must have one label per image: requires y to be passed, but the target y is None")
    given = np.asarray(y)
    if given.shape == (count, 1):
        given = column_or_1d(given, warn=True)
    if given.shape != (count,):
        raise UserError(f"y must have one label per image, shape ({count},), got {given.shape}")
    if given.dtype.kind in "fc" and not np.isfinite(given).all():
        raise UserError("y must not contain missing labels or infinity")
    if given.dtype.kind in "OmM" and (missing := sum(map(_is_missing, given))):
        raise UserError(f"y must not contain missing labels, got {missing}")
    try:
        check_classification_targets(given)
        classes, codes = np.unique(given, return_inverse=True)
    except ValueError as error:
        raise UserError(f"y must be labels of classes: {' '.join(str(error).split())}") from error
    except TypeError:
        kinds = ", ".join(sorted({type(label).__name__ for label in given}))
        raise UserError(f"y must have labels of one kind that sorts, got {kinds}") from None
    if len(classes) < 2:
        raise UserError(f"y must have at least 2 classes, got {len(classes)} class")
    return classes, torch.from_numpy(codes.reshape(-1).astype(np.int64))


def _is_missing(label: Any) -> bool:
    """Return whether a label is None, NaN, NaT or pandas' NA, which is neither equal nor unequal to itself."""
    return label is None or type(label).__name__ == "NAType" or bool(label != label)
