"""Computes the fingerprint of an image set: 16 hex digits of its content, part of a run's identity.

The fingerprint does not depend on where the set is stored. It covers the set as its source provides it, before
`data.limit` and `data.image_size`, which are separate keys. For a user's own files it covers their bytes, so that
nothing need be decoded; for any other set it covers the loaded arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from pydantic import TypeAdapter

from erat.data.image_files import MOST_FILE, READERS, Source
from erat.data.places import place_of, with_fingerprint
from erat.data.types import ImageSet, ImageSource, TrustingSource
from erat.errors import UserError
from erat.registry import DATASETS

if TYPE_CHECKING:
    from erat.config import RunConfig
    from erat.options import DataConfig

Parts = tuple[ImageSet, ImageSet, ImageSet | None]

DIGITS = 16
# The version of how the content is read; increase it with any change that gives the same files another fingerprint.
VERSION = 1
SETTLED_NS = 2_000_000_000  # a file that changed this recently may change again without a change of its times
NO_FILE = "no readable file"
_Page = TypeAdapter(dict[str, str])


# --- fingerprints of loaded content ----------------------------------------------------------------------------------


def read_parts(source: ImageSource, config: DataConfig) -> Parts:
    """Return (train, test, images with trusted labels or none) from the source; raises the errors of its `load`."""
    return source.load_parts(config) if isinstance(source, TrustingSource) else (*source.load(config), None)


def of_arrays(parts: Parts) -> str:
    """Return the fingerprint of loaded sets: of their images, labels and class names, and of their part."""
    return _shortened([None if part is None else part.fingerprint for part in parts])


def of_items(items: Iterable[tuple[str, str, str]], classes: Sequence[str]) -> str:
    """Return the fingerprint of listed images, in their order.

    Args:
        items: (part, label, `digest_of` the image) for each image.
        classes: the names of the classes, in their order.
    """
    return _shortened([list(classes), [list(item) for item in items]])


def digest_of(source: Source) -> str:
    """Return a digest of one image's bytes or pixels, or `NO_FILE` for anything that would not be decoded."""
    if isinstance(source, np.ndarray):
        return array_digest(source.shape, hashlib.sha256(source.tobytes()).hexdigest())
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        # Reading a pipe would never end, and a larger file is not decoded either.
        if not source.is_file() or source.stat().st_size > MOST_FILE:
            return NO_FILE
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return NO_FILE


def array_digest(shape: Sequence[int], digest: str) -> str:
    """Return the digest of pixels from their shape and the digest of their bytes."""
    return f"{'x'.join(map(str, shape))} {digest}"


def require(config: DataConfig, found: str) -> None:
    """Check that the images are those that the run was planned with, if its configuration names a fingerprint.

    Args:
        found: the fingerprint of the images that were read.

    Raises:
        UserError: the fingerprints differ.
    """
    if config.fingerprint not in (None, found):
        where = f"data.name={config.name}" if config.root is None else f"data.root={config.root}"
        raise UserError(
            f"the images under {where} are not those that this run was planned with: "
            f"data.fingerprint must be {found}, got {config.fingerprint}"
        )


def _shortened(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:DIGITS]


# --- fingerprints of stored content, without reading it again --------------------------------------------------------


@runtime_checkable
class ListedSource(ImageSource, Protocol):
    """A source that computes the fingerprint of its content without decoding it, and checks it when it reads."""

    def fingerprint(self, config: DataConfig, cache: Cache) -> str:
        """Return the fingerprint; raises the errors of `load`."""
        ...


@runtime_checkable
class FiledSource(ImageSource, Protocol):
    """A source that knows all files that it reads: while none of them changes, their arrays need not be loaded."""

    def files(self, config: DataConfig) -> list[Path]:
        """Return all files, or an empty list while any of them is missing."""
        ...


