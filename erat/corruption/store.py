"""A content-addressed store of crafted sets: each is crafted once, written atomically, checked when read, and shared.

An entry is a folder that is named by the digest of its parameters. It holds `.npy` arrays and `manifest.json`, whose
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # below Python 3.12 pydantic needs this TypedDict, not typing's

from erat.config import content_digest
from erat.corruption.scratch import Scratch
from erat.engine.checkpoint import FULL_BYTES
from erat.errors import StorageError, StoreError, UserError
from erat.files import write_atomic
from erat.locks import held
from erat.records import DamagedError, read_json

Arrays = dict[str, NDArray[Any]]
Make = Callable[[], tuple[Arrays, dict[str, Any]]]
_UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


class Manifest(TypedDict):
    """The content of `manifest.json`. Of the fields that only some entries have, those that are read are typed here."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # type: ignore[misc]
    parameters: dict[str, Any]
    checksum: str
    kind: NotRequired[str]
    norm: NotRequired[str]
    epsilon: NotRequired[float | None]  # none: the images are changed without a bound
    max_norm: NotRequired[Annotated[float, Field(ge=0)]]
    mean_norm: NotRequired[Annotated[float, Field(ge=0)]]
    noise_rate: NotRequired[Annotated[float, Field(ge=0, le=1)]]
    transition: NotRequired[list[list[float]]]
    architecture: NotRequired[str]
    val_accuracy: NotRequired[Annotated[float, Field(ge=0, le=1)]]
    source: NotRequired[dict[str, Any] | None]


MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Form:
    """The form that an array must have.

    Attributes:
        dtype: the type as numpy writes it, with the byte order: "|u1", "<i8".
        shape: the shape of the array.
        below: for an array of classes, the number of classes; None: any finite number is allowed.
    """

    dtype: str
    shape: tuple[int, ...]
    below: int | None = None


@dataclass(frozen=True)
class Expected:
    """The content that an entry must have: exactly these arrays (none: any), and these fields in its manifest."""

    arrays: Mapping[str, Form] | None = None
    fields: tuple[str, ...] = ()


ANY = Expected()


@dataclass(frozen=True)
class Entry:
    """One entry of the store: its folder, its manifest and its arrays (memory-mapped, read-only)."""

    path: Path
    manifest: dict[str, Any]
    arrays: Arrays


