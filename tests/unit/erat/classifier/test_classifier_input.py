"""Tests the input of the classifier: scales of images, missing values, labels of any kind, seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import DataConversionWarning

from erat.classifier.input import labels_of, pixels_of, seed_of
from erat.errors import UserError

LEVELS: NDArray[np.uint8] = np.random.RandomState(0).randint(0, 256, (5, 6, 6)).astype(np.uint8)
LEVELS[0, 0, :2] = 0, 255


@pytest.mark.parametrize(
    "same",
    [
        LEVELS.tolist(),
        LEVELS[..., None],
        LEVELS.astype(np.int64),
        LEVELS.astype(np.int16),
        LEVELS.astype(np.uint32),
        LEVELS.astype(np.uint16) * 257,
        LEVELS / 255,
        (LEVELS / 255).astype(np.float32),
        np.asfortranarray(LEVELS),
    ],
)
def test_every_scale_that_can_be_told_gives_the_same_levels(same: Any) -> None:
    pixels, kind = pixels_of(same, None, None)
    assert (pixels[:, 0].numpy() == LEVELS).all()
    assert kind == np.asarray(same).dtype


def test_truth_values_are_black_and_white() -> None:
    assert pixels_of(LEVELS > 128, None, None)[0].unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("dark", "words"),
    [
        (LEVELS.astype(np.uint16), "X of uint16 must be on the scale 0-65535, got nothing above 255"),
        (LEVELS.astype(np.uint16) * 16, "X of uint16 must be on the scale 0-65535, got nothing above"),
        (LEVELS / 255 / 255, "X of floats has nothing above 0.00392, which is black"),
        ((LEVELS > 128).astype(np.uint8), "X of uint8 has values 0 and 1 alone, which are black"),
        ((LEVELS > 128).astype(np.int64), "X of int64 has values 0 and 1 alone"),
    ],
)
def test_nothing_turns_dark_in_silence(dark: NDArray[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pixels_of(dark, None, None)
    with pytest.raises(UserError, match=words):
        pixels_of(dark, None, np.dtype(np.float16))
    assert len(pixels_of(dark, None, dark.dtype)[0]) == 5, "on the scale of fit a dark batch is only dark"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (LEVELS.astype(float), r"X of floats must be in \[0, 1\], got 0 to 255"),
        (LEVELS.astype(np.int64) - 1, r"X of int64 must be in \[0, 255\], got -1 to 254"),
        (LEVELS.astype(np.int64) * 257, r"X of int64 must be in \[0, 255\], got 0 to 65535"),
        (np.where(LEVELS == 0, np.nan, LEVELS / 255), "X must not contain NaN or infinity"),
        (np.full((2, 3, 3), np.inf), "X must not contain NaN or infinity"),
        (LEVELS.astype(complex), "X must be of uint8 or of floats in .*, got complex128"),
        (LEVELS.astype(object), "X must be of uint8 or of floats in .*, got object"),
        (LEVELS.astype(str), "X must be of uint8 or of floats"),
        ([LEVELS[0], LEVELS[1, :5]], "X must be one array, got images of different shapes"),
        (np.zeros((0, 6, 6), np.uint8), r"X must be of shape .* got \(0, 6, 6\)"),
        (np.zeros((6, 6), np.uint8), r"X must be of shape .* got \(6, 6\)"),
        (None, r"X must be of shape .* got \(\)"),
    ],
)
def test_other_images_are_refused(images: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        pixels_of(images, None, None)
    assert "\n" not in str(error.value)


def test_images_are_resized() -> None:
    assert pixels_of(LEVELS, 12, None)[0].shape == (5, 1, 12, 12)


WORDS = ["bee", "ant", "cow", "ant", "bee"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (WORDS, ["ant", "bee", "cow"]),
        (np.array(WORDS, dtype=object), ["ant", "bee", "cow"]),
        (pd.Series(WORDS, index=list("vwxyz")), ["ant", "bee", "cow"]),
        (pd.Series(WORDS, dtype="category"), ["ant", "bee", "cow"]),
        (pd.Series([3, 1, 7, 1, 3], dtype="Int64"), [1, 3, 7]),
        ([3, 1, 7, 1, 3], [1, 3, 7]),
        ([3.0, 1.0, 7.0, 1.0, 3.0], [1, 3, 7]),
        ([True, False, True, False, True], [False, True]),
        (np.array([3, 1, 7, 1, 3], np.uint8), [1, 3, 7]),
    ],
)
def test_labels_of_any_kind(labels: Any, classes: list[Any]) -> None:
    found, codes = labels_of(labels, 5)
    assert found.tolist() == classes
    assert [classes[code] for code in codes] == list(labels)


def test_a_column_of_labels_is_taken_with_a_warning() -> None:
    with pytest.warns(DataConversionWarning):
        classes, codes = labels_of(np.array([[1], [0], [1]]), 3)
    assert classes.tolist() == [0, 1] and codes.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, np.nan, 1], "y must not contain missing labels or infinity"),
        ([0, 1, np.inf, 1], "y must not contain missing labels or infinity"),
        (["a", None, "b", "a"], "y must not contain missing labels, got 1"),
        (np.array(["a", np.nan, "b", "a"], object), "missing labels"),
        (pd.Series(["a", None, "b", "a"]), "missing labels"),
        (pd.Series([1, None, 2, 1], dtype="Int64"), "missing labels"),
        (pd.Series(["a", None, "b", "a"], dtype="category"), "missing labels"),
        ([0.5, 1.5, 0.5, 2.5], "y must be labels of classes: Unknown label type: continuous"),
        (np.array(["a", 1, "b", "a"], object), "y must have labels of one kind that sorts, got int, str"),
        ([[0, 1], [1, 0], [1, 1], [0, 0]], r"y must have one label per image, shape \(4,\), got \(4, 2\)"),
        ([0, 1], r"y must have one label per image, shape \(4,\), got \(2,\)"),
        (3, r"y must have one label per image, shape \(4,\), got \(\)"),
        (None, "requires y to be passed, but the target y is None"),
        ([1, 1, 1, 1], "y must have at least 2 classes, got 1"),
    ],
)
def test_other_labels_are_refused(labels: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        labels_of(labels, 4)
    assert "\n" not in str(error.value)


def test_seeds() -> None:
    assert seed_of(7) == seed_of(np.int64(7)) == 7
    assert seed_of(np.random.RandomState(3)) == seed_of(np.random.RandomState(3))
    state = np.random.RandomState(3)
    assert seed_of(state) != seed_of(state)
    assert 0 <= seed_of(None) < 2**31
    for wrong in ("one", 1.5, np.random.default_rng(0)):
        with pytest.raises(UserError, match="random_state must be none, an integer or a numpy RandomState, got"):
            seed_of(wrong)
