"""Data sets that lie as image files in folders: one's own, and Tiny-ImageNet-200."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torchvision.datasets.utils import download_and_extract_archive  # type: ignore[import-untyped]

from erat.data.base import ImageSet, SourceFacts
from erat.data.image_files import Decoded, read_all, stack, visible_files, visible_folders
from erat.errors import UserError

if TYPE_CHECKING:
    from erat.config import DataConfig

DEFAULT_SIZE = 32
EPSILON = {"linf": 8 / 255, "l2": 0.5}


class _File(NamedTuple):
    """A readable image file and the number of its class."""

    label: int
    image: Decoded


class ImageFolder:
    """One's own images: `train/CLASS/*` and `test/CLASS/*` (or `val/`), or `CLASS/*` alone, then split.

    The split goes by each file's content: new files move no old one, and copies of a file stay on one side. Only
    where a class would have no training or no test image does its nearest file change sides.
    """

    facts = SourceFacts(EPSILON, True, "cifar10")

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) at `config.image_size` (default 32); grey if every file is, else RGB.

        Raises:
            UserError: no such folder; fewer than two classes; a class without a readable image; no test image.
        """
        content = "CLASS folders, or train/CLASS and test/CLASS folders"
        root = _root(config, content)
        if not root.is_dir():
            raise UserError(f"data.root must be a folder with {content}; there is none at {root}")
        size = DEFAULT_SIZE if config.image_size is None else config.image_size
        if size < 1:
            raise UserError(f"data.image_size must be at least 1, got {size}")
        train_root, test_root = _layout(root)
        classes = _class_names(train_root)
        unreadable: list[Path] = []
        train = _read_classes(train_root, classes, size, unreadable)
        if test_root is None:
            train, test = _split_by_content(train, len(classes), config.test_fraction)
        else:
            test = _read_test(test_root, classes, size, unreadable)
        _warn_unreadable(unreadable)
        _require_every_class(train, classes, train_root)
        if not test:
            raise UserError(f"no readable test image in {test_root or train_root}")
        channels = 3 if any(file.image.pixels.ndim == 3 for file in train + test) else 1
        return _image_set(train, classes, channels), _image_set(test, classes, channels)


def _root(config: DataConfig, content: str) -> Path:
    if config.root is None:
        raise UserError(f"data.name={config.name} needs data.root, the folder that holds {content}; got none")
    return Path(config.root).expanduser()