class Page(dict[str, str]):
    """The known digests of the files of one place: `stamp_of` a file -> digest of its content."""

    def __init__(self, known: dict[str, str]) -> None:
        super().__init__()
        self.known = known

    def look(self, stamp: str | None) -> str | None:
        """Return the known digest of a file in this state, or none; a known digest stays on the page."""
        found = None if stamp is None else self.known.get(stamp)
        if stamp is not None and found is not None:
            self[stamp] = found
        return found

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """Return `digest_of` each file; only files whose present state is not known are read."""
        stamps = [stamp_of([path]) for path in paths]
        found = [self.look(stamp) for stamp in stamps]
        unknown = [row for row, digest in enumerate(found) if digest is None]
        with ThreadPoolExecutor(READERS) as pool:
            for row, digest in zip(unknown, pool.map(lambda row: digest_of(paths[row]), unknown), strict=True):
                found[row] = digest
                if (stamp := stamps[row]) is not None and digest != NO_FILE:
                    self[stamp] = digest
        return [str(digest) for digest in found]


class Cache:
    """A cache of file digests in a folder; an entry holds while the file's path, size and times do not change.

    Args:
        folder: the folder of the cache; none, or one that cannot be read or written: nothing is cached.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    @contextmanager
    def page(self, place: Path) -> Iterator[Page]:
        """Yield the known digests of the files at `place`; save those that were looked up or added in the block."""
        page = Page(self._read(place))
        yield page
        if self.folder is None or dict(page) == page.known:
            return
        content = json.dumps(page)
        text = f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}"
        path, part = self._path(place), self._path(place).with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(text)
            part.replace(path)
        except OSError:  # read-only or full: the digests are computed again next time
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _read(self, place: Path) -> dict[str, str]:
        if self.folder is None:
            return {}
        try:
            checksum, _, content = self._path(place).read_text().partition("\n")
            sound = hashlib.sha256(content.encode()).hexdigest() == checksum
            return _Page.validate_python(json.loads(content)) if sound else {}
        except (OSError, ValueError):
            return {}

    def _path(self, place: Path) -> Path:
        assert self.folder is not None
        return self.folder / f"{_shortened([VERSION, os.path.abspath(place)])}.json"


def stamp_of(paths: Sequence[Path]) -> str | None:
    """Return a stamp that changes whenever one of these files changes.

    Returns:
        The stamp, or none if a file is missing or has changed so recently that its times may not show another change.
    """
    parts, now = [], time.time_ns()
    for path in paths:
        try:
            status = path.stat()
        except (OSError, ValueError):  # ValueError: a table names a path with a NUL character
            return None
        if status.st_ctime_ns > now - SETTLED_NS:
            return None
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        parts.append(f"{os.path.abspath(path)} {status.st_size} {times} {status.st_dev} {status.st_ino}")
    return parts[0] if len(parts) == 1 else _shortened(parts)


def fingerprint_of(config: DataConfig, cache: Cache) -> str:
    """Return the fingerprint of the image set that a configuration names.

    Raises:
        UserError: the `load` of its source would fail.
    """
    source = DATASETS[config.name]
    config = config.model_copy(update={"fingerprint": None})
    if isinstance(source, ListedSource):
        return source.fingerprint(config, cache)
    files = source.files(config) if isinstance(source, FiledSource) else []
    if not files:
        return of_arrays(read_parts(source, config))
    with cache.page(Path(config.root or files[0].parent)) as page:
        stamp = stamp_of(files)
        stamp = stamp and f"{place_of(config)} {stamp}"
        found = page.look(stamp) or of_arrays(read_parts(source, config))
        if stamp is not None:
            page[stamp] = found
    return found


class Fingerprints:
    """Fills in `data.fingerprint`; the fingerprint of each set is computed once.

    Args:
        cache: the cache of file digests.
        known: `place_of` a set -> its fingerprint.
    """

    def __init__(self, cache: Cache | None = None, known: dict[str, str] | None = None) -> None:
        self._cache, self._known = cache or Cache(), dict(known or {})

    def __call__(self, config: RunConfig) -> RunConfig:
        """Return the configuration with its image set's fingerprint.

        The configuration of a set that is the same everywhere has its fingerprint already; loading the set checks it.

        Raises:
            UserError: the images cannot be read, or do not have the fingerprint that was given.
        """
        data = config.data
        if DATASETS.facts(data.name).fingerprint is not None:
            return config
        place = place_of(data)
        if place not in self._known:
            self._known[place] = fingerprint_of(data, self._cache)
        require(data, self._known[place])
        return with_fingerprint(config, self._known[place])
