"""The one image-set type, and what a source of image sets must offer.

Shape suffixes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from erat.data.facts import SourceFacts

if TYPE_CHECKING:
    from erat.options import DataConfig


@dataclass(frozen=True)
class ImageSet:
    """Images with one label each, held as 8-bit integers so that a whole set fits on the device; not to be changed.

    Attributes:
        images: uint8, shape (N, C, H, W), values 0-255.
        labels: int64, shape (N,), values 0..K-1.
        class_names: K names.
        rows: int64, shape (N,), on the CPU, where each image stands in the set as it was read; none: in that order.
        positions: float64, shape (N,), on the CPU, a number in [0, 1) by each file's content alone, where images are
            one's own: splits that go by it move no image when others are added.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    rows: Tensor | None = None
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.ndim == 4, "images are uint8 NCHW"
        assert self.labels.dtype == torch.int64 and self.labels.shape == self.images.shape[:1], "one label per image"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return int(self.images.shape[1])

    @property
    def size(self) -> int:
        """Height (= width) of the images in pixels."""
        return int(self.images.shape[-1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over class names, shape, labels and pixels: equal exactly if the sets are."""
        digest = hashlib.sha256()
        digest.update(repr((self.class_names, tuple(self.images.shape))).encode())
        for tensor in (self.labels, self.images):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def take(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (int64), in that order."""
        rows = indices.cpu() if self.rows is None else self.rows[indices.cpu()]
        positions = None if self.positions is None else self.positions[indices.cpu()]
        images, labels = self.images[indices], self.labels[indices]
        return replace(self, images=images, labels=labels, rows=rows, positions=positions)

    def to(self, device: torch.device) -> ImageSet:
        """The same set with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels 0-255 as float32 in [0, 1]."""
    return images.float().div_(255)  # in place: large batches are written once


@dataclass(frozen=True)
class CorruptedSet:
    """What a run trains on and is judged by.

    Attributes:
        train: poisoned images with the given (noisy) labels.
        true_labels: int64, shape (N,), of the training images; for diagnostics only, never for training.
        val: the part split off before corruption; corrupted too unless the configuration trusts it.
        test: clean.
        manifest: where the corruption came from (data and label parts, checksums, realised noise rate).
    """

    train: ImageSet
    true_labels: Tensor
    val: ImageSet
    test: ImageSet
    manifest: dict[str, Any] = field(default_factory=dict)


class ImageSource(Protocol):
    """A place that image sets come from."""

    facts: SourceFacts

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test), not resized.

        Raises:
            UserError: the files are missing or unreadable; the message says where they belong.
        """
        ...


@runtime_checkable
class TrustingSource(ImageSource, Protocol):
    """A place that may also hold images whose labels somebody has checked."""

    def load_parts(self, config: DataConfig) -> tuple[ImageSet, ImageSet, ImageSet | None]:
        """(train, test, trusted or none), not resized. Raises as `load`."""
        ...
