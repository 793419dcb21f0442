"""CIFAR-10 and CIFAR-100 in their published Python format, read by torchvision's own loaders.

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
    """One of the two CIFAR sets: 50,000 train and 10,000 test images, 32x32 RGB.

    Args:
        title: its name in messages.
        dataset: torchvision's class for it.
        facts: what is known of the set.
    """

    def __init__(self, title: str, dataset: type[datasets.CIFAR10], facts: SourceFacts) -> None:
        self.title = title
        self.dataset = dataset
        self.facts = facts

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from `config.root`, fetching the archive first if `config.download` and files are absent.

        Raises:
            UserError: no root; files missing or damaged; the download failed.
        """
        if config.root is None:
            raise UserError(f"data.root must name the folder that holds {self.dataset.base_folder}/, got none")
        root = Path(config.root).expanduser()
        if config.download:
            self._fetch(root)
        self._require_files(root)
        return self._read(root, train=True), self._read(root, train=False)

    def files(self, config: DataConfig) -> list[Path]:
        """Return all files that the set consists of; none while some are missing."""
        folder = Path(config.root or "").expanduser() / self.dataset.base_folder
        found = [folder / name for name, _ in self._files()]
        return found if all(path.is_file() for path in found) else []

    def _files(self) -> list[tuple[str, str]]:
        """(file name, MD5) of every file that the set consists of."""
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
        """Download and unpack, unless the files are there already. torchvision retries a damaged archive itself."""
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
        except Exception as error:  # a pickle that is not the expected one can fail in any way
            folder = root / self.dataset.base_folder
            wrong = [name for name, md5 in self._files() if not check_integrity(folder / name, md5)]
            what = f"{', '.join(wrong)} (wrong MD5)" if wrong else f"a file ({type(error).__name__})"
            raise UserError(
                f"{self.title}: {what} in {folder} damaged; remove that folder and let data.download=true fetch all"
            ) from error


CIFAR10 = Cifar("CIFAR-10", datasets.CIFAR10, facts.CIFAR10)
CIFAR100 = Cifar("CIFAR-100", datasets.CIFAR100, facts.CIFAR100)
