"""Find, fetch and check the files of a published data set; a set of files adds how its own are read."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erat.data.bounded import within_room
from erat.data.facts import SourceFacts
from erat.data.image_files import read_all, stack
from erat.data.types import ImageSet
from erat.errors import UserError, shown

if TYPE_CHECKING:
    from erat.options import DataConfig

# What torchvision's downloads raise.
_FAILURES = (OSError, EOFError, RuntimeError, HTTPException, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class PublishedSet(ABC):
    """A data set of known files in one folder, read without torchvision's checksums.

    torchvision's own classes fetch the files, so that both programs find them in the same place. They are read here,
    because those classes take whatever size a file claims and refuse a set of which a part is not needed.

    Attributes:
        title: the name of the set in messages.
        folder: the folder inside `data.root` into which torchvision puts the files ("": `data.root` itself).
        names: the files and folders of which the set consists.
        suffixes: what may follow a name; the first that exists counts.
        usual: a folder that is read where `data.root` is not given; none: `data.root` is required.
        elsewhere: how else to get the files, for messages.
    """

    facts: SourceFacts
    title: str
    folder: str = ""
    names: tuple[str, ...]
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    usual: Path | None = None
    elsewhere: str = ""

    @abstractmethod
    def fetch(self, root: Path) -> None:
        """Download what is missing into `root`, as torchvision does."""

    @abstractmethod
    def read(self, paths: Sequence[Path]) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from the paths of `names`; any error means that a file is damaged."""

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from `config.root` or `folder` in it; download first if absent and `config.download`.

        Raises:
            UserError: files are missing, damaged or too large, or the download failed.
        """
        if config.download and not self.files(config):
            root = self._root(config.root)
            with fetching(self.title, root):
                self.fetch(root)
        base = self._base(config)
        missing = [name for name in self.names if self._path(base, name) is None]
        if missing:
            those = "it" if len(missing) == 1 else "them"
            raise UserError(
                f"{self.title}: {', '.join(missing)} missing; put {those} into {base}, or let data.root=FOLDER "
                f"data.download=true fetch {those}{self.elsewhere}"
            )
        with damage(self.title, base):
            return self.read([path for name in self.names if (path := self._path(base, name)) is not None])

    def files(self, config: DataConfig) -> list[Path]:
        """Return all files of which the set consists; an empty list if some are missing."""
        if config.root is None and self.usual is None:
            return []
        base = self._base(config)
        found = [self._path(base, name) for name in self.names]
        return [path for path in found if path is not None] if None not in found else []

    def _root(self, root: str | None) -> Path:
        if root is None:
            raise UserError(f"{self.title}: data.root must name the folder that holds {self.names[0]}, got none")
        return Path(root).expanduser()

    def _base(self, config: DataConfig) -> Path:
        """Return the folder of the files: `data.root` if it holds one of them, else torchvision's inside it."""
        if config.root is None and self.usual is not None:
            return self.usual
        root = self._root(config.root)
        return root if any(self._path(root, name) for name in self.names) else root / self.folder

    def _path(self, base: Path, name: str) -> Path | None:
        """Return the file or folder of this name; none if there is neither. A pipe, say, is neither."""
        candidates = (base / f"{name}{suffix}" for suffix in self.suffixes)
        return next((path for path in candidates if path.is_file() or path.is_dir()), None)


@contextmanager
def fetching(title: str, into: Path) -> Iterator[None]:
    """Turn the errors of a download into one line.

    Raises:
        UserError: the download in the block failed.
    """
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{title}: fetching into {into} failed ({reason}); put the files there by hand and leave data.download out"
        ) from error


@contextmanager
def damage(title: str, where: Path) -> Iterator[None]:
    """Turn any error of a decoder into one line; a damaged file can raise every kind of exception.

    Raises:
        UserError: the block raised an error; one that is a UserError already stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{title}: a file in {where} is damaged ({type(error).__name__}: {reason}); remove it and fetch it again"
        ) from error


def sized(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        UserError: it exceeds what may be read (`bounded.room`).
    """
    size = path.stat().st_size
    within_room(size, path)
    return size


def labels_below(labels: NDArray[np.integer], classes: int, path: Path) -> Tensor:
    """Return labels as int64.

    Raises:
        UserError: one is outside 0..classes-1.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"{path}: labels must be in 0..{classes - 1}, got {shown(wrong[0].item())}")
    return torch.from_numpy(labels.astype(np.int64))


def decoded(title: str, files: Sequence[tuple[Path, int]], names: tuple[str, ...], size: int, base: Path) -> ImageSet:
    """Decode image files as size x size pixels in colour.

    A benchmark with some images left out would be a different one, so any unreadable file is an error.

    Args:
        title: the name of the set in messages.
        files: (path, label) of each image.
        names: the names of the classes.
        size: height and width in pixels.
        base: the folder of the set, for messages.

    Raises:
        UserError: there is no file, or one cannot be read.
    """
    images = read_all([path for path, _ in files], size)
    broken = [path for (path, _), image in zip(files, images, strict=True) if image is None]
    if broken or not files:
        first = f", first {broken[0]}" if broken else ""
        raise UserError(f"{title}: {len(broken)} of {len(files)} images cannot be read{first}; fetch {base} again")
    pixels = [image.pixels for image in images if image is not None]
    return ImageSet(stack(pixels, channels=3), torch.tensor([label for _, label in files]), names)
