"""Image files of any kind as square 8-bit arrays: finding them, decoding them, stacking them.

Shape suffixes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from erat.errors import UserError

# Named, because Pillow would start another program for some others (PostScript).
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
READERS = min(8, os.cpu_count() or 1)  # Pillow decodes outside Python's lock
BACKGROUND = "white"  # what shows through transparent pixels
MOST_PIXELS = 100_000_000  # of one image: it is held as RGBA meanwhile, once per reader

Source = Path | bytes | NDArray[Any]


class Decoded(NamedTuple):
    """One readable file.

    Attributes:
        pixels: uint8, (H, W) if the file is grey, (H, W, 3) if it has colour.
        position: a number in [0, 1) that depends on the file's bytes alone.
        digest: SHA-256 (hex) of these bytes.
    """

    pixels: NDArray[np.uint8]
    position: float
    digest: str


def visible_folders(folder: Path) -> list[Path]:
    """The folders directly inside, links followed, hidden ones left out, sorted by name.

    Raises:
        UserError: `folder` cannot be listed.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if os.path.isdir(entry.path))


def visible_files(folder: Path, outside: Iterable[Path] = ()) -> list[Path]:
    """All files at any depth, hidden ones left out, sorted by path; broken links are listed too.

    Links are followed, but each real folder is entered once and those in `outside` never, so that loops end.

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
    """Every file as size x size pixels, in order; None for one that is no readable image."""
    return [None if isinstance(image, str) else image for image in decode_all(paths, size)]


def decode_all(sources: Sequence[Source], size: int) -> list[Decoded | str]:
    """Every image as size x size pixels, in order; for one that cannot be read, why."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(decode, size=size), sources))


def read_one(path: Path, size: int) -> Decoded | None:
    """One file as `decode` reads it; None if broken."""
    image = decode(path, size)
    return None if isinstance(image, str) else image


def decode(source: Source, size: int) -> Decoded | str:
    """One image, upright: short side resized to `size` (bilinear, antialiased), centre cut out; a reason if broken.

    Args:
        source: a file, a file's bytes, or pixels: (H, W) or (H, W, 3), of a type that Pillow takes.
    """
    try:
        if isinstance(source, np.ndarray):
            content = source.tobytes()
            plain = to_eight_bit(Image.fromarray(source))
        else:
            if isinstance(source, Path) and not source.is_file():  # a broken link, or a pipe, which would never end
                return "no such file" if not source.exists() else "no regular file"
            content = source if isinstance(source, bytes) else source.read_bytes()
            plain = _upright(content, size)
        # fit() cuts the centre square out first and resizes it, which is the same and safe for very long images.
        square = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        return "no image of a known format" if content else "empty file"
    except _TooLargeError as error:
        return str(error)
    except Exception as error:  # Pillow's decoders answer damaged data with nearly every kind of exception
        return f"cannot be decoded: {' '.join(str(error).split())[:120] or type(error).__name__}"
    digest = hashlib.sha256(content)
    position = int.from_bytes(digest.digest()[:4], "big") / 2**32
    return Decoded(np.array(square), position, digest.hexdigest())


class _TooLargeError(Exception):
    """More pixels than are decoded."""


def _upright(content: bytes, size: int) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.draft(None, (2 * size, 2 * size))  # a JPEG photograph need not be decoded in full
        if image.width * image.height > MOST_PIXELS:
            raise _TooLargeError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
        return to_eight_bit(ImageOps.exif_transpose(image))


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Any Pillow mode as "L" (grey) or "RGB"; transparent pixels show white, deeper greys are scaled to 0-255."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(scale_deep(np.asarray(image)))
    grey = image.mode in ("1", "L", "LA", "La")
    palette = image.mode in ("P", "PA")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, BACKGROUND)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    if grey:
        return image.convert("L")
    colour = image.convert("RGB")
    return colour.convert("L") if palette and _without_colour(colour) else colour


def scale_deep(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Greys of 16 or 32 bit, or floats, as uint8 of the same shape.

    Integers above 255 are on the 16-bit scale; floats are on [0, 1] if none lies above 1, else on [0, 255].
    """
    levels = np.nan_to_num(values.astype(np.float64))
    if np.issubdtype(values.dtype, np.floating):
        scale = 255.0 if levels.max() <= 1 else 1.0
    else:
        scale = 1 / 257 if values.dtype.itemsize == 2 or levels.max() > 255 else 1.0
    return np.clip(np.rint(levels * scale), 0, 255).astype(np.uint8)


def _without_colour(image: Image.Image) -> bool:
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    return bool((red == green).all() and (green == blue).all())


def stack(pixels: Sequence[NDArray[np.uint8]], channels: int) -> Tensor:
    """Equally sized (H, W) and (H, W, 3) arrays as uint8 (N, C, H, W); a grey one is repeated where C is 3."""
    size = pixels[0].shape[0]
    images_NCHW = np.empty((len(pixels), channels, size, size), dtype=np.uint8)
    for i, array in enumerate(pixels):
        images_NCHW[i] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(images_NCHW)
