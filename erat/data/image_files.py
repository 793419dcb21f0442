"""Reads image files of any kind as square 8-bit arrays: finds them, decodes them, stacks them.

Shape suffixes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from erat.errors import UserError

# An explicit list, because Pillow would start another program for some other formats (PostScript).
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
READERS = min(8, os.cpu_count() or 1)  # threads; Pillow decodes without holding Python's lock
BACKGROUND = "white"  # shows through transparent pixels
MOST_PIXELS = 100_000_000  # pixels of one decoded image
MOST_FILE = 2**28  # bytes of one file
LARGE_FILE = 2**25  # bytes above which files are read one at a time
MOST_MEMORY = 3 * 2**29  # bytes that all readers may use together to decode: a small file may claim a huge image
# Bytes per pixel at the peak of decoding and converting, by Pillow's mode, as measured; WebP takes more.
_PIXEL_BYTES = {"1": 2, "L": 2, "RGB": 8, "P": 11, "CMYK": 12, "RGBA": 12, "I": 13, "F": 13, "I;16": 8}
_PIXEL_BYTES_OTHERS, _PIXEL_BYTES_WEBP, _PIXEL_BYTES_PROGRESSIVE = 17, 12, 8

_PIECE = 2**20  # number of values that are converted at a time

Source = Path | bytes | NDArray[Any]


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: uint8, (H, W) if the image is grey, (H, W, 3) if it has colour.
        position: a number in [0, 1) that depends on the bytes of the file alone.
        digest: SHA-256 (hex) of these bytes.
    """

    pixels: NDArray[np.uint8]
    position: float
    digest: str


class _Memory:
    """An amount of bytes that several threads share: a thread that asks for more than is left waits."""

    def __init__(self, most: int) -> None:
        self.most, self._used, self._changed = most, 0, threading.Condition()

    @contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Hold `amount` bytes, at most `most`, inside the block; a thread that holds some must not ask for more."""
        with self._changed:
            self._changed.wait_for(lambda: self._used + amount <= self.most)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


_MEMORY, _LARGE = _Memory(MOST_MEMORY), threading.Lock()


def visible_folders(folder: Path) -> list[Path]:
    """List the folders directly inside `folder`, sorted by name; links are followed, hidden folders are left out.

    Raises:
        UserError: `folder` cannot be listed.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if os.path.isdir(entry.path))


def visible_files(folder: Path, outside: Iterable[Path] = ()) -> list[Path]:
    """List all files at any depth, sorted by path, without hidden ones; broken links are listed too.

    Links are followed, but each real folder is entered only once, and those in `outside` never, so that loops end.

    Raises:
        UserError: a folder cannot be listed.
    """
    entered = {_identity(path) for path in outside}
    found, waiting = [], [folder]
    while waiting:
        current = waiting.pop()
        identity = _identity(current)
        if identity in entered:
            continue
        entered.add(identity)
        for entry in _entries(current):
            path = Path(entry.path)
            if os.path.isdir(path):  # entry.is_dir() fails on a link to itself
                waiting.append(path)
            elif entry.is_symlink() or entry.is_file():
                found.append(path)
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed: {error.strerror}") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def read_all(paths: Sequence[Path], size: int) -> list[Decoded | None]:
    """Decode every file as size x size pixels, in order; None for a file that is not a readable image."""
    return [None if isinstance(image, str) else image for image in decode_all(paths, size)]


