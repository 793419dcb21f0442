"""Provides ERAT with the interface of scikit-learn: arrays in, labels out, on one CPU or GPU, without Ray or MLflow.

>>> from erat.classifier.estimator import ERATClassifier
>>> model = ERATClassifier(folds=4, random_state=0)
>>> model.fit(images, labels)             # uint8 (N, H, W) or (N, H, W, C); labels of any kind
>>> model.predict(more_images)
>>> model.label_quality_                  # small where a training label is probably wrong
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin  # type: ignore[import-untyped,unused-ignore]
from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped,unused-ignore]

from erat.audit.audit import Audit, conclude, examine, plan
from erat.audit.crossfit import probabilities, train_on
from erat.audit.settings import plain_settings, robust_settings
from erat.classifier.input import labels_of, pixels_of, seed_of
from erat.classifier.state import Kept, Saved, read_saved, write_saved
from erat.config import RunConfig
from erat.data.types import ImageSet
from erat.defenses.base import Defense
from erat.errors import UserError


class ERATClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc,unused-ignore]
    """An image classifier for training labels and images that cannot be trusted.

    A fitted classifier can be pickled and copied, and be loaded on machines without its device. `save` writes a file
    that `load` reads without running code from it; unpickling may run code.

    Args:
        folds: with 2 or more, `fit` also judges every label by networks trained without it. This takes two further
            trainings per fold, one of ERAT and one of plain cross-entropy. With 0, there are no findings (`score_` to
            `audit_`).
        epochs, batch_size, lr: settings of every training; none: chosen by the size of the set.
        model: name of the network; none: chosen by the size of the images.
        epsilon_inf, epsilon_2: budgets in pixel units of 1.0; none: the customary budgets for the images.
        eta: 0 gives every class the same share of the labelled set (Eq. 4), 1 follows the class scores.
        flip: whether a mirrored image keeps its class; none: yes, unless the images look like scans or drawings.
        image_size: side in pixels to which images are resized; none: they keep their size.
        device: "auto", "cpu" or "cuda".
        random_state: seed of all random draws: an integer, a numpy RandomState from which it is drawn, or none for
            another seed each time.
        settings: further dotted keys of a configuration, such as {"defense.steps": 3}.

    Attributes:
        classes_: the K labels, sorted.
        defense_: the trained ERAT. In a copied or loaded classifier it can predict only, because what training
            remembered about each image is left out.
        selected_: bool (N,), the training images whose labels it believed in the last epoch.
        score_: float64 (N,), in [0, 2], the paper's score (Eq. 1) of each training label, large where the label is
            probably wrong; from networks trained without the image, averaged over epochs.
        label_quality_: float64 (N,), in [0, 1], equal to 1 - score_ / 2.
        label_issues_: bool (N,), true where the label is probably wrong.
        suggested_labels_: (N,), the likeliest label of each training image.
        audit_: all findings (`erat.audit.audit.Audit`). In a loaded classifier, `audit_.plan.images` has the labels
            but no pixels.
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
        random_state: int | np.random.RandomState | None = 0,
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
            X: (N, H, W) or (N, H, W, 1 or 3); integers in 0-255, uint16 in 0-65535, floats in [0, 1], or bool.
            y: (N,) or (N, 1), labels of any type that can be sorted.

        Returns:
            The classifier itself.

        Raises:
            UserError: the shapes do not fit, the scale of the images cannot be told, values are missing, there are
                fewer than two classes, or a parameter is out of range.
        """
        if self.folds != 0 and self.folds < 2:
            raise UserError(f"folds must be 0 or at least 2, got {self.folds}")
        pixels, kind = pixels_of(X, self.image_size, None)
        classes, codes = labels_of(y, len(pixels))
        images = ImageSet(pixels, codes, tuple(map(str, classes)))
        config = self._settings(images)
        self._forget()
        if self.folds:
            plans = plan(images, config, plain_settings(config), self.folds)
            self._found(conclude(plans, [examine(plans, number) for number in range(plans.folds)]), classes)
        trainer = train_on(config, images)
        selector = getattr(trainer.defense, "selector", None)
        self.selected_: NDArray[np.bool_] = (
            np.ones(len(images), dtype=bool) if selector is None else selector.labelled.cpu().numpy()
        )
        self.defense_: Defense = trainer.defense
        self.classes_ = classes
        self._config, self._kind = config, kind
        self._shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        self.n_features_in_ = int(np.prod(self._shape))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (N, K), with columns in the order of `classes_`.

        Raises:
            NotFittedError: `fit` has not been called.
            UserError: the images have another shape than those of `fit`.
        """
        self._check_is_fitted()
        pixels, _ = pixels_of(X, self.image_size, self._kind)
        if tuple(pixels.shape[1:]) != self._shape:
            raise UserError(f"X must have images of shape {self._shape} (C, H, W), got {tuple(pixels.shape[1:])}")
        device = next(self.defense_.parameters()).device
        probs: NDArray[np.float64] = probabilities(self.defense_, pixels.to(device)).double().cpu().numpy()
        return probs

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the likeliest label of each image, (N,); raises the errors of `predict_proba`."""
        likeliest = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[likeliest]
        return labels

    def save(self, path: str | Path) -> None:
        """Write the fitted classifier to one file, in the safetensors format: weights and findings, no pickle.

        The file holds the networks, the settings, `selected_` and all of `audit_`, but no pixel of a training image. A
        `random_state` that is a RandomState is saved as none.

        Raises:
            NotFittedError: `fit` has not been called.
            UserError: a label or a setting is neither text nor a number nor a truth value.
        """
        self._check_is_fitted()
        kept = Kept.of(self._config, self._shape, len(self.classes_), self.defense_)
        audit = getattr(self, "audit_", None)
        params = self.get_params(deep=False)
        write_saved(Path(path), Saved(params, kept, self.classes_, self._kind, self.selected_, audit))

    @classmethod
    def load(cls, path: str | Path) -> ERATClassifier:
        """Read a classifier that `save` wrote. The file need not be trusted: no code in it is run.

        Raises:
            UserError: the file is missing, damaged, too large or of another kind.
        """
        saved = read_saved(Path(path), tuple(cls().get_params(deep=False)))
        model = cls(**saved.params)
        model.defense_ = saved.kept.rebuilt(model.device)
        model.classes_, model.selected_ = saved.classes, saved.selected
        model._config, model._shape, model._kind = saved.kept.config, saved.kept.shape, saved.kind
        model.n_features_in_ = int(np.prod(model._shape))
        if saved.audit is not None:
            model._found(saved.audit, saved.classes)
        return model

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "defense_" in state:
            # A trained defense holds functions of this process, and may be on a device that other machines lack.
            state["defense_"] = Kept.of(self._config, self._shape, len(self.classes_), self.defense_)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state.get("defense_")
        rebuilt = {"defense_": kept.rebuilt(state["device"])} if isinstance(kept, Kept) else {}
        super().__setstate__(state | rebuilt)

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn (1.6 and newer) that the input is arrays of images, not tables."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.positive_only = True
        return tags

    def _check_is_fitted(self) -> None:
        if not hasattr(self, "defense_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")

    def _found(self, audit: Audit, classes: NDArray[Any]) -> None:
        self.audit_ = audit
        self.label_quality_: NDArray[np.float64] = audit.quality.numpy()
        self.score_: NDArray[np.float64] = 2 * (1 - self.label_quality_)
        self.label_issues_: NDArray[np.bool_] = audit.issue.numpy()
        self.suggested_labels_: NDArray[Any] = classes[audit.suggested.numpy()]

    def _forget(self) -> None:
        """Delete all attributes that an earlier `fit` set, because this `fit` may not set all of them."""
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)

    def _settings(self, images: ImageSet) -> RunConfig:
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
        own = {"defense.eta": self.eta, "resources.device": self.device, "train.seed": seed_of(self.random_state)}
        return robust_settings(images, {**own, **chosen, **(self.settings or {})})
