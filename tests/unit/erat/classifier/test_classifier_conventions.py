"""Runs scikit-learn's own checks on the classifier itself, and on an adapter that shows it rows of numbers as images.

The checks use tables with a few numbers in a row, which are not images. The adapter scales each column to [0, 1], makes
a square of each number and lays the squares side by side; everything else is the classifier's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from erat.classifier import ERATClassifier
from erat.data.types import ImageSet
from erat.errors import UserError
from tests.unit.erat.classifier.test_classifier import BRIEF

Data = tuple[NDArray[np.uint8], NDArray[np.str_]]

SIDE = 8  # height and width of the adapter's images in pixels


class Tabular(ERATClassifier):
    """The classifier for rows of numbers, (N, D)."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Tabular:
        table = validate_data(self, X, dtype=np.float64)
        features = self.n_features_in_
        super().fit(self._images(table, table.min(0), table.max(0)), y)
        self._low, self._high, self.n_features_in_ = table.min(0), table.max(0), features
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        return super().predict_proba(self._images(table, self._low, self._high))

    @staticmethod
    def _images(table: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
        span = np.where(high > low, high - low, 1)
        shown = np.clip((table - low) / span, 0, 1)
        a_side = int(np.ceil(np.sqrt(table.shape[1])))
        squares = np.zeros((len(table), a_side * a_side))
        squares[:, : table.shape[1]] = shown
        times = max(1, SIDE // a_side)
        return squares.reshape(-1, a_side, a_side).repeat(times, 1).repeat(times, 2)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # In so few epochs, on squares of a single grey each, it does not reach the 83 % that scikit-learn asks for.
        # What it learns from images is tested in test_classifier.py.
        tags.classifier_tags.poor_score = True
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.positive_only = True, False, False
        return tags


QUICK = Tabular(
    folds=0,
    epochs=1,
    batch_size=16,
    lr=0.05,
    flip=False,
    epsilon_inf=0.02,
    epsilon_2=0.05,
    device="cpu",
    settings={"defense.policy": "svhn", "defense.strong": False},
)
# Check -> the reason why it fails, in the form of scikit-learn's `expected_failed_checks`. No check fails.
EXPECTED: dict[str, str] = {}


@parametrize_with_checks([QUICK], expected_failed_checks=lambda estimator: EXPECTED)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_scikit_learns_checks_of_the_classifier_itself() -> None:
    """These are the checks that need no table."""
    with pytest.warns(SkipTestWarning, match="Can't test estimator ERATClassifier which requires input"):
        results = check_estimator(ERATClassifier(**BRIEF))
    assert results and {row["status"] for row in results} == {"passed"}


def test_tags_say_what_it_takes() -> None:
    tags = get_tags(ERATClassifier())
    assert tags.estimator_type == "classifier" and tags.classifier_tags.multi_class and tags.target_tags.required
    given = tags.input_tags
    assert (given.one_d_array, given.two_d_array, given.three_d_array) == (False, False, True)
    assert given.positive_only and not given.allow_nan and not given.sparse


def test_tables_of_names_and_sparse_ones_are_refused() -> None:
    for table in (pd.DataFrame({"a": [0.0, 1], "b": [1.0, 0]}), scipy.sparse.eye_array(4)):
        with pytest.raises(UserError, match="X must be of shape"):
            ERATClassifier(folds=0).fit(table, [0, 1])


def test_weights_of_samples_are_refused_by_name(data: Data) -> None:
    assert not has_fit_parameter(ERATClassifier(), "sample_weight")
    with pytest.raises(TypeError, match="sample_weight"):
        ERATClassifier(folds=0).fit(*data, sample_weight=np.ones(60))  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> Data:
    images = make_images(60, classes=3, seed=1)
    return images.images[:, 0].numpy(), np.array(["cow", "ant", "bee"])[images.labels.numpy()]


def test_it_is_part_of_pipelines_and_searches(data: Data) -> None:
    brief = ERATClassifier(**BRIEF | {"epochs": 1, "folds": 0})
    inverted = make_pipeline(FunctionTransformer(lambda images: 255 - images), brief)
    assert len(cross_val_score(inverted, *data, cv=2)) == 2
    search = GridSearchCV(brief, {"eta": [0.1, 0.3], "random_state": [0]}, cv=2).fit(*data)
    assert search.predict(data[0][:3]).shape == (3,)
    assert search.classes_.tolist() == ["ant", "bee", "cow"]


@pytest.mark.parametrize(
    "state", [None, 3, np.int64(3), np.random.RandomState(3)], ids=["none", "int", "numpy", "RandomState"]
)
def test_fit_changes_no_parameter(state: Any, data: Data) -> None:
    settings = {"defense.policy": "svhn"}
    model = ERATClassifier(folds=0, epochs=1, random_state=state, settings=settings).fit(*data)
    assert model.random_state is state and model.settings is settings
    assert settings == {"defense.policy": "svhn"}


def test_a_random_state_is_drawn_from(data: Data) -> None:
    def probs(state: Any) -> NDArray[np.float64]:
        model = ERATClassifier(**BRIEF | {"epochs": 1, "folds": 0, "random_state": state})
        return model.fit(*data).predict_proba(data[0])

    assert (probs(np.random.RandomState(3)) == probs(np.random.RandomState(3))).all()
    shared = np.random.RandomState(3)
    assert (probs(shared) != probs(shared)).any()
    assert (probs(None) != probs(None)).any()
