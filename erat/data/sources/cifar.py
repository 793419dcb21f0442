"""Read CIFAR-10 and CIFAR-100 in their published Python format, by torchvision's own loaders.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import pickle
import tarfile
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision import datasets  # type: ignore[import-untyped]
from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped]

from erat.data import facts
from erat.data.facts import SourceFacts
from erat.data.types import ImageSet
from erat.errors import UserError

if TYPE_CHECKING:
    from erat.options import DataConfig


class Cifar:
    """One of the two CIFAR sets: 50,000 training and 10,000 test images, 32x32 RGB.

    Args:
        title: the name of the set in messages.
        dataset: torchvision's class for the set.
        facts: the facts about the set.
    """

    def __init__(self, title: str, dataset: type[datasets.CIFAR10], facts: SourceFacts) -> None:
        self.title = title
        self.dataset = dataset
        self.facts = facts

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from `config.root`; download the archive first if files are absent and `config.download`.

        Raises:
            UserError: no root is given, files are missing or damaged, or the download failed.
        """
        if config.root is None:
            raise UserError(f"data.root must name the folder that holds {self.dataset.base_folder}/, got none")
        root = Path(config.root).expanduser()
        if config.download:
            self._fetch(root)
        self._require_files(root)
        return self._read(root, train=True), self._read(root, train=False)

    def files(self, config: DataConfig) -> list[Path]:
        """Return all files of which the set consists; an empty list if some are missing."""
        folder = Path(config.root or "").expanduser() / self.dataset.base_folder
        found = [folder / name for name, _ in self._files()]
        return found if all(path.is_file() for path in found) else []

    def _files(self) -> list[tuple[str, str]]:
        """Return (file name, MD5) of every file of which the set consists."""
        meta = (self.dataset.meta["filename"], self.dataset.meta["md5"])
        return [(name, md5) for name, md5 in (*self.dataset.train_list, *self.dataset.test_list, meta)]

    def _require_files(self, root: Path) -> None:
        folder = root / self.dataset.base_folder
        missing = [name for name, _ in self._files() if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{self.title}: {', '.join(missing)} missing; put {'it' if len(missing) == 1 else 'them'} "
                f"into {folder}, or let data.download=true fetch the archive"
            )

    def _fetch(self, root: Path) -> None:
        """Download and unpack the archive, unless the files exist already.

        torchvision itself retries the download of a damaged archive.
        """
        try:
            self.dataset(str(root), download=True)
        except (
            OSError,
            EOFError,
            RuntimeError,
            HTTPException,
            tarfile.TarError,
            zlib.error,
            pickle.UnpicklingError,
        ) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.title}: fetching {self.dataset.url} into {root} failed ({reason}); "
                f"unpack the archive there by hand and leave data.download out"
            ) from error

    def _read(self, root: Path, *, train: bool) -> ImageSet:
        try:
            data = self.dataset(str(root), train=train)
            images_NCHW = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2), dtype=np.uint8)
            labels = torch.tensor(data.targets, dtype=torch.int64)
            return ImageSet(torch.from_numpy(images_NCHW), labels, tuple(data.classes))
        except Exception as error:  # an unexpected pickle can raise any error
            folder = root / self.dataset.base_folder
            wrong = [name for name, md5 in self._files() if not check_integrity(folder / name, md5)]
            what = f"{', '.join(wrong)} (wrong MD5)" if wrong else f"a file ({type(error).__name__})"
            raise UserError(
                f"{self.title}: {what} in {folder} damaged; remove that folder and let data.download=true fetch all"
            ) from error


CIFAR10 = Cifar("CIFAR-10", datasets.CIFAR10, facts.CIFAR10)
CIFAR100 = Cifar("CIFAR-100", datasets.CIFAR100, facts.CIFAR100)