class Store:
    """The entries under one folder.

    Args:
        root: the folder; it is created with the first entry.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, parameters: Mapping[str, Any]) -> Path:
        """Return the folder of the entry made from these parameters, whether it exists or not."""
        return self.root / f"{parameters['part']}-{content_digest(parameters)}"

    def workspace(self, parameters: Mapping[str, Any]) -> Path:
        """Return a folder for the files from which an interrupted making of this entry resumes.

        It is removed once the entry is complete.
        """
        return self.root / f".{self.path(parameters).name}.work"

    def scratch(self, parameters: Mapping[str, Any]) -> Scratch:
        """Return the state from which an interrupted making of this entry resumes, kept in its `workspace`."""
        return Scratch(self.workspace(parameters) / "state.pt")

    def __contains__(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether the entry exists and is sound; warn if it is damaged."""
        try:
            self._read(self.path(parameters), parameters, ANY)
        except FileNotFoundError:
            return False
        except DamagedError as error:
            warnings.warn(f"{self.path(parameters)} is damaged ({error}): it will be made again", stacklevel=2)
            return False
        return True

    def fetch(self, parameters: Mapping[str, Any], make: Make, expected: Expected = ANY) -> Entry:
        """Return the entry made from `parameters`; if it is missing or damaged, one process makes it now.

        Args:
            parameters: everything that decides the content, JSON-like; "part" names the kind of entry.
            make: returns (arrays, manifest fields).
            expected: the content that the entry must have; an entry with other content counts as damaged.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self.path(parameters)
        damage = ""
        try:
            # An entry appears complete, so a sound one is read without the lock: a store may be shared read-only.
            return self._read(path, parameters, expected)
        except FileNotFoundError:
            pass
        except DamagedError as error:
            damage = f"{path} is damaged ({error}), and "
        try:
            with self._locked(path):
                try:
                    return self._find(path, parameters, expected)  # made by another process while this one waited
                except FileNotFoundError:
                    pass
                except DamagedError as error:
                    warnings.warn(f"{path} is damaged ({error}): it is made again", stacklevel=2)
                    remove(path)
                return self._write(path, parameters, make, expected)
        except OSError as error:
            if isinstance(error, UserError | StorageError) or error.errno not in _UNWRITABLE:
                raise
            words = f"{damage}the store {self.root} cannot be written: {error.strerror}"
            raise StoreError(error.errno, words) from error

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of the entry at `path` while the block runs: only its holder puts a folder there."""
        self.root.mkdir(parents=True, exist_ok=True)
        with held(self.root / f".{path.name}.lock", patience=None, sign=self.root / f".{path.name}.heartbeat"):
            yield

    def _find(self, path: Path, parameters: Mapping[str, Any], expected: Expected) -> Entry:
        """Return the entry as `_read` does; the caller holds its lock."""
        return self._read(path, parameters, expected)

    def _part(self, path: Path) -> Path:
        """Return the folder in which the holder of the lock puts an entry together, before it is moved to `path`."""
        return self.root / f".{path.name}.part"

    def _read(self, path: Path, parameters: Mapping[str, Any], expected: Expected) -> Entry:
        """Return the entry after checking its checksum and its content against what is expected.

        Raises:
            FileNotFoundError: there is no such entry.
            DamagedError: the entry cannot be used; the message says why.
        """
        if not path.is_dir():
            if os.path.lexists(path):
                raise DamagedError("it is not a folder")
            raise FileNotFoundError(path)
        try:
            manifest = read_json(path / "manifest.json", MANIFEST)
            # Otherwise the folder of another entry, renamed to this one's name, would be used in its place.
            if content_digest(manifest["parameters"]) != content_digest(parameters):
                raise DamagedError("its manifest is another set's")
            for key in expected.fields:
                if key not in manifest:
                    raise DamagedError(f"its manifest lacks {key}")
            arrays = _arrays(path, expected.arrays)
            if _checksum(path) != manifest["checksum"]:
                raise DamagedError("its checksum does not fit")
            _check_values(arrays, expected.arrays)
        except OSError as error:
            raise DamagedError(f"{Path(error.filename or path).name}: {error.strerror or error}") from error
        return Entry(path, {**manifest, "path": str(path)}, arrays)

    def _write(self, path: Path, parameters: Mapping[str, Any], make: Make, expected: Expected) -> Entry:
        arrays, fields = make()
        part = self._part(path)
        remove(part)
        try:
            part.mkdir()
            for name, array in arrays.items():
                with (part / f"{name}.npy").open("wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())
            manifest = {**fields, "parameters": dict(parameters), "checksum": _checksum(part)}
            write_atomic(part / "manifest.json", json.dumps(manifest, indent=2, default=str).encode())
            os.replace(part, path)
        except OSError as error:
            # numpy's error for a partly written array does not say that the disk is full.
            if error.errno is None and shutil.disk_usage(self.root).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part)) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(self.workspace(parameters), ignore_errors=True)
        return self._read(path, parameters, expected)


def remove(path: Path) -> None:
    """Remove whatever is at `path`, be it a folder, a file or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _arrays(path: Path, forms: Mapping[str, Form] | None) -> Arrays:
    """Return the arrays of an entry, memory-mapped from their files; no pickle is read.

    Raises:
        DamagedError: an array is missing, not expected, or of another form.
    """
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    if forms is not None and files.keys() != forms.keys():
        raise DamagedError(f"its arrays must be {', '.join(sorted(forms)[:5])}, got {', '.join(files)[:80] or 'none'}")
    arrays: Arrays = {}
    for name, file in files.items():
        if not file.is_file():
            raise DamagedError(f"{file.name} is not a file")
        try:
            array = np.lib.format.open_memmap(file, mode="r")
        except OSError:
            raise
        except Exception as error:  # numpy's reader can raise any error on a damaged header
            raise DamagedError(f"{file.name}: {' '.join(str(error).split())[:150]}") from error
        arrays[name] = array
        if forms is not None and (array.dtype.str, array.shape) != (forms[name].dtype, forms[name].shape):
            got = f"{array.dtype.str} {array.shape}"
            raise DamagedError(f"{file.name} must be {forms[name].dtype} {forms[name].shape}, got {got}")
        if not array.flags.c_contiguous:
            raise DamagedError(f"{file.name} is in Fortran's order")
        if array.offset + array.nbytes != file.stat().st_size:
            raise DamagedError(f"{file.name} is longer than its array")
    return arrays


def _check_values(arrays: Arrays, forms: Mapping[str, Form] | None) -> None:
    """Refuse arrays that hold non-finite numbers or classes that do not exist.

    Raises:
        DamagedError: there is such an array.
    """
    for name, form in (forms or {}).items():
        array = arrays[name]
        if form.below is not None and array.size and not (array.min() >= 0 and array.max() < form.below):
            raise DamagedError(f"{name} must be in [0, {form.below}), got {array.min()} to {array.max()}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedError(f"{name} holds numbers that are not finite")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that an entry is made with, for its manifest."""
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _checksum(folder: Path) -> str:
    """Return the SHA-256, in hex digits, over the names and contents of the array files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.npy")):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
