"""ERAT with the habits of scikit-learn: arrays in, labels out, on one CPU or GPU. No Ray, no MLflow, no files.

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
        random_state: seed of everything: an integer, a numpy RandomState to draw it from, or none: another each time.
        settings: further dotted keys of a configuration, {"defense.steps": 3}.

    Attributes:
        classes_: the K labels, sorted.
        defense_: the trained ERAT; of a copy, to predict with: what training remembered of each image is left out.
        selected_: bool (N,), the training images whose labels it believed in the last epoch.
        score_: float64 (N,), in [0, 2], the paper's score (Eq. 1) of each training label, large where the label is
            probably wrong: of networks trained without the image, averaged over epochs.
        label_quality_: float64 (N,), in [0, 1], the same as 1 - score_ / 2.
        label_issues_: bool (N,), the labels that are probably wrong.
        suggested_labels_: (N,), the likeliest label of each training image.
        audit_: all findings (`erat.audit.audit.Audit`). Of a classifier that was loaded, `audit_.plan.images` has the
            labels and no pixels.
        n_features_in_: number of values of an image.

    A fitted classifier can be pickled and copied, and read by machines without its device. `save` writes a file that
    `load` reads without running code, which unpickling does.
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
            y: (N,) or (N, 1), labels of any kind that sorts.

        Raises:
            UserError: shapes that do not fit, a scale that cannot be told, missing values, fewer than two classes, or a
                parameter out of range.
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
        """Class probabilities (N, K), columns as in `classes_`.

        Raises:
            NotFittedError: before `fit`.
            UserError: images of another shape than those of `fit`.
        """
        self._check_is_fitted()
        pixels, _ = pixels_of(X, self.image_size, self._kind)
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

    def save(self, path: str | Path) -> None:
        """Write the fitted classifier to one file, in the safetensors format: weights and findings, no pickle.

        The networks, the settings, `selected_` and all of `audit_` go along, and no pixel of a training image. A
        `random_state` that is a RandomState is saved as none.

        Raises:
            NotFittedError: before `fit`.
            UserError: labels or settings that are neither text, numbers nor truth values.
        """
        self._check_is_fitted()
        kept = Kept.of(self._config, self._shape, len(self.classes_), self.defense_)
        audit = getattr(self, "audit_", None)
        params = self.get_params(deep=False)
        write_saved(Path(path), Saved(params, kept, self.classes_, self._kind, self.selected_, audit))

    @classmethod
    def load(cls, path: str | Path) -> ERATClassifier:
        """Read what `save` wrote; the file may come from anybody, no code in it is run.

        Raises:
            UserError: no such file, or one that is damaged, too large, or of another kind.
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
            # A trained defense holds functions of this process, and may lie on a device that others lack.
            state["defense_"] = Kept.of(self._config, self._shape, len(self.classes_), self.defense_)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state.get("defense_")
        rebuilt = {"defense_": kept.rebuilt(state["device"])} if isinstance(kept, Kept) else {}
        super().__setstate__(state | rebuilt)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn (1.6 and newer) may give it: arrays of images, not tables."""
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
        """What an earlier `fit` learnt and this one may not."""
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