def decode_all(sources: Sequence[Source], size: int) -> list[Decoded | str]:
    """Decode every image as size x size pixels, in order; the reason, as text, for one that cannot be read."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(decode, size=size), sources))


def decode(source: Source, size: int) -> Decoded | str:
    """Decode one image, upright, with its short side resized to `size` (bilinear, antialiased) and its centre cut out.

    Threads that decode at the same time share `MOST_MEMORY` bytes.

    Args:
        source: a file, the bytes of a file, or pixels: (H, W) or (H, W, 3), of a type that Pillow accepts.

    Returns:
        The decoded image, or the reason, as text, if it cannot be read.
    """
    content = b""
    try:
        if isinstance(source, np.ndarray):
            if source.shape[0] * source.shape[1] > MOST_PIXELS:
                raise _RefusedError(f"{source.shape} values, more than {MOST_PIXELS / 1e6:.0f} million pixels")
            with _MEMORY.taking(min(MOST_MEMORY, 3 * source.nbytes)):  # the bytes, Pillow's image, the 8-bit image
                content = source.tobytes()
                square = _square(to_eight_bit(Image.fromarray(source)), size)
        else:
            length = len(source) if isinstance(source, bytes) else _file_size(source)
            with _LARGE if length > LARGE_FILE else nullcontext():
                content = source if isinstance(source, bytes) else _read(source, length)
                square = _decoded(content, size)
    except UnidentifiedImageError:
        return "no image of a known format" if content else "empty file"
    except _RefusedError as error:
        return str(error)
    except Exception as error:  # for damaged data, Pillow's decoders raise nearly every kind of exception
        return f"cannot be decoded: {' '.join(str(error).split())[:120] or type(error).__name__}"
    digest = hashlib.sha256(content)
    position = int.from_bytes(digest.digest()[:4], "big") / 2**32
    return Decoded(np.array(square), position, digest.hexdigest())


class _RefusedError(Exception):
    """An image or file is not decoded because of its kind or its size."""


def _file_size(path: Path) -> int:
    """Return the size of a regular file in bytes.

    Raises:
        _RefusedError: it is too large, a broken link, or no regular file, such as a pipe, which would never end.
    """
    if not path.is_file():
        raise _RefusedError("no such file" if not path.exists() else "no regular file")
    if (length := path.stat().st_size) > MOST_FILE:
        raise _RefusedError(f"{length / 2**20:.0f} MiB, more than {MOST_FILE / 2**20:.0f}")
    return length


def _read(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(length + 1)
    if len(content) > length:
        raise _RefusedError("it grew while it was read")
    return content


def _decoded(content: bytes, size: int) -> Image.Image:
    """Decode the bytes of a file as size x size pixels, upright; of several frames only the first is decoded."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        whole = image.width * image.height
        image.draft(None, (2 * size, 2 * size))  # a JPEG photograph need not be decoded at full size
        if image.width * image.height > MOST_PIXELS:
            raise _RefusedError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
        if (needed := _needed(image, whole)) > MOST_MEMORY:
            raise _RefusedError(
                f"{image.format} of {whole / 1e6:.0f} million pixels takes {needed / 1e6:.0f} MB to decode, "
                f"more than {MOST_MEMORY / 1e6:.0f}"
            )
        with _MEMORY.taking(needed):
            ImageOps.exif_transpose(image, in_place=True)
            return _square(to_eight_bit(image), size)


def _needed(image: Image.Image, whole: int) -> int:
    """Return the bytes that decoding and converting an image take.

    Args:
        whole: the number of pixels in the file. A draft decodes fewer, but a progressive JPEG is first read in full.
    """
    each = _PIXEL_BYTES.get(image.mode, _PIXEL_BYTES_OTHERS)
    if "transparency" in image.info:
        each = _PIXEL_BYTES_OTHERS
    each += _PIXEL_BYTES_WEBP if image.format == "WEBP" else 0
    progressive = image.format == "JPEG" and ("progressive" in image.info or "progression" in image.info)
    return each * image.width * image.height + (_PIXEL_BYTES_PROGRESSIVE * whole if progressive else 0)


def _square(image: Image.Image, size: int) -> Image.Image:
    # fit() first cuts out the centre square and then resizes it, which gives the same and is safe for very long images.
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to "L" (grey) or "RGB": transparent pixels turn white, deep greys are scaled to 0-255."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(scale_deep(np.asarray(image)))
    grey = image.mode in ("1", "L", "LA", "La")
    palette = image.mode in ("P", "PA")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        cover = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), cover)
        del cover
    if grey:
        return image if image.mode == "L" else image.convert("L")
    colour = image if image.mode == "RGB" else image.convert("RGB")
    return colour.convert("L") if palette and _without_colour(colour) else colour


def scale_deep(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert greys of 16 or 32 bits, or floats, to uint8 of the same shape.

    32-bit integers are taken to be on the 16-bit scale if any is above 255; floats are taken to be in [0, 1] if none
    is above 1, else in [0, 255].
    """
    pieces = np.array_split(values, max(1, min(len(values), values.size // _PIECE)))
    most = max((np.nan_to_num(piece.astype(np.float64)).max() for piece in pieces if piece.size), default=0.0)
    if np.issubdtype(values.dtype, np.floating):
        scale = 255.0 if most <= 1 else 1.0
    else:
        scale = 1 / 257 if values.dtype.itemsize == 2 or most > 255 else 1.0
    scaled = np.empty(values.shape, dtype=np.uint8)
    # In pieces, because the whole array in double precision would take many times its memory.
    for piece, out in zip(pieces, np.array_split(scaled, len(pieces)), strict=True):
        out[...] = np.clip(np.rint(np.nan_to_num(piece.astype(np.float64)) * scale), 0, 255)
    return scaled


def _without_colour(image: Image.Image) -> bool:
    red, green, blue = (np.asarray(image.getchannel(channel)) for channel in range(3))
    return bool((red == green).all() and (green == blue).all())


def stack(pixels: Sequence[NDArray[np.uint8]], channels: int) -> Tensor:
    """Stack (H, W) and (H, W, 3) arrays of equal size into uint8 (N, C, H, W); a grey one is repeated if C is 3."""
    size = pixels[0].shape[0]
    images_NCHW = np.empty((len(pixels), channels, size, size), dtype=np.uint8)
    for i, array in enumerate(pixels):
        images_NCHW[i] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(images_NCHW)
