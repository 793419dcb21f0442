"""Stores a fitted `ERATClassifier` as plain values and tensors, for pickle and for a file that is read without code.

Shape suffixes: N training images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from erat.archive import read_archive, write_archive
from erat.audit.audit import Audit, Plan, conflicts
from erat.audit.poisoning import PoisonTest
from erat.audit.quality import Noise
from erat.audit.settings import plain_settings
from erat.config import RunConfig
from erat.data.types import ImageSet
from erat.defenses.base import Defense
from erat.engine.assembly import rebuild_defense
from erat.errors import UserError

KIND = "erat-classifier"
NETWORK, AUDIT = "network.", "audit."
TEXT = ("str", "object")  # types of text labels; the types of numbers and truth values have numpy's names


@dataclass(frozen=True)
class Kept:
    """The parts of a classifier that it needs to predict, in a form that any process can read.

    Attributes:
        config: the configuration with which it was trained.
        shape: (C, H, W) of the images.
        classes: K.
        weights: state of the networks, on the CPU.
    """

    config: RunConfig
    shape: tuple[int, int, int]
    classes: int
    weights: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, config: RunConfig, shape: tuple[int, int, int], classes: int, defense: Defense) -> Kept:
        """Copy the weights of a trained defense."""
        state = defense.networks.state_dict()
        # Numpy arrays, because the pickles of torch tensors remember the device.
        return cls(config, shape, classes, {name: value.detach().cpu().numpy().copy() for name, value in state.items()})

    def rebuilt(self, device: str) -> Defense:
        """Build the defense and load its weights.

        Args:
            device: "cpu", or "auto" or "cuda", which put it on a GPU if there is one.

        Raises:
            UserError: the weights do not fit the networks.
        """
        weights = {name: torch.from_numpy(array.copy()) for name, array in self.weights.items()}
        try:
            defense = rebuild_defense(self.config, self.classes, self.shape, weights)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the weights are not those of {self.config.model.name} for {self.classes} classes and images of shape "
                f"{self.shape} (C, H, W)"
            ) from error
        return defense.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Saved:
    """Everything that `ERATClassifier.save` writes.

    Attributes:
        params: the parameters of the constructor.
        kept: what the classifier needs to predict.
        classes: the labels, (K,).
        kind: type of the images' values.
        selected: bool (N,), the training images whose labels were believed in the last epoch.
        audit: the findings, or none.
    """

    params: dict[str, Any]
    kept: Kept
    classes: NDArray[Any]
    kind: np.dtype[Any]
    selected: NDArray[np.bool_]
    audit: Audit | None


class _Audit(BaseModel):
    """The plain values of an audit; its tensors are stored separately."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    noise_rate: float
    poisoning: PoisonTest
    alone: bool
    agreement: dict[str, float]
    believed: dict[str, float]
    learnt: dict[str, float]


