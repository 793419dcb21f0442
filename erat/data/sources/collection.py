"""Read a user's own images, with the name and place of each, and list those that cannot be read with the reason.

The originals are only read: nothing is resized in place, moved or written.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from erat.data.fingerprint import Cache, array_digest, digest_of, of_items, require, stamp_of
from erat.data.image_files import Decoded, Source, decode_all, stack
from erat.data.listing import CONTENT, Item, Skipped, list_images
from erat.data.types import ImageSet
from erat.errors import UserError, shown
from erat.paths import user_path

if TYPE_CHECKING:
    from erat.options import DataConfig

DEFAULT_SIZE = 32


@dataclass(frozen=True)
class Collection:
    """Every readable image of a user's own data set, in the order of its listing.

    Attributes:
        root: the folder or file of the set.
        images: the N images, all of one size, with the given labels and with `positions` that depend on their content.
        names: the N names of the images, as in `Item`.
        parts: the part of each image: "" (to be split), "train", "test" or "trusted".
        sources: the N sources from which the originals can be read again.
        skipped: the listed images that could not be used.
        fingerprint: the fingerprint of everything that was listed, see `erat.data.fingerprint`.
    """

    root: Path
    images: ImageSet
    names: tuple[str, ...]
    parts: tuple[str, ...]
    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, *parts: str) -> Tensor:
        """Return the indices, int64, of the images of these parts."""
        return torch.tensor([row for row, part in enumerate(self.parts) if part in parts], dtype=torch.int64)

    def take(self, rows: Tensor) -> Collection:
        """Return the collection of the images at `rows` (int64), in that order."""
        chosen = rows.tolist()
        return replace(
            self,
            images=self.images.take(rows),
            names=tuple(self.names[row] for row in chosen),
            parts=tuple(self.parts[row] for row in chosen),
            sources=tuple(self.sources[row] for row in chosen),
        )


def read_collection(config: DataConfig) -> Collection:
    """Read all images that `config.root` names, at `config.image_size` (default: 32; arrays in their stored size).

    The result is grey if every image is grey, else RGB.

    Raises:
        UserError: `config.root` does not exist, there are fewer than two classes, a class has no readable image, or the
            images are not those of `config.fingerprint`.
    """
    size = config.image_size
    if size is not None and size < 1:
        raise UserError(f"data.image_size must be at least 1, got {size}")
    root = root_of(config)
    listing = list_images(root)
    decoded = decode_all([item.source for item in listing.items], size or listing.side or DEFAULT_SIZE)
    contents = [_content(item.source, image) for item, image in zip(listing.items, decoded, strict=True)]
    fingerprint = of_items(_described(listing.items, contents), listing.classes)
    require(config, fingerprint)
    read, skipped = _sorted_out(listing.items, decoded)
    skipped = [*listing.skipped, *skipped]
    if skipped and root.is_dir():
        first = root / skipped[0].name
        warnings.warn(f"{len(skipped)} files are no readable image and were skipped, first: {first}", stacklevel=3)
    elif skipped:
        first_word = f"{skipped[0].name} ({skipped[0].reason})"
        warnings.warn(f"{len(skipped)} rows of {root} were skipped, first: {first_word}", stacklevel=3)
    _require_every_class([item for item, _ in read], listing.classes, root)
    return Collection(
        root,
        _image_set(read, listing.classes),
        tuple(item.name for item, _ in read),
        tuple(item.part for item, _ in read),
        tuple(item.source for item, _ in read),
        tuple(skipped),
        fingerprint,
    )


def root_of(config: DataConfig) -> Path:
    """Return the folder or file of the images, `config.root`.

    Raises:
        UserError: `config.root` is not given.
    """
    if config.root is None:
        raise UserError(f"data.name={config.name} needs data.root, the folder that holds {CONTENT}; got none")
    return user_path(config.root, "data.root")


def collection_fingerprint(config: DataConfig, cache: Cache) -> str:
    """Return the fingerprint that `read_collection` would compute, without decoding an image.

    Args:
        config: the choice of the data.
        cache: the cache of file digests.

    Raises:
        UserError: `config.root` does not exist, or there are fewer than two classes.
    """
    root = root_of(config)
    with cache.page(root) as page:
        table = stamp_of([root]) if root.is_file() else None
        table = table and f"all of {table}"
        if (known := page.look(table)) is not None:
            return known
        listing = list_images(root)
        digests = iter(page.digests([item.source for item in listing.items if isinstance(item.source, Path)]))
        contents = [
            next(digests) if isinstance(item.source, Path) else digest_of(item.source) for item in listing.items
        ]
        found = of_items(_described(listing.items, contents), listing.classes)
        if table is not None and not any(isinstance(item.source, Path) for item in listing.items):
            page[table] = found  # the table contains all images itself, so its stamp stands for them
    return found


def _described(items: Sequence[Item], contents: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(item.part, item.label, content) for item, content in zip(items, contents, strict=True)]


def _content(source: Source, image: Decoded | str) -> str:
    """Return the digest of a source as `digest_of` does, but from the bytes already read if it was decoded."""
    if isinstance(image, str):
        return digest_of(source)
    return array_digest(source.shape, image.digest) if isinstance(source, np.ndarray) else image.digest


Read = tuple[Item, Decoded]


def _sorted_out(items: Sequence[Item], decoded: Sequence[Decoded | str]) -> tuple[list[Read], list[Skipped]]:
    read: list[Read] = []
    skipped: list[Skipped] = []
    for item, image in zip(items, decoded, strict=True):
        if isinstance(image, str):
            skipped.append(Skipped(item.name, image))
        else:
            read.append((item, image))
    return read, skipped


def _require_every_class(items: Sequence[Item], classes: Sequence[str], root: Path) -> None:
    present = {item.label for item in items if item.part in ("", "train")}
    empty = [name for name in classes if name not in present]
    if empty:
        raise UserError(f"every class must have a readable training image, got none for {_some(empty)} in {root}")
    unknown = sorted({item.label for item in items} - set(classes))
    if unknown:
        raise UserError(f"{root} must name only classes of the training set, got also {_some(unknown)}")


def _some(names: Sequence[str]) -> str:
    """Return the first 20 names for a message, shortened and with odd characters escaped."""
    return shown(", ".join(names[:20]), 200)[1:-1]


def _image_set(read: Sequence[Read], classes: Sequence[str]) -> ImageSet:
    number = {name: label for label, name in enumerate(classes)}
    pixels = [image.pixels for _, image in read]
    channels = 3 if any(array.ndim == 3 for array in pixels) else 1
    labels = torch.tensor([number[item.label] for item, _ in read], dtype=torch.int64)
    positions = torch.tensor([image.position for _, image in read], dtype=torch.float64)
    return ImageSet(stack(pixels, channels), labels, tuple(classes), positions=positions)


def same_pictures(images: ImageSet) -> list[list[int]]:
    """Return the groups of two or more rows whose pixels are equal, even if their files differ.

    The groups are in the order of their first rows.
    """
    groups: dict[bytes, list[int]] = {}
    for row, image in enumerate(images.images):
        groups.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]
