"""Read data sets of image files in folders: the user's own, and Tiny-ImageNet-200."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

from erat.data import facts
from erat.data.fingerprint import Cache
from erat.data.image_files import visible_files
from erat.data.sources.collection import collection_fingerprint, read_collection
from erat.data.sources.published import decoded
from erat.data.types import ImageSet
from erat.errors import UserError

if TYPE_CHECKING:
    from erat.options import DataConfig


class ImageFolder:
    """The user's own images: `train/CLASS/*` and `test/CLASS/*` (or `val/`), or only `CLASS/*`, which is then split.

    A .csv, .parquet or .npz file can also name the images (see `erat/data/listing.py`). The split depends on the
    content of each image: new files do not move old ones, and copies of a file stay on the same side. Only where a
    class would have no training or no test image does its nearest file change sides. Images with trusted labels
    (`trusted/CLASS/*`, beside `train/`) replace the validation part that a run would otherwise split off.
    """

    facts = facts.FOLDER

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) at `config.image_size` (default: 32; arrays in their stored size).

        The images are grey if every file is grey, else RGB.

        Raises:
            UserError: the folder or file does not exist, there are fewer than two classes, a class has no readable
                image, or there is no test image.
        """
        train, test, _ = self.load_parts(config)
        return train, test

    def fingerprint(self, config: DataConfig, cache: Cache) -> str:
        """Return the fingerprint of every image's bytes, part and label, and of the class names.

        Raises:
            UserError: as for `load`.
        """
        return collection_fingerprint(config, cache)

    def load_parts(self, config: DataConfig) -> tuple[ImageSet, ImageSet, ImageSet | None]:
        """Read (train, test, images with trusted labels, or None if the set has none). Raises as `load`."""
        collection = read_collection(config)
        images, trusted = collection.images, collection.rows("trusted")
        if len(collection.rows("test")):
            train, test = collection.rows("train"), collection.rows("test")
        else:
            train, test = _split_by_content(images, collection.rows(""), config.test_fraction)
        if len(test) == 0:
            raise UserError(f"no readable test image in {_test_folder(collection.root)}")
        return _part(images, train), _part(images, test), _part(images, trusted) if len(trusted) else None


def _part(images: ImageSet, rows: Tensor) -> ImageSet:
    """Return the images at `rows` as a set of their own, which does not record from which rows it was taken."""
    return replace(images.take(rows), rows=None)


def _split_by_content(images: ImageSet, rows: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split `rows` into (train, test): an image is a test image if its position lies below `fraction`.

    Args:
        images: the set, with `positions` in [0, 1).
        rows: the indices to split, int64.
        fraction: the share of test images, in (0, 1).

    Raises:
        UserError: `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.test_fraction must be in (0, 1), got {fraction}")
    assert images.positions is not None
    train: list[Tensor] = []
    test: list[Tensor] = []
    for label in range(images.num_classes):
        members = rows[images.labels[rows] == label]
        positions = images.positions[members]
        bound = _test_bound(sorted(set(positions.tolist())), fraction)
        train.append(members[positions >= bound])
        test.append(members[positions < bound])
    return torch.cat(train), torch.cat(test)


def _test_bound(positions: Sequence[float], fraction: float) -> float:
    """Return the position below which the images of a class are test images.

    It is `fraction`, moved if one side would otherwise be empty.

    Args:
        positions: the different positions of the class, sorted.
        fraction: the share of test images, in (0, 1).
    """
    if len(positions) < 2:
        return 0.0
    bound = min(fraction, positions[-1])
    return bound if positions[0] < bound else positions[1]


def _test_folder(root: Path) -> Path:
    return next((root / name for name in ("test", "val") if (root / name).is_dir()), root)


class TinyImageNet:
    """Tiny-ImageNet-200 as published: 200 classes, 64x64 RGB; its 10,000 validation images are the test set.

    Source: Stanford CS231n, 2015; a subset of ImageNet.
    """

    facts = facts.TINY_IMAGENET
    title = "Tiny-ImageNet"
    folder = "tiny-imagenet-200"
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"
    size = 64

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from `config.root`, or from the folder tiny-imagenet-200 inside it.

        Raises:
            UserError: no root is given, files are missing or damaged, or the download failed.
        """
        if config.root is None:
            raise UserError(f"data.name={config.name} needs data.root, the folder that holds {self.folder}/; got none")
        root = Path(config.root).expanduser()
        base = self._base(root)
        if config.download and self._missing(base):
            self._fetch(root)
            base = self._base(root)
        missing = self._missing(base)
        if missing:
            raise UserError(
                f"Tiny-ImageNet: {', '.join(missing)} missing; put them into {base}, or let data.download=true fetch "
                f"{self.url}"
            )
        wnids = (base / "wnids.txt").read_text().split()
        names = _readable_names(wnids, base / "words.txt")
        train = [(path, label) for label, wnid in enumerate(wnids) for path in self._training_files(base, wnid)]
        test = self._test_files(base, wnids)
        return (
            decoded(self.title, train, names, self.size, base),
            decoded(self.title, test, names, self.size, base),
        )

    def files(self, config: DataConfig) -> list[Path]:
        """Return all files of which the set consists; an empty list if some are missing."""
        base = self._base(Path(config.root or "").expanduser())
        if self._missing(base):
            return []
        named = [base / name for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")]
        images = [*visible_files(base / "train"), *visible_files(base / "val" / "images")]
        return [*(path for path in named if path.is_file()), *images]

    def _base(self, root: Path) -> Path:
        nested = root / self.folder
        return root if (root / "wnids.txt").is_file() and not nested.is_dir() else nested

    def _missing(self, base: Path) -> list[str]:
        parts = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")
        return [part for part in parts if not (base / part).exists()]

    def _fetch(self, root: Path) -> None:
        try:
            download_and_extract_archive(self.url, str(root), md5=self.md5)
        except (OSError, EOFError, RuntimeError, HTTPException, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"Tiny-ImageNet: fetching {self.url} failed ({reason}); unpack it by hand so that "
                f"{root / self.folder / 'wnids.txt'} exists"
            ) from error

    def _training_files(self, base: Path, wnid: str) -> list[Path]:
        folder = base / "train" / wnid / "images"
        files = visible_files(folder) if folder.is_dir() else []
        if not files:
            raise UserError(f"Tiny-ImageNet: no training image of class {wnid}; its files belong into {folder}")
        return files

    def _test_files(self, base: Path, wnids: Sequence[str]) -> list[tuple[Path, int]]:
        """Return the files that val_annotations.txt names, with their labels.

        Each line of it has, separated by tabs, a file, its class and a bounding box.
        """
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        annotations = base / "val" / "val_annotations.txt"
        files = []
        for number, line in enumerate(annotations.read_text().splitlines(), start=1):
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in labels:
                raise UserError(f"{annotations}, line {number}: must name a class of wnids.txt, got {line!r}")
            files.append((base / "val" / "images" / name, labels[wnid]))
        return files


def _readable_names(wnids: Sequence[str], words: Path) -> tuple[str, ...]:
    """Return the name of each class: its first synonym, or its id if it has none or shares it with another class."""
    lines = words.read_text().splitlines() if words.is_file() else []
    first = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    names = [first.get(wnid) or wnid for wnid in wnids]
    return tuple(wnid if names.count(name) > 1 else name for wnid, name in zip(wnids, names, strict=True))


FOLDER = ImageFolder()
TINY_IMAGENET = TinyImageNet()
