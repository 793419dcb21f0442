"""Provides storage that every node of a cluster sees: a folder (local, NFS) or an object store, by pyarrow or fsspec.

With `storage.path` set, a worker trains in a folder of its own node and sends its files to the storage, the driver
fetches them from there, and crafted sets are shared in the same way. A file appears complete or not at all, so that an
object store serves as well as a disk; that one worker at a time writes the files of a run is seen to by leases
(`orchestration.storage.lease`). Credentials come from the environment of each node, never from the path.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from erat.config import content_digest
from erat.corruption.scratch import Scratch
from erat.corruption.store import Entry, Expected, Make, Store, remove
from erat.errors import StorageError, UserError
from erat.files import previous, write_atomic
from orchestration.storage.exclusive import create

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# Seconds between two states of a crafting that are sent to the storage, which is the work that a node's death may cost.
SEND_SECONDS = 30.0
PIECE_BYTES = 4 * 2**20  # after each piece of a file, a writer asks whether newer content waits


class Storage:
    """Files by name under one path or URL; `storage_at` creates it.

    Args:
        place: the path or URL as the user gave it.
        filesystem: a filesystem of pyarrow.
        root: the path inside that filesystem.
    """

    def __init__(self, place: str, filesystem: Any, root: str) -> None:
        self.place = place
        self._files, self._root = filesystem, root.rstrip("/")
        # In an object store, an object appears when its upload ends; elsewhere, a finished file is moved into place.
        self._moves = filesystem.type_name not in ("s3", "gcs", "abfs")

    def write(
        self,
        name: str,
        content: bytes | mmap,
        *,
        keep_previous: bool = False,
        overtaken: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write `content` to `name`, completely or not at all.

        Args:
            keep_previous: keep the old content of `name` as `previous_name(name)`.
            overtaken: returns whether newer content is waiting to be written to `name`; this one is then given up, and
                what was there stays. An upload to an object store that has begun is finished nevertheless.

        Raises:
            StorageError: the storage cannot be written.
        """
        target = self._path(name)
        if overtaken():
            return
        with self._told("written"):
            self._make_folder(target)
            if not self._moves:
                self._keep(target, keep_previous)
                with self._files.open_output_stream(target) as stream:
                    stream.write(content)  # at once: one that is closed after a part of it would complete the object
                return
            # Two nodes may write the same file, and their processes may have the same number.
            part = f"{target}.{uuid4().hex}.part"
            try:
                if self._fill(part, content, overtaken):
                    self._keep(target, keep_previous)
                    self._files.move(part, target)
                else:
                    self._remove(part)
            except OSError:
                self._remove(part)
                raise

    def _fill(self, part: str, content: bytes | mmap, overtaken: Callable[[], bool]) -> bool:
        """Write `content` piece by piece until it is overtaken, and return whether all of it was written."""
        whole = memoryview(content)
        with self._files.open_output_stream(part) as stream:
            for start in range(0, len(whole), PIECE_BYTES):
                if overtaken():
                    return False
                stream.write(whole[start : start + PIECE_BYTES])
        return True

    def _make_folder(self, target: str) -> None:
        if self._moves:  # an object store has no folders
            self._files.create_dir(target.rpartition("/")[0], recursive=True)

    def create(self, name: str, content: bytes) -> bool:
        """Write `content` to `name` if there is no such file; of several callers at once, one succeeds.

        Returns:
            Whether it was written.

        Raises:
            StorageError: the storage cannot be written.
        """
        target = self._path(name)
        with self._told("written"):
            self._make_folder(target)
            return create(self._files, self.place, target, content)

    def read(self, name: str) -> bytes | None:
        """Return the content of `name`, or None if there is no such file.

        Raises:
            StorageError: the storage cannot be read.
        """
        with self._told("read"):
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                return None
        return content

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of all files under a folder, relative to it; an empty list if there is no folder.

        Raises:
            StorageError: the storage cannot be read.
        """
        from pyarrow import fs

        prefix = self._path(folder) + "/"
        with self._told("read"):
            found = self._files.get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
        # fsspec returns absolute paths for relative ones.
        paths = [item.path.lstrip("/") for item in found if item.is_file]
        return sorted(path.removeprefix(prefix.lstrip("/")) for path in paths if not path.endswith(".part"))

    def age(self, name: str) -> float | None:
        """Return the seconds since a file was written, by the storage's clock; None if it is absent or that is unknown.

        Raises:
            StorageError: the storage cannot be read.
        """
        with self._told("read"):
            written = self._files.get_file_info(self._path(name)).mtime
        return None if written is None else time.time() - written.timestamp()

    def remove(self, name: str) -> None:
        """Delete a file, if it exists.

        Raises:
            StorageError: the storage cannot be written.
        """
        with self._told("written"):
            self._remove(self._path(name))

    def _remove(self, path: str) -> None:
        try:
            self._files.delete_file(path)
        except FileNotFoundError:
            return

    def send(self, file: Path, name: str, **how: Any) -> None:
        """Upload a file of this machine to `name`; `how` and errors are as for `write`."""
        with file.open("rb") as opened:
            # Mapped and not read: a checkpoint may be larger than the memory that is free beside the training.
            size = os.fstat(opened.fileno()).st_size
            self.write(name, mmap(opened.fileno(), size, access=ACCESS_READ) if size else b"", **how)

    def _keep(self, path: str, wanted: bool) -> None:
        """Keep the file at `path`, if there is one and that is wanted, under the name of the one before it."""
        if not wanted:
            return
        before = previous_name(path)
        with suppress(FileNotFoundError):
            if self._moves:
                self._files.move(path, before)
            elif self._files.get_file_info(path).is_file:  # an object cannot be moved, but the store can copy it
                self._files.copy_file(path, before)

    def fetch(self, name: str, file: Path) -> bool:
        """Download `name` to a local file, or delete the local file if `name` does not exist.

        Returns:
            Whether `name` exists.

        Raises:
            StorageError: the storage cannot be read.
        """
        content = self.read(name)
        if content is None:
            file.unlink(missing_ok=True)
            return False
        write_atomic(file, content)
        return True

    def for_ray(self) -> tuple[Any, str]:
        """Return the filesystem, and the path of a folder in it for Ray's own files."""
        return self._files, f"{self._root}/ray"

    def _path(self, name: str) -> str:
        parts = name.split("/")
        assert all(part not in ("", ".", "..") for part in parts), f"{name!r} would leave the storage"
        return "/".join([self._root, *parts])

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise StorageError(error.errno, f"the storage {self.place} cannot be {what}: {reason}") from error