def _layout(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of test classes; no test folder if the one set is to be split."""
    inside = {path.name: path for path in visible_folders(root)}
    if "train" not in inside or not visible_folders(inside["train"]):
        return root, None  # a class may well be called "train"
    if "test" in inside and "val" in inside:
        warnings.warn(f"{root / 'val'} is not read: {root / 'test'} is the test set", stacklevel=3)
    for name in ("test", "val"):
        if name in inside:
            return inside["train"], inside[name]
    if len(inside) > 1:
        others = ", ".join(sorted(inside.keys() - {"train"}))
        raise UserError(f"{root} has train/ but neither test/ nor val/ beside it, got {others}")
    return inside["train"], None


def _class_names(root: Path) -> list[str]:
    """Sorted names of the class folders; links back to `root` or above it are none."""
    above = {root.resolve(), *root.resolve().parents}
    names = [path.name for path in visible_folders(root) if path.resolve() not in above]
    if len(names) < 2:
        got = f"only {names[0]!r}" if names else "none"
        raise UserError(f"an image folder must have at least 2 class folders, got {got} in {root}")
    return names


def _read_classes(root: Path, names: Sequence[str], size: int, unreadable: list[Path]) -> list[_File]:
    """Every readable image of every class, in a fixed order; paths of the others are added to `unreadable`."""
    above = (root, root.parent)
    paths = [(label, path) for label, name in enumerate(names) for path in visible_files(root / name, above)]
    files = []
    for (label, path), image in zip(paths, read_all([path for _, path in paths], size), strict=True):
        if image is None:
            unreadable.append(path)
        else:
            files.append(_File(label, image))
    return files


def _read_test(root: Path, classes: Sequence[str], size: int, unreadable: list[Path]) -> list[_File]:
    """The test images, labelled by the training set's class numbers."""
    present = [path.name for path in visible_folders(root)]
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise UserError(f"{root} must hold only classes of the training set, got also {', '.join(unknown)}")
    files = _read_classes(root, present, size, unreadable)
    return [_File(classes.index(present[file.label]), file.image) for file in files]


def _split_by_content(files: list[_File], num_classes: int, fraction: float) -> tuple[list[_File], list[_File]]:
    """(train, test): a file is a test image if its position lies below `fraction`."""
    if not 0 < fraction < 1:
        raise UserError(f"data.test_fraction must be in (0, 1), got {fraction}")
    train: list[_File] = []
    test: list[_File] = []
    for label in range(num_classes):
        members = [file for file in files if file.label == label]
        bound = _test_bound(sorted({file.image.position for file in members}), fraction)
        train += [file for file in members if file.image.position >= bound]
        test += [file for file in members if file.image.position < bound]
    return train, test


def _test_bound(positions: Sequence[float], fraction: float) -> float:
    """The position below which a class's images are for testing: `fraction`, moved if one side would stay empty."""
    if len(positions) < 2:
        return 0.0
    bound = min(fraction, positions[-1])
    return bound if positions[0] < bound else positions[1]


def _require_every_class(train: list[_File], classes: Sequence[str], root: Path) -> None:
    present = {file.label for file in train}
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        raise UserError(f"every class must have a readable training image, got none for {', '.join(empty)} in {root}")


def _warn_unreadable(paths: Sequence[Path]) -> None:
    if paths:
        warnings.warn(f"{len(paths)} files are no readable image and were skipped, first: {paths[0]}", stacklevel=3)


def _image_set(files: Sequence[_File], classes: Sequence[str], channels: int) -> ImageSet:
    labels = torch.tensor([file.label for file in files], dtype=torch.int64)
    return ImageSet(stack([file.image.pixels for file in files], channels), labels, tuple(classes))


class TinyImageNet:
    """Tiny-ImageNet-200 as it is published: 200 classes, 64x64 RGB, its 10,000 validation images as the test set.

    Source: Stanford CS231n, 2015; a subset of ImageNet.
    """

    facts = SourceFacts(EPSILON, True, "imagenet")
    folder = "tiny-imagenet-200"
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"
    size = 64

    def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Read (train, test) from `config.root`, or the folder tiny-imagenet-200 inside it.

        Raises:
            UserError: files missing or damaged; the download failed.
        """
        root = _root(config, f"{self.folder}/")
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
        return self._read(train, names, base), self._read(self._test_files(base, wnids), names, base)

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
        """The files that val_annotations.txt names: one a line, tab-separated file, class and a box."""
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

    def _read(self, files: Sequence[tuple[Path, int]], names: tuple[str, ...], base: Path) -> ImageSet:
        """A benchmark with images left out would be another one, so any unreadable file is an error."""
        images = read_all([path for path, _ in files], self.size)
        broken = [path for (path, _), image in zip(files, images, strict=True) if image is None]
        if broken or not files:
            first = f", first {broken[0]}" if broken else ""
            raise UserError(
                f"Tiny-ImageNet: {len(broken)} of {len(files)} images cannot be read{first}; fetch {base} again"
            )
        pixels = [image.pixels for image in images if image is not None]
        return ImageSet(stack(pixels, channels=3), torch.tensor([label for _, label in files]), names)


def _readable_names(wnids: Sequence[str], words: Path) -> tuple[str, ...]:
    """The first synonym of each class; the id itself where there is none or two classes share it."""
    lines = words.read_text().splitlines() if words.is_file() else []
    first = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    names = [first.get(wnid) or wnid for wnid in wnids]
    return tuple(wnid if names.count(name) > 1 else name for wnid, name in zip(wnids, names, strict=True))


FOLDER = ImageFolder()
TINY_IMAGENET = TinyImageNet()
