"""Lists a user's own images with their given labels, from class folders, a table (CSV, Parquet) or arrays (.npz).

Only arrays are decoded here, and nothing is ever written.
"""

from __future__ import annotations

import csv
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from erat.data.bounded import lines_of, npz_arrays, parquet_columns, parquet_rows, within_rows
from erat.data.image_files import Source, scale_deep, visible_files, visible_folders
from erat.data.spreadsheets import unguarded
from erat.errors import UserError, shown

CONTENT = "CLASS folders, or train/CLASS and test/CLASS folders"
TABLES = (".csv", ".parquet", ".npz")
ARRAYS = (*(f"{part}{what}" for part in ("", "test_", "trusted_") for what in ("images", "labels")), "class_names")
PARTS = ("", "train", "test", "trusted")  # "": the images are to be split into train and test


class Item(NamedTuple):
    """An image before it is decoded.

    Attributes:
        name: the name for a person: its path below the root, or its row.
        label: the name of its class.
        part: the one of `PARTS` to which it belongs.
        source: the file, or what it holds.
    """

    name: str
    label: str
    part: str
    source: Source


class Skipped(NamedTuple):
    """An entry that is not used, and the reason."""

    name: str
    reason: str


@dataclass
class Listing:
    """All images at a root, in a fixed order.

    Attributes:
        items: the images.
        classes: the names of the classes, in their order.
        skipped: entries that are not used.
        side: the shorter side of the images in pixels if they are arrays; none for files.
    """

    items: list[Item]
    classes: tuple[str, ...]
    skipped: list[Skipped] = field(default_factory=list)
    side: int | None = None


def list_images(root: Path) -> Listing:
    """List the images at `root`: a folder of class folders, or a .csv, .parquet or .npz file.

    Raises:
        UserError: there is none of these at `root`, it has fewer than two classes, or the table is damaged.
    """
    if root.is_dir():
        return _class_folders(root)
    readers = {".csv": _csv, ".parquet": _parquet, ".npz": _npz}
    reader = readers.get(root.suffix.lower())
    if reader is None or not root.is_file():
        raise UserError(
            f"data.root must be a folder with {CONTENT}, or a {', '.join(TABLES[:-1])} or {TABLES[-1]} file; "
            f"there is none at {root}"
        )
    listing = reader(root)
    if len(listing.classes) < 2:
        got = f"only {shown(listing.classes[0])}" if listing.classes else "none"
        raise UserError(f"data.root must name at least 2 classes, got {got} in {root}")
    return listing


# --- class folders ---------------------------------------------------------------------------------------------------


def _class_folders(root: Path) -> Listing:
    train_root, test_root, trusted_root = _layout(root)
    classes = _class_names(train_root)
    items = list(_items(root, train_root, classes, "" if test_root is None else "train"))
    for part, folder in (("test", test_root), ("trusted", trusted_root)):
        if folder is not None:
            present = [path.name for path in visible_folders(folder)]
            unknown = sorted(set(present) - set(classes))
            if unknown:
                got = shown(", ".join(unknown), 200)[1:-1]
                raise UserError(f"{folder} must hold only classes of the training set, got also {got}")
            items += _items(root, folder, present, part)
    return Listing(items, tuple(classes))


def _items(root: Path, folder: Path, names: Sequence[str], part: str) -> Iterator[Item]:
    above = (folder, folder.parent)
    for name in names:
        for path in visible_files(folder / name, above):
            yield Item(path.relative_to(root).as_posix(), name, part, path)


def _layout(root: Path) -> tuple[Path, Path | None, Path | None]:
    """Return the folders of (training, test, trusted) classes; no test folder if one set is to be split."""
    inside = {path.name: path for path in visible_folders(root)}
    if "train" not in inside or not visible_folders(inside["train"]):
        return root, None, None  # a class may well be called "train"
    trusted = inside.pop("trusted", None)
    if "test" in inside and "val" in inside:
        warnings.warn(f"{root / 'val'} is not read: {root / 'test'} is the test set", stacklevel=5)
    for name in ("test", "val"):
        if name in inside:
            return inside["train"], inside[name], trusted
    if len(inside) > 1:
        others = ", ".join(sorted(inside.keys() - {"train"}))
        raise UserError(f"{root} has train/ but neither test/ nor val/ beside it, got {others}")
    return inside["train"], None, trusted


