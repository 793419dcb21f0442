"""One's own images, read: every image that can be, with its name and its place; the others with the reason.

Nothing is resized in place, moved or written: the originals are only read.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erat.data.base import ImageSet
from erat.data.image_files import Decoded, Source, decode_all, stack
from erat.data.listing import CONTENT, Item, Skipped, list_images
from erat.errors import UserError, shown

if TYPE_CHECKING:
    from erat.config import DataConfig

DEFAULT_SIZE = 32


@dataclass(frozen=True)
class Collection:
    """Every readable image of a set of one's own, in the order in which it was named.

    Attributes:
        images: of one size; labels as given; `positions` by content.
        names: N names, as `Item` has them.
        parts: N of "" (to be split), "train", "test" and "trusted".
        sources: N places to read the originals from again.
        skipped: what was named and could not be used.
    """

    root: Path
    images: ImageSet
    names: tuple[str, ...]
    parts: tuple[str, ...]
    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, *parts: str) -> Tensor:
        """int64 indices of the images of these parts."""
        return torch.tensor([row for row, part in enumerate(self.parts) if part in parts], dtype=torch.int64)

    def take(self, rows: Tensor) -> Collection:
        """The images at `rows` (int64), in that order."""
        chosen = rows.tolist()
        return replace(
            self,
            images=self.images.take(rows),
            names=tuple(self.names[row] for row in chosen),
            parts=tuple(self.parts[row] for row in chosen),
            sources=tuple(self.sources[row] for row in chosen),
        )


def read_collection(config: DataConfig) -> Collection:
    """Read everything that `config.root` names at `config.image_size` (default 32, arrays as they are stored).

    Grey if every image is, else RGB.

    Raises:
        UserError: no such place; fewer than two classes; a class of which no image can be read.
    """
    if config.root is None:
        raise UserError(f"data.name={config.name} needs data.root, the folder that holds {CONTENT}; got none")
    size = config.image_size
    if size is not None and size < 1:
        raise UserError(f"data.image_size must be at least 1, got {size}")
    root = Path(os.path.expanduser(config.root))
    listing = list_images(root)
    read, skipped = _decoded(listing.items, size or listing.side or DEFAULT_SIZE)
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
    )


Read = tuple[Item, Decoded]


def _decoded(items: Sequence[Item], size: int) -> tuple[list[Read], list[Skipped]]:
    read: list[Read] = []
    skipped: list[Skipped] = []
    for item, image in zip(items, decode_all([item.source for item in items], size), strict=True):
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
    """Names for a message, which may be many and odd."""
    return shown(", ".join(names[:20]), 200)[1:-1]


def _image_set(read: Sequence[Read], classes: Sequence[str]) -> ImageSet:
    number = {name: label for label, name in enumerate(classes)}
    pixels = [image.pixels for _, image in read]
    channels = 3 if any(array.ndim == 3 for array in pixels) else 1
    labels = torch.tensor([number[item.label] for item, _ in read], dtype=torch.int64)
    positions = torch.tensor([image.position for _, image in read], dtype=torch.float64)
    return ImageSet(stack(pixels, channels), labels, tuple(classes), positions=positions)


def same_pictures(images: ImageSet) -> list[list[int]]:
    """Groups of two rows or more whose pixels are the same, whatever the files are; in the order of their first."""
    groups: dict[bytes, list[int]] = {}
    for row, image in enumerate(images.images):
        groups.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]
