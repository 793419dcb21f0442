"""Read STL-10's labelled images from their binary files.

Source: A. Coates, H. Lee, A. Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]
from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped,unused-ignore]

from erat.data import facts
from erat.data.sources.published import PublishedSet, labels_below, sized
from erat.data.types import ImageSet

SIDE = 96


class Stl10(PublishedSet):
    """5,000 training and 8,000 test images, 96x96 RGB; the 100,000 without labels are neither used nor required."""

    facts = facts.STL10
    title = "STL-10"
    folder = "stl10_binary"
    names = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")

    def fetch(self, root: Path) -> None:
        """Download and unpack the archive of 2.6 GB, checked by torchvision's checksum."""
        dataset = datasets.STL10
        download_and_extract_archive(dataset.url, str(root), filename=dataset.filename, md5=dataset.tgz_md5)

    def read(self, paths: Sequence[Path]) -> tuple[ImageSet, ImageSet]:
        """Read (train, test); raises ValueError for a file of another size."""
        return self._part(*paths[:2]), self._part(*paths[2:])

    def _part(self, images: Path, labels: Path) -> ImageSet:
        # MATLAB's order: channel by channel, and column by column inside a channel. Labels begin at 1.
        pixels_NCWH = _bytes(images).reshape(-1, 3, SIDE, SIDE)
        images_NCHW = np.ascontiguousarray(pixels_NCWH.transpose(0, 1, 3, 2))
        labels_N = _bytes(labels).astype(np.int64) - 1
        if len(labels_N) != len(images_NCHW):
            raise ValueError(f"{len(images_NCHW)} images and {len(labels_N)} labels")
        classes = self.facts.classes
        return ImageSet(torch.from_numpy(images_NCHW), labels_below(labels_N, len(classes), labels), classes)


def _bytes(path: Path) -> NDArray[np.uint8]:
    """Return the content of a file of a size that may be read."""
    return np.fromfile(path, np.uint8, count=sized(path))


SOURCE = Stl10()