def _class_names(root: Path) -> list[str]:
    """Return the sorted names of the class folders; links back to `root` or above it are not among them."""
    above = {root.resolve(), *root.resolve().parents}
    names = [path.name for path in visible_folders(root) if path.resolve() not in above]
    if len(names) < 2:
        got = f"only {names[0]!r}" if names else "none"
        raise UserError(f"an image folder must have at least 2 class folders, got {got} in {root}")
    return names


# --- tables ----------------------------------------------------------------------------------------------------------


def _csv(path: Path) -> Listing:
    """Read the columns path and label, and part if there is one; paths are relative to the folder of the file."""
    listed: list[tuple[str, Any, str, Source | None]] = []
    try:
        # File names may be any bytes; bytes that are not UTF-8 are kept unchanged, so that the file is found.
        reader = csv.reader(lines_of(path))
        columns = next(reader, [])
        _require(columns, ("path", "label"), path)
        # Of several columns with one name the last counts.
        at = {name: number for number, name in enumerate(columns)}
        for row in filter(None, reader):
            name, label, part = (_cell(row, at.get(key)) for key in ("path", "label", "part"))
            listed.append((name.strip(), label, part, _below(path, name)))
            within_rows(len(listed), path)
    except (OSError, csv.Error) as error:
        raise UserError(f"data.root must be a readable CSV file, got {path}: {_line(error)}") from error
    return _table(path, listed)


def _cell(row: Sequence[str], at: int | None) -> str:
    return unguarded(row[at]) if at is not None and at < len(row) else ""


def _below(table: Path, name: str) -> Path:
    """Return the file that a table names, with the spaces around the name only if such a file exists."""
    if name != name.strip():
        with suppress(OSError, ValueError):
            if (exact := table.parent / name).is_file():
                return exact
    name = name.strip()
    return table.parent / os.path.expanduser(name) if name else table.parent  # an unknown user is part of a name


def _parquet(path: Path) -> Listing:
    """Read a column image (bytes of a file, or a struct with `bytes`) or path, a column label, and part if present."""
    import pyarrow  # type: ignore[import-untyped,unused-ignore]  # here, because it takes a second to load

    listed: list[tuple[str, Any, str, Source | None]] = []
    try:
        columns = parquet_columns(path)
        by = "image" if "image" in columns else "path"
        _require(columns, (by, "label"), path, " (or path)" if by == "path" else "")
        for number, row in enumerate(parquet_rows(path, [name for name in (by, "label", "part") if name in columns])):
            label, part = _given(row["label"]), row.get("part") or ""
            if by == "path":
                name = str(row["path"] or "").strip()
                listed.append((name, label, part, _below(path, name)))
                continue
            value = row.get("image")
            if isinstance(value, Mapping):
                content = value.get("bytes")
                name = str(value.get("path") or f"row {number}")
                listed.append((name, label, part, content if isinstance(content, bytes) else None))
            else:
                listed.append((f"row {number}", label, part, value if isinstance(value, bytes) else None))
    except (OSError, pyarrow.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"data.root must be a readable Parquet file, got {path}: {_line(error)}") from error
    return _table(path, listed)


def _given(label: Any) -> Any:
    """Return the label of a row; a missing label (None or NaN) is empty text."""
    return "" if label is None or (isinstance(label, float) and math.isnan(label)) else label


