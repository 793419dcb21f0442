"""Tests that a fitted classifier survives pickle, joblib, copies, other processes, and a file of unknown origin."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from erat.archive import read_archive, write_archive
from erat.audit.audit import Audit
from erat.classifier import ERATClassifier
from erat.classifier.state import KIND
from erat.data.types import ImageSet
from erat.errors import UserError
from tests.unit.erat.classifier.test_classifier import BRIEF

FOUND = ("score_", "label_quality_", "label_issues_", "suggested_labels_", "selected_", "classes_")
FIGURES = ("alone", "conflicts", "agreement", "believed", "learnt", "poisoning")
TENSORS = ("probs", "quality", "suggested", "probability", "issue", "believed_labels")


@pytest.fixture(scope="module")
def pictures(make_images: Callable[..., ImageSet]) -> NDArray[np.uint8]:
    pixels = make_images(60, classes=3, seed=1).images[:, 0].numpy()
    pixels[5] = pixels[7]  # a copy with another label
    return pixels


@pytest.fixture(scope="module")
def fitted(pictures: NDArray[np.uint8]) -> ERATClassifier:
    labels = np.array(["ant", "bee", "cow"])[np.arange(60) % 3]
    return ERATClassifier(folds=2, **BRIEF | {"epochs": 3}).fit(pictures, labels)


def assert_alike(model: ERATClassifier, other: ERATClassifier, pictures: NDArray[np.uint8]) -> None:
    assert (model.predict_proba(pictures) == other.predict_proba(pictures)).all(), "the same bits"
    assert (model.predict(pictures) == other.predict(pictures)).all()
    assert model.get_params() == other.get_params() and model.n_features_in_ == other.n_features_in_
    for name in FOUND:
        assert (getattr(model, name) == getattr(other, name)).all() and (
            getattr(model, name).dtype == getattr(other, name).dtype
        )
    mine, theirs = model.audit_, other.audit_
    assert all(getattr(mine, name) == getattr(theirs, name) for name in FIGURES)
    assert all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in TENSORS)
    assert mine.noise.rate == theirs.noise.rate and torch.equal(mine.noise.transition, theirs.noise.transition)
    assert mine.plan.copies == theirs.plan.copies != []
    assert torch.equal(mine.plan.fold, theirs.plan.fold) and mine.plan.robust == theirs.plan.robust
    assert mine.plan.plain == theirs.plan.plain


def pickled(model: ERATClassifier) -> ERATClassifier:
    copied: ERATClassifier = pickle.loads(pickle.dumps(model))
    return copied


def dumped(model: ERATClassifier) -> ERATClassifier:
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    copied: ERATClassifier = joblib.load(file)
    return copied


@pytest.mark.parametrize("copied", [pickled, dumped, copy.deepcopy, copy.copy], ids=lambda way: way.__name__)
def test_a_copy_is_alike(
    copied: Callable[[ERATClassifier], ERATClassifier], fitted: ERATClassifier, pictures: NDArray[np.uint8]
) -> None:
    other = copied(fitted)
    assert_alike(fitted, other, pictures)
    assert_alike(fitted, copied(other), pictures)
    assert clone(other).get_params() == fitted.get_params()
    assert set(dict(other.defense_.named_buffers())).isdisjoint({"perturber.last_delta"}) or (
        len(other.defense_.get_buffer("perturber.last_delta")) == 1
    ), "what training remembers of each image is left out"


def test_a_classifier_that_is_not_fitted_is_pickled() -> None:
    assert pickled(ERATClassifier(folds=3)).get_params() == ERATClassifier(folds=3).get_params()


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same_bits(
    fitted: ERATClassifier, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    fitted.save(tmp_path / "model.safetensors")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(fitted))
    np.save(tmp_path / "pictures.npy", pictures)
    script = (
        "import pickle, torch, numpy as np; from pathlib import Path\n"
        "from erat.classifier import ERATClassifier\n"
        "torch.set_num_threads(1); pictures = np.load('pictures.npy')\n"
        "np.save('loaded.npy', ERATClassifier.load('model.safetensors').predict_proba(pictures))\n"
        "np.save('unpickled.npy', pickle.loads(Path('model.pickle').read_bytes()).predict_proba(pictures))\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    for way in ("loaded", "unpickled"):
        assert (np.load(tmp_path / f"{way}.npy") == fitted.predict_proba(pictures)).all(), way


def test_a_saved_classifier_is_alike_and_has_no_pixel_of_the_training_images(
    fitted: ERATClassifier, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    fitted.save(str(path))
    loaded = ERATClassifier.load(str(path))
    assert_alike(fitted, loaded, pictures)
    assert len(loaded.audit_.plan.images) == 60 and loaded.audit_.plan.images.images.numel() == 0
    assert pictures[0].tobytes() not in path.read_bytes()
    loaded.save(tmp_path / "again.safetensors")
    assert read_archive(tmp_path / "again.safetensors", KIND)[0] == read_archive(path, KIND)[0]
    assert b"pickle" not in path.read_bytes()


@pytest.mark.parametrize(
    "labels",
    [
        np.array([3, 1, 7]),
        np.array([3, 1, 7], np.uint8),
        np.array([0.0, 2.0, 1.0]),
        np.array([True, False, True]),
        np.array(["b", "a", "c"], object),
    ],
    ids=lambda labels: labels.dtype.name,
)
def test_labels_of_every_type_come_back(labels: NDArray[Any], pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    brief = BRIEF | {"epochs": 1, "folds": 0, "random_state": np.random.RandomState(0)}
    model = ERATClassifier(**brief).fit(pictures, labels[np.arange(60) % 3])
    model.save(tmp_path / "model")
    loaded = ERATClassifier.load(tmp_path / "model")
    assert loaded.classes_.dtype == model.classes_.dtype and loaded.classes_.tolist() == model.classes_.tolist()
    assert (loaded.predict_proba(pictures) == model.predict_proba(pictures)).all()
    assert not hasattr(loaded, "audit_") and loaded.random_state is None


def test_what_cannot_be_saved_is_refused(pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        ERATClassifier().save(tmp_path / "model")
    days = np.array(["2024-01-01", "2024-01-02"], "datetime64[D]")[np.arange(60) % 2]
    model = ERATClassifier(**BRIEF | {"epochs": 1, "folds": 0}).fit(pictures, days)
    with pytest.raises(UserError, match=r"labels of type datetime64\[D\] cannot be saved"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def changed(content: dict[str, Any], tensors: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split("/")
    node: Any = tensors if path and path[0] == "tensors" else content
    for name in path:
        node = node if name == "tensors" else node[name]
    node[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("more", 1),
        ("params", {}),
        ("params/more", 1),
        ("params/image_size", 10**9),
        ("config/model/name", "nothing"),
        ("config/model/name", "resnet34"),
        ("config/defense", {"name": "os:system"}),
        ("shape", [1, 10**6, 10**6]),
        ("shape", [1, 8, 9]),
        ("shape", [3, 8, 8]),
        ("classes", ["a", "b"]),
        ("classes", ["a", "a", "b"]),
        ("classes", [1, 2, 3]),
        ("classes", ["a"] * 10**5),
        ("classes_type", "datetime64[D]"),
        ("classes_type", "U999999999"),
        ("images_type", "nothing"),
        ("audit/poisoning", 5),
        ("audit/noise_rate", "much"),
        ("tensors/selected", torch.zeros(60)),
        ("tensors/selected", torch.zeros(10**4, dtype=torch.bool)),
        ("tensors/audit.labels", torch.full((60,), 3)),
        ("tensors/audit.fold", torch.full((60,), -1)),
        ("tensors/audit.copies", torch.tensor([0, 99])),
        ("tensors/audit.copies_sizes", torch.tensor([-1, 3])),
        ("tensors/audit.probs", torch.zeros(60, 4, dtype=torch.float64)),
        ("tensors/network.more", torch.zeros(3)),
    ],
)
def test_parts_that_do_not_fit_are_one_line(key: str, value: Any, fitted: ERATClassifier, tmp_path: Path) -> None:
    path = tmp_path / "model"
    fitted.save(path)
    content, tensors = read_archive(path, KIND)
    changed(content, tensors, key, value)
    write_archive(path, KIND, content, tensors)
    with pytest.raises(UserError, match=r"is no saved classifier|weights are not those of") as error:
        ERATClassifier.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_pickle_is_not_loaded(fitted: ERATClassifier, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(pickle.dumps(fitted))
    with pytest.raises(UserError, match="cannot be read as a file of kind erat-classifier"):
        ERATClassifier.load(tmp_path / "model")


def test_the_audit_of_a_loaded_classifier_is_whole(fitted: ERATClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    audit = ERATClassifier.load(tmp_path / "model").audit_
    assert set(vars(audit)) == set(Audit.__dataclass_fields__)
    assert list(audit.poisoning.accuracy) == list(fitted.audit_.poisoning.accuracy)
