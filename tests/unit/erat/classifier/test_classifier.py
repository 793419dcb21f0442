"""Tests the classifier with the conventions of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_parameters_default_constructible

from erat.classifier import ERATClassifier
from erat.data.types import ImageSet
from erat.errors import UserError

BRIEF: dict[str, Any] = {
    "epochs": 10,
    "epsilon_inf": 0.05,
    "epsilon_2": 0.5,
    "flip": False,
    "settings": {"defense.steps": 2, "defense.policy": "svhn"},
}


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> tuple[NDArray[np.uint8], NDArray[np.str_], NDArray[np.str_]]:
    """Return (pictures, given labels of which 10 are wrong, true labels)."""
    images = make_images(120, classes=3, seed=1)
    true = np.array(["ant", "bee", "cow"])[images.labels.numpy()]
    given = true.copy()
    given[:10] = np.roll(["ant", "bee", "cow"], -1)[images.labels.numpy()[:10]]
    return images.images[:, 0].numpy(), given, true


@pytest.fixture(scope="module")
def fitted(data: tuple[Any, Any, Any]) -> ERATClassifier:
    return ERATClassifier(folds=2, **BRIEF).fit(data[0], data[1])


def test_it_learns_and_finds_the_wrong_labels(fitted: ERATClassifier, data: tuple[Any, Any, Any]) -> None:
    pictures, _, true = data
    assert fitted.classes_.tolist() == ["ant", "bee", "cow"]
    assert fitted.score(pictures, true) > 0.9
    probs = fitted.predict_proba(pictures)
    assert probs.shape == (120, 3) and np.allclose(probs.sum(1), 1)
    assert (fitted.predict(pictures) == fitted.classes_[probs.argmax(1)]).all()
    assert fitted.label_quality_[:10].max() < fitted.label_quality_[10:].mean()
    assert fitted.score_[:10].min() > fitted.score_[10:].mean() and 0 <= fitted.score_.min() <= fitted.score_.max() <= 2
    np.testing.assert_allclose(fitted.label_quality_, 1 - fitted.score_ / 2)
    assert fitted.label_issues_[:10].sum() >= 8 and fitted.label_issues_[10:].sum() <= 10
    assert (fitted.suggested_labels_[:10] == true[:10]).sum() >= 8
    assert fitted.selected_.dtype == bool and fitted.selected_.shape == (120,)
    assert fitted.selected_[:10].mean() < fitted.selected_[10:].mean()
    assert fitted.n_features_in_ == 64


def test_parameters_as_scikit_learn_wants_them(fitted: ERATClassifier, data: tuple[Any, Any, Any]) -> None:
    check_parameters_default_constructible("ERATClassifier", ERATClassifier())
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() and not hasattr(copy, "classes_")
    copy.set_params(epochs=2, folds=0)
    assert copy.fit(data[0], data[1]) is copy
    assert len(copy.audit_.probs if hasattr(copy, "audit_") else ()) == 0, "folds=0 judges nobody"
    assert copy.defense_ is not None


def test_the_same_seed_gives_the_same_classifier(data: tuple[Any, Any, Any]) -> None:
    pictures, given, _ = data
    brief = BRIEF | {"epochs": 2, "folds": 0}
    first = ERATClassifier(**brief).fit(pictures, given).predict_proba(pictures)
    assert (ERATClassifier(**brief).fit(pictures, given).predict_proba(pictures) == first).all()
    assert (ERATClassifier(**brief, random_state=1).fit(pictures, given).predict_proba(pictures) != first).any()


def test_a_second_fit_forgets_the_first(data: tuple[Any, Any, Any]) -> None:
    pictures, given, _ = data
    model = ERATClassifier(**BRIEF | {"epochs": 1, "folds": 2}).fit(pictures, given)
    assert model.label_quality_.shape == (120,)
    model.set_params(folds=0).fit(pictures[:60], (given[:60] == "ant").astype(int))
    assert model.classes_.tolist() == [0, 1]
    assert not hasattr(model, "label_quality_")


def test_floats_and_channels_are_read_alike(data: tuple[Any, Any, Any]) -> None:
    pictures, given, _ = data
    model = ERATClassifier(**BRIEF | {"epochs": 1, "folds": 0}).fit(pictures, given)
    for same in (pictures[..., None], pictures / 255, (pictures / 255).astype(np.float32)):
        assert np.allclose(model.predict_proba(same), model.predict_proba(pictures), atol=1e-5)


@pytest.mark.parametrize(
    ("pictures", "labels", "words"),
    [
        (np.zeros((4, 64), np.uint8), [0, 1, 0, 1], r"X must be of shape .* got \(4, 64\)"),
        (np.zeros((4, 8, 9), np.uint8), [0, 1, 0, 1], "X must have square images, got 8 x 9"),
        (np.full((4, 8, 8), 2.0), [0, 1, 0, 1], r"X of floats must be in \[0, 1\], got 2 to 2"),
        (np.zeros((4, 8, 8), np.complex128), [0, 1, 0, 1], "X must be of uint8 or of floats"),
        (np.zeros((4, 8, 8), np.uint8), [0, 1, 0], r"y must have one label per image, shape \(4,\), got \(3,\)"),
        (np.zeros((4, 8, 8), np.uint8), [0, 0, 0, 0], "y must have at least 2 classes, got 1"),
    ],
)
def test_wrong_input_is_one_line(pictures: Any, labels: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        ERATClassifier(folds=0).fit(pictures, labels)
    assert "\n" not in str(error.value)


def test_wrong_parameters_and_calls_before_fit(fitted: ERATClassifier) -> None:
    with pytest.raises(UserError, match="folds must be 0 or at least 2, got 1"):
        ERATClassifier(folds=1).fit(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1])
    with pytest.raises(NotFittedError):
        ERATClassifier().predict(np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(UserError, match=r"X must have images of shape \(1, 8, 8\)"):
        fitted.predict(np.zeros((1, 9, 9), np.uint8))