PATIENCE_SECONDS = 5  # time limit for retries of Google's client, whose last attempt may take as long again


@cache
def storage_at(place: str) -> Storage:
    """Return the storage for a path or URL, without reading or writing anything.

    Raises:
        UserError: this kind of storage is not known or cannot be used, or the URL holds credentials.
    """
    from pyarrow import fs

    url = urlsplit(place)
    if "@" in url.netloc:
        raise UserError("storage.path must hold no credentials, which would be logged: set them in the environment")
    if not url.scheme:
        return Storage(place, fs.LocalFileSystem(), str(Path(place).expanduser().absolute()))
    try:
        try:
            filesystem, root = fs.FileSystem.from_uri(_with_patience(place))
        except (ValueError, NotImplementedError):  # a scheme that pyarrow does not know
            from fsspec.core import url_to_fs

            other, root = url_to_fs(place)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"storage.path={place} cannot be used: {reason}; a folder, s3://, gs://, file://") from error
    return Storage(place, filesystem, root)


def _with_patience(place: str) -> str:
    """Limit the time in a Google URL for which the client tries to get credentials, a quarter of an hour by default."""
    if not place.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in place:
        return place
    return f"{place}{'&' if '?' in place else '?'}retry_limit_seconds={PATIENCE_SECONDS}"


def previous_name(name: str) -> str:
    """Return the name under which a storage keeps the previous content of `name`."""
    return previous(Path(name)).as_posix()


class SharedStore(Store):
    """A store of crafted sets on this machine: it downloads missing sets from the storage and uploads new ones."""

    def __init__(self, root: Path, storage: Storage) -> None:
        super().__init__(root)
        self._storage = storage

    def __contains__(self, parameters: Mapping[str, Any]) -> bool:
        path = self.path(parameters)
        if not path.exists() and self._names(path):
            with self._locked(path):
                self._download(path)
        return super().__contains__(parameters)

    def _find(self, path: Path, parameters: Mapping[str, Any], expected: Expected) -> Entry:
        self._download(path)
        return super()._find(path, parameters, expected)

    def _download(self, path: Path) -> None:
        """Download an entry that is missing here, if the storage has it; the caller holds its lock.

        It appears at `path` as a whole: a process that reads without the lock must not see a part of it, which it would
        take for a damaged entry and delete.
        """
        if os.path.lexists(path) or not (files := self._names(path)):
            return
        part = self._part(path)
        remove(part)
        try:
            for file in files:
                self._storage.fetch(f"{self._name(path)}/{file}", part / file)
            os.replace(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _names(self, path: Path) -> list[str]:
        """Return the names of an entry's files on the storage, none unless it is complete: its manifest comes last."""
        files = self._storage.names(self._name(path))
        return files if "manifest.json" in files else []

    def _write(self, path: Path, parameters: Mapping[str, Any], make: Make, expected: Expected) -> Entry:
        entry = super()._write(path, parameters, make, expected)
        for file in sorted(path.iterdir(), key=lambda file: file.name == "manifest.json"):
            self._storage.send(file, f"{self._name(path)}/{file.name}")
        for name in (self._state_name(path), previous_name(self._state_name(path))):
            self._storage.remove(name)
        return entry

    def scratch(self, parameters: Mapping[str, Any]) -> Scratch:
        here = super().scratch(parameters)
        return SharedScratch(here.path, self._storage, self._state_name(self.path(parameters)))

    def _state_name(self, path: Path) -> str:
        return f"crafting/{path.name}.pt"

    @staticmethod
    def _name(path: Path) -> str:
        return f"crafted/{path.name}"


class SharedScratch(Scratch):
    """The saved state of a crafting, which can resume on any node. The storage is written less often than the disk.

    Args:
        path: the local file, or none.
        storage: the shared storage.
        name: the name of the state on the storage.
    """

    def __init__(self, path: Path | None, storage: Storage, name: str) -> None:
        super().__init__(path)
        self._storage, self._name = storage, name
        self._sent = time.monotonic()

    def load(self, device: torch.device) -> dict[str, Any] | None:
        if self.path is not None and self._storage.names(self._name.partition("/")[0]):
            for file, name in ((self.path, self._name), (previous(self.path), previous_name(self._name))):
                if (content := self._storage.read(name)) is not None:
                    write_atomic(file, content)
        return super().load(device)

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        super()._write(path, state)
        if time.monotonic() - self._sent >= SEND_SECONDS:
            self._storage.send(path, self._name, keep_previous=True)
            self._sent = time.monotonic()


def node_folder(place: str) -> Path:
    """Return the folder in which processes of this machine keep files of a storage; only this user can enter it.

    Raises:
        UserError: the folder belongs to another user, or others can enter it.
    """
    top = Path(tempfile.gettempdir()) / f"erat-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    found = top.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"{top} must be a folder that only this user can enter; remove it")
    return top / content_digest(place)
