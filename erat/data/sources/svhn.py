"""Read the Street View House Numbers (cropped digits) from their MATLAB files.

Source: Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat, whosmat
from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]

from erat.data import facts
from erat.data.bounded import within_room, within_rows
from erat.data.sources.published import PublishedSet, labels_below
from erat.data.types import ImageSet

LARGEST_VALUE = 8  # bytes of an element of any MATLAB array


class Svhn(PublishedSet):
    """73,257 training and 26,032 test images, 32x32 RGB; the 531,131 of the extra part are not used."""

    facts = facts.SVHN
    title = "SVHN"
    names = ("train_32x32.mat", "test_32x32.mat")

    def fetch(self, root: Path) -> None:
        """Download both files, checked by torchvision's checksums."""
        for split in ("train", "test"):
            datasets.SVHN(str(root), split=split, download=True)

    def read(self, paths: Sequence[Path]) -> tuple[ImageSet, ImageSet]:
        """Read (train, test); raises ValueError or an error of the decoder for a damaged file."""
        train, test = map(self._part, paths)
        return train, test

    def _part(self, path: Path) -> ImageSet:
        """Read `X`, uint8 (H, W, C, N), and `y`, (N, 1), in which the digit 0 is 10."""
        shapes = {name: shape for name, shape, _ in whosmat(path)}  # reads headers only
        within_rows(shapes["X"][-1], path)
        within_room(sum(math.prod(shapes[name]) for name in "Xy") * LARGEST_VALUE, path)
        arrays = loadmat(path, variable_names=["X", "y"])
        pixels_HWCN, digits_N = arrays["X"], arrays["y"].ravel()
        if pixels_HWCN.dtype != np.uint8 or pixels_HWCN.shape[:3] != (32, 32, 3):
            raise ValueError(f"X must be uint8 (32, 32, 3, N), got {pixels_HWCN.dtype} {pixels_HWCN.shape}")
        labels_N = np.where(digits_N == 10, 0, digits_N).astype(np.int64)
        images_NCHW = np.ascontiguousarray(pixels_HWCN.transpose(3, 2, 0, 1))
        classes = self.facts.classes
        return ImageSet(torch.from_numpy(images_NCHW), labels_below(labels_N, len(classes), path), classes)


SOURCE = Svhn()
