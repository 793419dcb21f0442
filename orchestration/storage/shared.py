"""Storage that every node of a cluster sees: a folder (local, NFS) or an object store, through pyarrow or fsspec.

With `storage.path` set, a worker trains in a folder of its own node and sends its files here, the driver fetches them,
and crafted sets are shared the same way. Nobody locks anything here, and a file appears whole or not at all, so that
an object store does as well as a disk. Credentials come from the environment of each node, never from the path.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from erat.config import content_digest
from erat.corruption.scratch import Scratch
from erat.corruption.store import Entry, Expected, Make, Store
from erat.errors import StorageError, UserError
from erat.files import previous, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

SEND_SECONDS = 30.0  # between two states of a crafting that are sent to the storage: what the death of a node may cost


class Storage:
    """Files by name under one place. `storage_at` makes it.

    Args:
        place: the path or URL, as a person gave it.
        filesystem: of pyarrow.
        root: the place inside that filesystem.
    """

    def __init__(self, place: str, filesystem: Any, root: str) -> None:
        self.place = place
        self._files, self._root = filesystem, root.rstrip("/")
        # An object appears when its upload ends; elsewhere a file is moved to its place.
        self._moves = filesystem.type_name not in ("s3", "gcs", "abfs")

    def write(self, name: str, content: bytes) -> None:
        """Put `content` at `name`, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        target = self._path(name)
        part = f"{target}.{os.getpid()}.part" if self._moves else target
        with self._told("written"):
            if self._moves:  # where objects are, there are no folders
                self._files.create_dir(target.rpartition("/")[0], recursive=True)
            try:
                with self._files.open_output_stream(part) as stream:
                    stream.write(content)
                if self._moves:
                    self._files.move(part, target)
            except OSError:
                if self._moves:
                    self._remove(part)
                raise

    def read(self, name: str) -> bytes | None:
        """What lies at `name`, or none if nothing does.

        Raises:
            StorageError: it cannot be told.
        """
        with self._told("read"):
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                return None
        return content

    def names(self, folder: str) -> list[str]:
        """Names of all files under a folder, relative to it; none if it is not there."""
        from pyarrow import fs

        prefix = self._path(folder) + "/"
        with self._told("read"):
            found = self._files.get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
        # fsspec gives absolute paths back where relative ones went in.
        paths = [item.path.lstrip("/") for item in found if item.is_file]
        return sorted(path.removeprefix(prefix.lstrip("/")) for path in paths if not path.endswith(".part"))

    def remove(self, name: str) -> None:
        """Take a file away; one that is not there is none to take."""
        with self._told("written"):
            self._remove(self._path(name))

    def _remove(self, path: str) -> None:
        try:
            self._files.delete_file(path)
        except FileNotFoundError:
            return

    def send(self, file: Path, name: str, *, keep_previous: bool = False) -> None:
        """Copy a file of this machine to `name`.

        Args:
            keep_previous: what was at `name` stays as `previous_name(name)`.
        """
        if keep_previous:
            self._keep(self._path(name), self._path(previous_name(name)))
        self.write(name, file.read_bytes())

    def _keep(self, path: str, before: str) -> None:
        with self._told("written"), suppress(FileNotFoundError):
            if self._moves:
                self._files.move(path, before)
            elif self._files.get_file_info(path).is_file:  # an object cannot be moved, but the store copies it itself
                self._files.copy_file(path, before)

    def fetch(self, name: str, file: Path) -> bool:
        """Copy `name` to a file of this machine, which goes if there is no such name; whether there is."""
        content = self.read(name)
        if content is None:
            file.unlink(missing_ok=True)
            return False
        write_atomic(file, content)
        return True

    def for_ray(self) -> tuple[Any, str]:
        """The filesystem, and a folder in it for Ray's own files."""
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


PATIENCE_SECONDS = 5  # of Google's client, whose last attempt may take as long again


@cache
def storage_at(place: str) -> Storage:
    """The storage behind a path or URL; nothing is read or written yet.

    Raises:
        UserError: no such kind of storage, or credentials in the URL.
    """
    from pyarrow import fs

    url = urlsplit(place)
    if "@" in url.netloc:
        raise UserError("storage.path must hold no credentials, which would be logged: give them by the environment")
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
    """Google's client tries for a quarter of an hour to get credentials that are not there; a URL can say how long."""
    if not place.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in place:
        return place
    return f"{place}{'&' if '?' in place else '?'}retry_limit_seconds={PATIENCE_SECONDS}"


def previous_name(name: str) -> str:
    """Where a storage keeps what was at `name` before."""
    return previous(Path(name)).as_posix()


class SharedStore(Store):
    """Crafted sets on this machine; what is missing is fetched from the storage, what is made is sent there."""

    def __init__(self, root: Path, storage: Storage) -> None:
        super().__init__(root)
        self._storage = storage

    def _read(self, path: Path, parameters: Mapping[str, Any], expected: Expected) -> Entry:
        try:
            return super()._read(path, parameters, expected)
        except FileNotFoundError:
            files = self._storage.names(self._name(path))
            if "manifest.json" not in files:
                raise
        # The manifest makes an entry: it comes last here, and went last there.
        for file in sorted(files, key=lambda name: name == "manifest.json"):
            self._storage.fetch(f"{self._name(path)}/{file}", path / file)
        return super()._read(path, parameters, expected)

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
    """What a crafting goes on from, on whichever node that is. The storage is written less often than the disk.

    Args:
        name: on the storage.
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
    """Where processes of this machine keep what lies on a storage: a folder of this user alone.

    Raises:
        UserError: the folder is somebody else's.
    """
    top = Path(tempfile.gettempdir()) / f"erat-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    found = top.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"{top} must be a folder that only this user can enter; remove it")
    return top / content_digest(place)