class _Content(BaseModel):
    """The plain values of the file, with bounds such that the classifier can be built in a machine's memory."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    params: dict[str, Any]
    config: RunConfig
    shape: tuple[Literal[1, 3], int, int]
    classes: list[str | bool | int | float] = Field(min_length=2, max_length=2**16)
    classes_type: str
    images_type: str
    audit: _Audit | None = None


def write_saved(path: Path, saved: Saved) -> None:
    """Write a classifier to a file.

    Raises:
        UserError: a label or a parameter is not a plain value.
    """
    tensors = {f"{NETWORK}{name}": torch.from_numpy(array) for name, array in saved.kept.weights.items()}
    tensors["selected"] = torch.from_numpy(saved.selected)
    if saved.audit is not None:
        tensors |= {f"{AUDIT}{name}": value for name, value in _audit_tensors(saved.audit).items()}
    kind = "str" if saved.classes.dtype.kind == "U" else saved.classes.dtype.name
    labels = [_plain(label) for label in saved.classes]
    if _labels(labels, kind) is None:
        raise UserError(f"labels of type {kind} cannot be saved; allowed: text, numbers, truth values")
    content = {
        "format": 1,
        "params": {name: _plain(value) for name, value in saved.params.items()},
        "config": saved.kept.config.model_dump(mode="json"),
        "shape": list(saved.kept.shape),
        "classes": labels,
        "classes_type": kind,
        "images_type": saved.kind.name,
        "audit": None if saved.audit is None else _audit_values(saved.audit),
    }
    write_archive(path, KIND, content, tensors)


def read_saved(path: Path, params: tuple[str, ...]) -> Saved:
    """Read a classifier from a file.

    Args:
        params: the names of the constructor's parameters.

    Raises:
        UserError: the file is missing or holds no classifier, or its parts do not fit each other.
    """
    values, tensors = read_archive(path, KIND)
    try:
        content = _Content.model_validate(values)
        return _assembled(content, tensors, params)
    except Exception as error:  # the file is not trusted, and parts that do not fit raise many kinds of exception
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no saved classifier: {line or type(error).__name__}") from error


def _assembled(content: _Content, tensors: Mapping[str, Tensor], params: tuple[str, ...]) -> Saved:
    side, classes = content.shape[1], _labels(content.classes, content.classes_type)
    if classes is None or sorted(set(content.classes), key=str) != sorted(content.classes, key=str):
        raise ValueError(f"classes of type {content.classes_type[:20]!r}")
    if content.shape[2] != side or not 1 <= side <= 4096:
        raise ValueError(f"images must be square, of 1 to 4096 pixels, got {content.shape}")
    if set(content.params) != set(params) or content.params["image_size"] not in (None, side):
        raise ValueError("parameters must be those of the constructor, with the image_size of the images")
    weights = {name.removeprefix(NETWORK): value.numpy() for name, value in tensors.items() if name.startswith(NETWORK)}
    selected = tensors["selected"]
    audit = None
    if content.audit is not None:
        found = {name.removeprefix(AUDIT): value for name, value in tensors.items() if name.startswith(AUDIT)}
        audit = _audit(content, content.audit, found, len(selected))
    if selected.dtype != torch.bool or selected.ndim != 1:
        raise ValueError("selected must be a list of truth values")
    kept = Kept(content.config, content.shape, len(classes), weights)
    return Saved(content.params, kept, classes, np.dtype(content.images_type), selected.numpy(), audit)


def _plain(value: Any) -> Any:
    """Convert a parameter or label to a plain value for JSON, if it is of a known type; writing refuses any other."""
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _labels(labels: list[Any], kind: str) -> NDArray[Any] | None:
    """Return the labels as an array of the type `kind`, or none if they are not of this type."""
    if kind in TEXT:
        if not all(isinstance(label, str) for label in labels):
            return None
        return np.array(labels, dtype=object if kind == "object" else None)
    if kind != "bool" and not kind.startswith(("int", "uint", "float")):
        return None
    array = np.array(labels).astype(np.dtype(kind))
    return array if array.dtype.kind in "biuf" and array.tolist() == labels else None


# --- the audit -------------------------------------------------------------------------------------------------------


def _audit_tensors(audit: Audit) -> dict[str, Tensor]:
    plan = audit.plan
    return {
        "labels": plan.images.labels,
        "fold": plan.fold,
        "judged": plan.judged,
        "copies": torch.tensor([row for group in plan.copies for row in group], dtype=torch.int64),
        "copies_sizes": torch.tensor([len(group) for group in plan.copies], dtype=torch.int64),
        "probs": audit.probs,
        "quality": audit.quality,
        "suggested": audit.suggested,
        "probability": audit.probability,
        "issue": audit.issue,
        "transition": audit.noise.transition,
        "given": audit.noise.given,
        "estimated": audit.noise.estimated,
    }


def _audit_values(audit: Audit) -> dict[str, Any]:
    values = _Audit(
        noise_rate=audit.noise.rate,
        poisoning=audit.poisoning,
        alone=audit.alone,
        agreement=audit.agreement,
        believed=audit.believed,
        learnt=audit.learnt,
    )
    return values.model_dump(mode="json")


def _audit(content: _Content, values: _Audit, tensors: Mapping[str, Tensor], count: int) -> Audit:
    """Build the audit from its parts, checking the type, shape and range of each tensor.

    Raises:
        ValueError: a tensor has another type, shape or range.
        KeyError: a tensor is missing.
    """
    classes = len(content.classes)

    def taken(name: str, dtype: torch.dtype, *shape: int, below: int | None = None) -> Tensor:
        value = tensors[name]
        if value.dtype != dtype or tuple(value.shape) != shape:
            raise ValueError(f"{name} must be {dtype} of shape {shape}, got {value.dtype}, {tuple(value.shape)}")
        if below is not None and not bool(((value >= 0) & (value < below)).all()):
            raise ValueError(f"{name} must be in [0, {below})")
        return value

    whole, real = torch.int64, torch.float64
    labels, fold = taken("labels", whole, count, below=classes), taken("fold", whole, count, below=count)
    sizes = taken("copies_sizes", whole, len(tensors["copies_sizes"]), below=count + 1).tolist()
    rows = taken("copies", whole, sum(sizes), below=count)
    copies = [group.tolist() for group in rows.split(sizes)] if sizes else []
    images = ImageSet(torch.empty(count, content.shape[0], 0, 0, dtype=torch.uint8), labels, _names(content))
    judged = taken("judged", torch.bool, count)
    plan = Plan(content.config, plain_settings(content.config), images, fold, copies, judged)
    noise = Noise(
        values.noise_rate,
        taken("transition", real, classes, classes),
        taken("given", whole, classes),
        taken("estimated", whole, classes),
    )
    return Audit(
        plan=plan,
        probs=taken("probs", real, count, classes),
        quality=taken("quality", real, count),
        suggested=taken("suggested", whole, count, below=classes),
        probability=taken("probability", real, count),
        issue=taken("issue", torch.bool, count),
        noise=noise,
        poisoning=values.poisoning,
        alone=values.alone,
        conflicts=conflicts(copies, labels),
        agreement=values.agreement,
        believed=values.believed,
        learnt=values.learnt,
    )


def _names(content: _Content) -> tuple[str, ...]:
    classes = _labels(content.classes, content.classes_type)
    return tuple(map(str, content.classes if classes is None else classes))
