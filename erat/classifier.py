"""ERAT with the habits of scikit-learn: arrays in, labels out, on one CPU or GPU. No Ray, no MLflow, no files.

>>> from erat.classifier import ERATClassifier
>>> model = ERATClassifier(folds=4, random_state=0)
>>> model.fit(images, labels)             # uint8 (N, H, W) or (N, H, W, C); labels of any kind
>>> model.predict(more_images)
>>> model.label_quality_                  # small where a training label is probably wrong
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin  # type: ignore[import-untyped,unused-ignore]
from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from erat.audit.audit import Audit, conclude, examine, plan
from erat.audit.crossfit import probabilities, train_on
from erat.audit.settings import plain_settings, robust_settings
from erat.config import RunConfig
from erat.data.base import ImageSet
from erat.data.image_files import scale_deep
from erat.data.sets import resize
from erat.defenses.base import Defense
from erat.errors import UserError


class ERATClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc,unused-ignore]
    """An image classifier that holds up where training labels and images cannot be trusted.

    Args:
        folds: with 2 or more, `fit` also judges every label by networks trained without it, which takes as many
            trainings more; with 0 there is none of what it finds (`score_` to `audit_`).
        epochs, batch_size, lr: of every training; none: by the size of the set.
        model: name of the network; none: by the size of the images.
        epsilon_inf, epsilon_2: budgets in pixel units of 1.0; none: customary ones for the images.
        eta: 0 gives every class the same share of the labelled set (Eq. 4).
        flip: whether a mirrored image keeps its class; none: of colour images.
        image_size: side in pixels that images are resized to; none: as they are.
        device: "auto", "cpu" or "cuda".
        random_state: seed of everything.
        settings: further dotted keys of a configuration, {"defense.steps": 3}.

    Attributes:
        classes_: the K labels, sorted.
        defense_: the trained ERAT.
        selected_: bool (N,), the training images whose labels it believed in the last epoch.
        score_: float64 (N,), in [0, 2], the paper's score (Eq. 1) of each training label, large where the label is
            probably wrong: of networks trained without the image, averaged over epochs.
        label_quality_: float64 (N,), in [0, 1], the same as 1 - score_ / 2.
        label_issues_: bool (N,), the labels that are probably wrong.
        suggested_labels_: (N,), the likeliest label of each training image.
        audit_: all findings (`erat.audit.audit.Audit`).
        n_features_in_: number of values of an image.
    """

    def __init__(
        self,
        *,
        folds: int = 4,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        model: str | None = None,
        epsilon_inf: float | None = None,
        epsilon_2: float | None = None,
        eta: float = 0.1,
        flip: bool | None = None,
        image_size: int | None = None,
        device: str = "auto",
        random_state: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folds = folds
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.model = model
        self.epsilon_inf = epsilon_inf
        self.epsilon_2 = epsilon_2
        self.eta = eta
        self.flip = flip
        self.image_size = image_size
        self.device = device
        self.random_state = random_state
        self.settings = settings

    def fit(self, X: ArrayLike, y: ArrayLike) -> ERATClassifier:
        """Train on images and their given labels.

        Args:
            X: (N, H, W) or (N, H, W, 1 or 3); uint8, or floats in [0, 1].
            y: (N,), labels of any kind that sorts.

        Raises:
            UserError: shapes that do not fit, fewer than two classes, or a parameter out of range.
        """
        if self.folds != 0 and self.folds < 2:
            raise UserError(f"folds must be 0 or at least 2, got {self.folds}")
        given = np.asarray(y)
        pixels = self._pixels(X)
        if given.shape != (len(pixels),):
            raise UserError(f"y must have one label per image, shape ({len(pixels)},), got {given.shape}")
        classes, codes = np.unique(given, return_inverse=True)
        if len(classes) < 2:
            raise UserError(f"y must have at least 2 classes, got {len(classes)}")
        images = ImageSet(pixels, torch.from_numpy(codes.astype(np.int64)), tuple(map(str, classes)))
        config = self._config(images)
        self._forget()
        if self.folds:
            self._judge(images, config, classes)
        trainer = train_on(config, images)
        selector = getattr(trainer.defense, "selector", None)
        self.selected_: NDArray[np.bool_] = (
            np.ones(len(images), dtype=bool) if selector is None else selector.labelled.cpu().numpy()
        )
        self.defense_: Defense = trainer.defense
        self.classes_ = classes
        self._shape = tuple(images.images.shape[1:])
        self.n_features_in_ = int(np.prod(self._shape))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (N, K), columns as in `classes_`.

        Raises:
            NotFittedError: before `fit`.
            UserError: images of another shape than those of `fit`.
        """
        if not hasattr(self, "defense_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        pixels = self._pixels(X)
        if tuple(pixels.shape[1:]) != self._shape:
            raise UserError(f"X must have images of shape {self._shape} (C, H, W), got {tuple(pixels.shape[1:])}")
        device = next(self.defense_.parameters()).device
        probs: NDArray[np.float64] = probabilities(self.defense_, pixels.to(device)).double().cpu().numpy()
        return probs

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest label of each image, (N,). Raises as `predict_proba`."""
        likeliest = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[likeliest]
        return labels

    def _judge(self, images: ImageSet, config: RunConfig, classes: NDArray[Any]) -> None:
        plans = plan(images, config, plain_settings(config), self.folds)
        self.audit_: Audit = conclude(plans, [examine(plans, number) for number in range(plans.folds)])
        self.label_quality_: NDArray[np.float64] = self.audit_.quality.numpy()
        self.score_: NDArray[np.float64] = 2 * (1 - self.label_quality_)
        self.label_issues_: NDArray[np.bool_] = self.audit_.issue.numpy()
        self.suggested_labels_: NDArray[Any] = classes[self.audit_.suggested.numpy()]

    def _forget(self) -> None:
        """What an earlier `fit` learnt and this one may not."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)

    def _config(self, images: ImageSet) -> RunConfig:
        keys = {
            "train.epochs": self.epochs,
            "train.batch_size": self.batch_size,
            "train.lr": self.lr,
            "model.name": self.model,
            "defense.epsilon_inf": self.epsilon_inf,
            "defense.epsilon_2": self.epsilon_2,
            "data.flip": self.flip,
        }
        chosen = {key: value for key, value in keys.items() if value is not None}
        own = {"defense.eta": self.eta, "resources.device": self.device, "train.seed": self.random_state}
        return robust_settings(images, {**own, **chosen, **(self.settings or {})})

    def _pixels(self, X: ArrayLike) -> Tensor:
        """uint8 (N, C, H, W)."""
        array = np.asarray(X)
        if array.ndim == 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
            raise UserError(f"X must be of shape (N, H, W) or (N, H, W, 1 or 3), got {np.asarray(X).shape}")
        if array.shape[1] != array.shape[2]:
            raise UserError(f"X must have square images, got {array.shape[1]} x {array.shape[2]}")
        if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
            raise UserError(f"X of floats must be in [0, 1], got {array.min():g} to {array.max():g}")
        if array.dtype.kind not in "uf":
            raise UserError(f"X must be of uint8 or of floats in [0, 1], got {array.dtype}")
        if array.dtype != np.uint8:
            array = np.rint(array * 255).astype(np.uint8) if array.dtype.kind == "f" else scale_deep(array)
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
        if self.image_size is None:
            return pixels
        return resize(ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), ("",)), self.image_size).images