def _table(path: Path, rows: Sequence[tuple[str, Any, str, Source | None]]) -> Listing:
    """Make a listing of rows (name, label, part, source); a row without path, label or image is skipped."""
    items: list[Item] = []
    skipped: list[Skipped] = []
    for number, (name, label, part, source) in enumerate(rows, start=1):
        word = str(label).strip()
        if part not in PARTS:
            raise UserError(f"{path}, row {number}: part must be train, test, trusted or empty, got {shown(part)}")
        if not name:
            skipped.append(Skipped(f"row {number}", "no path"))
        elif not word:
            skipped.append(Skipped(name, "no label"))
        elif source is None:
            skipped.append(Skipped(name, "no image"))
        else:
            items.append(Item(name, word, part, source))
    # If there is a test part, rows without a part are for training; if not, all training rows are to be split.
    if any(item.part == "test" for item in items):
        items = [item._replace(part=item.part or "train") for item in items]
    else:
        items = [item._replace(part="" if item.part == "train" else item.part) for item in items]
    return Listing(items, _ordered({item.label for item in items if item.part != "test"}), skipped)


def _ordered(labels: set[str]) -> tuple[str, ...]:
    """Sort labels by number if all are whole numbers, else by name."""
    numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in labels)
    return tuple(sorted(labels, key=int) if numbers else sorted(labels))


def _require(columns: Sequence[str], wanted: Sequence[str], path: Path, more: str = "") -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        got = shown(", ".join(columns[:50]), 200)[1:-1] or "none"
        raise UserError(f"{path} must have the columns {' and '.join(wanted)}{more}, got {got}")


# --- arrays ----------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> Listing:
    """Read arrays: images (N, H, W), (N, H, W, C) or (N, C, H, W), and labels (N,), numbers or words.

    `test_images` and `test_labels`, `trusted_images` and `trusted_labels` hold those parts; `class_names` gives names
    to labels that are numbers.
    """
    arrays, inside = npz_arrays(path, ARRAYS)
    _require(inside, ("images", "labels"), path)
    names = [str(name) for name in arrays.get("class_names", np.array(())).ravel()]
    items: list[Item] = []
    side = 0
    parts = {"": "", "test_": "test", "trusted_": "trusted"}
    tested = "test_images" in arrays
    for prefix, part in parts.items():
        if f"{prefix}images" not in arrays:
            continue
        images, labels = _as_images(arrays[f"{prefix}images"], path), arrays.get(f"{prefix}labels", np.array(()))
        if len(images) != labels.size:
            raise UserError(f"{path} must have one label per image, got {len(images)} images and {labels.size} labels")
        words = [_class_word(label, names, path) for label in _labels(labels, path)]
        side = side or min(images.shape[1:3])
        part = "train" if tested and not part else part
        items += [Item(f"{prefix}images[{row}]", label, part, images[row]) for row, label in enumerate(words)]
    used = {item.label for item in items if item.part != "test"}
    known = tuple(name for name in names if name in used) if names else _ordered(used)
    return Listing(items, known, side=side)


def _labels(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return labels, numbers or words, as an array (N,); raise UserError for other types and for NaN or infinity."""
    if array.dtype.kind not in "biufUS":
        raise UserError(f"{path}: labels must be numbers or words, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{path}: labels must be finite numbers, got {shown(array[~np.isfinite(array)][0].item())}")
    return array.ravel()


def _class_word(label: Any, names: Sequence[str], path: Path) -> str:
    if not names or isinstance(label, str):
        return str(label)
    if int(label) != label or not 0 <= label < len(names):
        raise UserError(f"{path}: labels must be in 0..{len(names) - 1}, as class_names has it, got {label}")
    return names[int(label)]


def _as_images(array: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Convert images to uint8, (N, H, W) or (N, H, W, 3); raise UserError for other shapes or types."""
    if array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3)) or 0 in array.shape[1:]:
        raise UserError(
            f"{path}: images must be of shape (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), got {array.shape}"
        )
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: images must be numbers, got {array.dtype}")
    return array.astype(np.uint8) * np.uint8(255) if array.dtype == np.bool_ else scale_deep(array)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
