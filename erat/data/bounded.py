"""Reads untrusted tables and arrays: the sizes that a file claims are checked before memory is allocated for them."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from erat.errors import UserError, shown

MOST_ROWS = 20_000_000  # images of one table, because a list in memory holds one entry for each
MOST_LINE = 2**20  # characters of one line of a text file
MOST_HEADER = 10_000  # bytes of the header of an array, which is numpy's own limit


@cache
def room() -> int:
    """Return how many bytes of arrays and images may be read from one file: half of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def within_room(amount: int, path: Path) -> None:
    """Check the number of bytes that `path` claims to hold.

    Raises:
        UserError: `amount` exceeds `room`.
    """
    if amount > room():
        raise UserError(f"{path} must hold at most {room()} bytes of images and labels, got {amount}")


def within_rows(count: int, path: Path) -> None:
    """Check the number of images that `path` claims to hold.

    Raises:
        UserError: `count` exceeds `MOST_ROWS`.
    """
    if count > MOST_ROWS:
        raise UserError(f"{path} must name at most {MOST_ROWS} images, got {count}")


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file with their line ends; bytes that are not UTF-8 are kept as lone surrogates.

    Raises:
        UserError: a line is longer than `MOST_LINE` characters.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        number = 0
        while line := file.readline(MOST_LINE):
            number += 1
            if len(line) == MOST_LINE:
                raise UserError(f"{path}, line {number}: a line must be shorter than {MOST_LINE} characters")
            yield line


def npz_arrays(path: Path, wanted: Iterable[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read arrays from a .npz file.

    Returns:
        (the arrays that are `wanted` and present, by name; the names of all arrays in the file).

    Raises:
        UserError: the file is not such an archive, an array holds Python objects, or the arrays exceed `room`.
    """
    wanted = list(wanted)
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, {f"{name}.npy" for name in wanted}, path)
            inside = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            found = {}
            for name in wanted:
                if name in inside:  # read the entry that was checked: `numpy.load` would also take one called `images`
                    with archive.open(f"{name}.npy") as file:
                        found[name] = npy.read_array(file, allow_pickle=False, max_header_size=MOST_HEADER)
            return found, inside
    except UserError:
        raise
    except Exception as error:
        # Damaged, encrypted or renamed archives raise nearly every kind of exception.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"data.root must be a readable .npz file, got {path}: {reason}") from error


def _check(archive: zipfile.ZipFile, wanted: set[str], path: Path) -> None:
    """Check what the headers of the wanted arrays claim; nothing but the headers is read here.

    Raises:
        UserError: two arrays share a name, an array holds Python objects or less than it claims, or they are too large.
    """
    entries = [info for info in archive.infolist() if info.filename in wanted]
    if len(entries) > len({info.filename for info in entries}):
        raise UserError(f"data.root must be a readable .npz file, got {path}: it holds two arrays of one name")
    claimed = 0
    for info in entries:
        with archive.open(info) as file:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
            shape, _, dtype = read(file, max_header_size=MOST_HEADER)
            if dtype.hasobject:
                raise UserError(f"data.root must be a readable .npz file, got {path}: {info.filename} holds objects")
            bytes_ = math.prod(shape) * dtype.itemsize
            if any(side < 0 for side in shape) or bytes_ > info.file_size:
                raise UserError(
                    f"data.root must be a readable .npz file, got {path}: {info.filename} claims "
                    f"{shown(shape)} of {shown(str(dtype))}, more than the {info.file_size} bytes it holds"
                )
            claimed += bytes_
            within_room(claimed, path)
            # The first side of an image array counts the images; labels and names are read one by one in any shape.
            images = info.filename.endswith("images.npy")
            within_rows(shape[0] if images and shape else math.prod(shape), path)


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file."""
    import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]  # here, because it takes a second to load

    with pyarrow.parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def parquet_rows(path: Path, names: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file with the named columns; from a struct only its fields `bytes` and `path`.

    Raises:
        UserError: there are too many rows or bytes, or a column holds lists.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        within_rows(file.metadata.num_rows, path)
        leaves = _leaves(file.schema_arrow, names, file.metadata.num_rows, path)
        groups = [file.metadata.row_group(k) for k in range(file.num_row_groups)]
        columns = [group.column(k) for group in groups for k in range(group.num_columns)]
        within_room(sum(c.total_uncompressed_size for c in columns if c.path_in_schema in leaves), path)
        texts = {c.path_in_schema for c in columns if c.physical_type == "BYTE_ARRAY"}
    taken = 0
    # The dictionary holds a value that many rows share only once, but each row then gets its own copy. The copies are
    # therefore counted row by row, before the next row is made.
    with pyarrow.parquet.ParquetFile(path, read_dictionary=sorted(texts & set(leaves))) as file:
        for batch in file.iter_batches(batch_size=1024, columns=leaves):
            for number in range(batch.num_rows):
                row = {name: batch.column(name)[number].as_py() for name in batch.schema.names}
                taken += sum(map(_size, row.values()))
                within_room(taken, path)
                yield row


def _leaves(schema: Any, names: Iterable[str], rows: int, path: Path) -> list[str]:
    """Return the names of the leaf columns as Parquet writes them, such as `image.bytes`.

    Raises:
        UserError: a column holds more than one value per row, or its values exceed `room`.
    """
    from pyarrow import types

    kinds: dict[str, Any] = {}
    for name in names:
        kind = schema.field(name).type
        if types.is_struct(kind):
            kinds |= {f"{name}.{field.name}": field.type for field in kind if field.name in ("bytes", "path")}
        else:
            kinds[name] = kind
    for name, kind in kinds.items():
        if types.is_nested(kind):
            raise UserError(f"{path}: the column {name} must hold one value per row, got {shown(str(kind))}")
        if types.is_fixed_size_binary(kind):
            within_room(rows * kind.byte_width, path)
    return list(kinds)


def _size(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, bytes | str) else 8
