"""Defines the image-set type and the protocol of a source of image sets.

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
    """Images with one label each, as 8-bit integers so that a whole set fits on the device; must not be modified.

    Attributes:
        images: uint8, shape (N, C, H, W), values 0-255.
        labels: int64, shape (N,), values 0..K-1.
        class_names: K names.
        rows: int64, shape (N,), on the CPU, the row of each image in the set as it was read; none: the same order.
        positions: float64, shape (N,), on the CPU, for a user's own images only: a number in [0, 1) that depends on
            the content of the file alone. Splits by this number do not move an image when others are added.
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
        """Return the number of classes, K."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Return the number of channels of an image, C."""
        return int(self.images.shape[1])

    @property
    def size(self) -> int:
        """Return the height (= width) of the images in pixels."""
        return int(self.images.shape[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of class names, shape, labels and pixels: equal exactly if the sets are equal."""
        digest = hashlib.sha256()
        digest.update(repr((self.class_names, tuple(self.images.shape))).encode())
        for tensor in (self.labels, self.images):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def take(self, indices: Tensor) -> ImageSet:
        """Return the images at `indices` (int64), in that order."""
        rows = indices.cpu() if self.rows is None else self.rows[indices.cpu()]
        positions = None if self.positions is None else self.positions[indices.cpu()]
        images, labels = self.images[indices], self.labels[indices]
        return replace(self, images=images, labels=labels, rows=rows, positions=positions)

    def to(self, device: torch.device) -> ImageSet:
        """Return the same set with images and labels on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 pixels 0-255 to float32 in [0, 1]."""
    return images.float().div_(255)  # in place, so that a large batch is written only once


@dataclass(frozen=True)
class CorruptedSet:
    """The images on which a run trains and by which it is evaluated.

    Attributes:
        train: poisoned images with the given (noisy) labels.
        true_labels: int64, shape (N,), of the training images; for diagnostics only, never for training.
        val: the validation part, split off before corruption; corrupted too unless the configuration trusts it.
        test: clean test images.
        manifest: the origin of the corruption (data and label parts, checksums, realised noise rate).
    """

    train: ImageSet
    true_labels: Tensor
    val: ImageSet
    test: ImageSet
    manifest: dict[str, Any] = field(default_factory=dict)


class ImageSource(Protocol):
    """A source of image sets."""

    facts: SourceFacts

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) at their original size.

        Raises:
            UserError: the files are missing or unreadable; the message says where to put them.
        """
        ...


@runtime_checkable
class TrustingSource(ImageSource, Protocol):
    """A source that may also hold images whose labels somebody has checked."""

    def load_parts(self, config: DataConfig) -> tuple[ImageSet, ImageSet, ImageSet | None]:
        """Read (train, test, trusted or none) at their original size; raises the errors of `load`."""
        ...
