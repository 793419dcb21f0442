"""A content-addressed store of crafted sets: crafted once, written atomically, checked when read, shared.

An entry is a folder named by the digest of what it was made from. It holds `.npy` arrays and `manifest.json`, whose
checksum covers the arrays. Processes that want the same entry wait for the one that makes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from erat.config import content_digest
from erat.corruption.scratch import Scratch
from erat.errors import UserError

Arrays = dict[str, NDArray[Any]]
Make = Callable[[], tuple[Arrays, dict[str, Any]]]


@dataclass(frozen=True)
class Entry:
    """One stored thing: where it lies, its manifest, its arrays (memory-mapped, read-only)."""

    path: Path
    manifest: dict[str, Any]
    arrays: Arrays


class Store:
    """Entries under one folder.

    Args:
        root: the folder; made when the first entry is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, parameters: Mapping[str, Any]) -> Path:
        """Where the entry made from these parameters lies, or would."""
        return self.root / f"{parameters['part']}-{content_digest(parameters)}"

    def workspace(self, parameters: Mapping[str, Any]) -> Path:
        """A folder for what a maker of this entry needs to go on after an interruption; gone once the entry is made."""
        return self.root / f".{self.path(parameters).name}.work"

    def scratch(self, parameters: Mapping[str, Any]) -> Scratch:
        """What an interrupted maker of this entry goes on from, in its workspace."""
        return Scratch(self.workspace(parameters) / "state.pt")

    def __contains__(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the entry is there and sound; a damaged one is warned of."""
        path = self.path(parameters)
        sound = self._sound(path) is not None
        if not sound and path.exists():
            warnings.warn(f"{path} is damaged (its checksum does not fit): it will be made again", stacklevel=2)
        return sound

    def fetch(self, parameters: Mapping[str, Any], make: Make) -> Entry:
        """The entry made from `parameters`; made now, by one process, if it is missing or damaged.

        Args:
            parameters: everything that decides the content, JSON-like; "part" names its sort.
            make: returns (arrays, manifest fields).

        Raises:
            UserError: the store cannot be written.
        """
        path = self.path(parameters)
        # An entry appears whole, so a sound one is read without the lock: a store may be shared read-only.
        if (entry := self._sound(path)) is not None:
            return entry
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{path.name}.lock"):
                if (entry := self._sound(path)) is not None:
                    return entry  # made by another process while this one waited
                if path.exists():
                    warnings.warn(f"{path} is damaged (its checksum does not fit): made again", stacklevel=3)
                    shutil.rmtree(path)
                return self._write(path, parameters, make)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST):
                raise UserError(f"the store {self.root} cannot be written: {error.strerror}") from error
            raise

    def _sound(self, path: Path) -> Entry | None:
        """The entry if it is there and its checksum fits."""
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if _checksum(path) == manifest["checksum"]:
                arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}
                return Entry(path, manifest | {"path": str(path)}, arrays)
        except (OSError, ValueError, KeyError):
            pass
        return None

    def _write(self, path: Path, parameters: Mapping[str, Any], make: Make) -> Entry:
        arrays, fields = make()
        part = self.root / f".{path.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            for name, array in arrays.items():
                with (part / f"{name}.npy").open("wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())
            manifest = {**fields, "parameters": dict(parameters), "checksum": _checksum(part)}
            (part / "manifest.json").write_text(json.dumps(manifest, indent=2, default=str))
            os.replace(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(self.workspace(parameters), ignore_errors=True)
        entry = self._sound(path)
        assert entry is not None, "what was just written reads back"
        return entry


def versions() -> dict[str, str]:
    """What an entry was made with, for its manifest."""
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _checksum(folder: Path) -> str:
    """SHA-256 over the arrays, names included."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.npy")):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
