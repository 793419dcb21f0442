"""Read Fashion-MNIST and KMNIST in MNIST's IDX format, compressed or not.

Sources: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017; T. Clanuwat et al., "Deep Learning for Classical Japanese Literature", 2018.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]

from erat.data import facts
from erat.data.bounded import within_room, within_rows
from erat.data.facts import SourceFacts
from erat.data.sources.published import PublishedSet, labels_below
from erat.data.types import ImageSet

UNSIGNED_BYTE = 0x08  # the code of the element type in a header


class IdxSet(PublishedSet):
    """60,000 training and 10,000 test images, 28x28 grey, in MNIST's four files.

    Args:
        title: the name of the set in messages.
        dataset: torchvision's class for the set, which fetches it.
        facts: the facts about the set.
        usual: see `PublishedSet`.
        elsewhere: see `PublishedSet`.
    """

    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    suffixes: ClassVar[tuple[str, ...]] = ("", ".gz")

    def __init__(
        self, title: str, dataset: Any, facts: SourceFacts, usual: Path | None = None, elsewhere: str = ""
    ) -> None:
        self.title, self.dataset, self.facts = title, dataset, facts
        self.folder = f"{dataset.__name__}/raw"
        self.usual, self.elsewhere = usual, elsewhere

    def fetch(self, root: Path) -> None:
        """Download and unpack the four files, checked by torchvision's checksums."""
        self.dataset(str(root), download=True)

    def read(self, paths: Sequence[Path]) -> tuple[ImageSet, ImageSet]:
        """Read (train, test); raises ValueError or an error of the decoder for a damaged file."""
        return self._part(*paths[:2]), self._part(*paths[2:])

    def _part(self, images: Path, labels: Path) -> ImageSet:
        pixels_NHW, digits_N = read_idx(images, 3), read_idx(labels, 1)
        classes = self.facts.classes
        return ImageSet(
            torch.from_numpy(pixels_NHW).unsqueeze(1), labels_below(digits_N, len(classes), labels), classes
        )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes; one whose name ends in .gz is decompressed.

    The header is two zero bytes, the type, the number of dimensions, and their sizes as big-endian 32-bit numbers.

    Args:
        path: the file.
        dimensions: how many dimensions it must have.

    Raises:
        UserError: it claims more than may be read.
        ValueError, OSError, EOFError, struct.error: it is damaged or of another kind.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        magic, *shape = struct.unpack(f">{1 + dimensions}I", file.read(4 * (1 + dimensions)))
        if magic != UNSIGNED_BYTE << 8 | dimensions:
            raise ValueError(f"{path.name} must begin with {UNSIGNED_BYTE << 8 | dimensions}, got {magic}")
        size = math.prod(shape)
        within_rows(shape[0], path)
        within_room(size, path)
        content = file.read(size + 1)  # one more, to notice a file that holds more than it says
    if len(content) != size:
        more = " or more" * (len(content) > size)
        raise ValueError(f"{path.name} must hold {size} values after its header, got {len(content)}{more}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


FASHION_MNIST = IdxSet(
    "Fashion-MNIST",
    datasets.FashionMNIST,
    facts.FASHION_MNIST,
    usual=Path("/usr/share/datasets/fashion-mnist"),
    elsewhere="; on Debian and Ubuntu `apt-get install dataset-fashion-mnist` is enough",
)
KMNIST = IdxSet("KMNIST", datasets.KMNIST, facts.KMNIST)
