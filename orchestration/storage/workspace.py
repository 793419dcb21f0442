"""The workspace: the folder for everything that runs write (`ERAT_HOME`, default `./runs`), and its shared storage."""

from __future__ import annotations

import itertools
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from erat.errors import UserError, shown
from erat.files import write_atomic

if TYPE_CHECKING:
    from erat.corruption.store import Store
    from erat.data.fingerprint import Fingerprints
    from orchestration.storage.shared import Storage


@dataclass(frozen=True)
class Workspace:
    """The folder of all results, and the names of the files and folders inside it.

    All paths are absolute, because Ray's workers change their working directory.

    Attributes:
        root: absolute path of the folder.
        place: path or URL of the storage through which the nodes of a cluster share run directories and crafted sets.
            None if all nodes see the same folder.
    """

    root: Path
    place: str | None = None

    @classmethod
    def from_environment(
        cls, *, reading: bool = False, make: bool = True, folder: str | Path | None = None
    ) -> Workspace:
        """Return the workspace at `ERAT_HOME`, or at `./runs` if that is not set; create the folder if it is missing.

        Args:
            reading: whether the caller will only read, so that a read-only folder is accepted.
            make: whether to create a missing folder.
            folder: path to use instead of `ERAT_HOME`.

        Raises:
            UserError: The folder cannot be created, read or (unless `reading`) written, or it contains a file where a
                folder is expected or the reverse.
        """
        given = str(folder) if folder is not None else os.environ.get("ERAT_HOME") or "runs"
        try:
            workspace = cls(Path(given).expanduser().resolve())
            if not make and not workspace.root.exists():
                return workspace
            workspace.root.mkdir(parents=True, exist_ok=True)
            workspace._check()
        except (RuntimeError, ValueError) as error:  # unknown user after "~", circular links, an illegal character
            if isinstance(error, UserError):
                raise
            raise UserError(f"ERAT_HOME={shown(given, 300)[1:-1]} is no path: {error}") from error
        except OSError as error:
            raise UserError(f"ERAT_HOME={shown(given, 300)[1:-1]} cannot be made: {error.strerror}") from error
        if not os.access(workspace.root, os.R_OK | os.X_OK):
            raise UserError(f"ERAT_HOME={workspace.root} is not readable; set ERAT_HOME to a folder that is")
        if not reading and not os.access(workspace.root, os.W_OK):
            raise UserError(f"ERAT_HOME={workspace.root} is not writable; set ERAT_HOME to a folder that is")
        return workspace

    def _check(self) -> None:
        """Raise `UserError` if something other than a folder stands where a folder belongs, or likewise for a file."""
        folders = ("cells", "reports", "outbox", "audits", "ray", "mlartifacts")
        for path in (self.ledger, self.mlflow_database, *(self.root / name for name in folders)):
            is_file = path.suffix != ""
            if os.path.lexists(path) and not (path.is_file() if is_file else path.is_dir()):
                raise UserError(f"{path} must be a {'file' if is_file else 'folder'}: move away what lies there")

    def sharing(self, place: str | None) -> Workspace:
        """Return this workspace with `place` as the storage for its run directories and crafted sets."""
        return replace(self, place=place)

    def on_this_node(self) -> Workspace:
        """Return the workspace of a worker: this one, or, if there is a storage, a folder on the worker's own disk."""
        if self.place is None:
            return self
        from orchestration.storage.shared import node_folder

        return Workspace(node_folder(self.place), self.place)

    @property
    def storage(self) -> Storage | None:
        """Return the storage that `place` names, or None if `place` is None.

        Raises:
            UserError: `place` names no known kind of storage.
        """
        if self.place is None:
            return None
        from orchestration.storage.shared import storage_at

        return storage_at(self.place)

    def store(self) -> Store:
        """Return the store of crafted data sets, which goes through the shared storage if there is one."""
        from erat.corruption.store import Store

        if self.storage is None:
            return Store(self.crafted)
        from orchestration.storage.shared import SharedStore

        return SharedStore(self.crafted, self.storage)

    def fingerprints(self) -> Fingerprints:
        """Return the function that adds the fingerprint of the images to a configuration.

        Fingerprints of files that were read before are cached in this workspace.
        """
        from erat.data.fingerprint import Cache, Fingerprints

        return Fingerprints(Cache(self.root / "fingerprints"))

    def identity(self) -> str:
        """Return 8 hex digits that tell this workspace from all others; they are drawn when they are first asked for.

        Raises:
            OSError: They cannot be stored.
        """
        from erat.locks import held

        file = self.root / ".identity"
        with held(self.root / ".identity.lock"):
            if not file.exists():
                write_atomic(file, uuid4().hex[:8].encode())
        return file.read_text()

    @property
    def ledger(self) -> Path:
        """Return the path of the ledger: what ran and what is left to run, one JSON line per event."""
        return self.root / "ledger.jsonl"

    @property
    def crafted(self) -> Path:
        """Return the folder of crafted data sets."""
        return self.root / "crafted"

    @property
    def mlflow_database(self) -> Path:
        """Return the path of the SQLite file that MLflow uses by default."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Return the folder in which MLflow's default store keeps artifacts."""
        return self.root / "mlartifacts"

    @property
    def ray(self) -> Path:
        """Return the folder in which Ray Tune keeps its own results."""
        return self.root / "ray"

    def run_directory(self, digest: str) -> Path:
        """Return the folder of the run with this digest; `orchestration.run.directory` describes its content."""
        return self.root / "cells" / digest

    def report(self, name: str) -> Path:
        """Return the folder of the tables and figures of the study `name`."""
        return self.root / "reports" / name


def move_aside(path: Path, *, folder: bool) -> None:
    """Rename whatever is at `path` if it is of the wrong kind, and warn about it.

    The new name is the old one with the first free number appended, such as `cells.1`.

    Args:
        path: where a folder or file is about to be written; nothing happens if nothing is there.
        folder: whether `path` must be a folder (otherwise: a file).
    """
    if os.path.lexists(path) and not (path.is_dir() if folder else path.is_file()):
        names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        os.rename(path, aside)
        warnings.warn(f"{path} must be a {'folder' if folder else 'file'}: moved to {aside.name}", stacklevel=3)
