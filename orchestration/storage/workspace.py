"""Where everything that a run writes lies: one folder, `ERAT_HOME` (default `./runs`), and a storage for many nodes."""

from __future__ import annotations

import itertools
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from erat.errors import UserError, shown

if TYPE_CHECKING:
    from erat.corruption.store import Store
    from erat.data.fingerprint import Fingerprints
    from orchestration.storage.shared import Storage


@dataclass(frozen=True)
class Workspace:
    """The folder and the names inside it. All paths are absolute: Ray's workers change their working directory.

    Attributes:
        place: path or URL of the storage through which nodes share cells and crafted sets; none: they share the folder.
    """

    root: Path
    place: str | None = None

    @classmethod
    def from_environment(cls, *, reading: bool = False, make: bool = True) -> Workspace:
        """`ERAT_HOME`, or `./runs`; made if it is missing.

        Args:
            reading: nothing is to be written into it: it may lie where nothing can be.
            make: false leaves one that is missing so.

        Raises:
            UserError: the folder cannot be made, read or written, or what lies in it is not of its kind.
        """
        given = os.environ.get("ERAT_HOME") or "runs"
        try:
            workspace = cls(Path(given).expanduser().resolve())
            if not make and not workspace.root.exists():
                return workspace
            workspace.root.mkdir(parents=True, exist_ok=True)
            workspace._check()
        except (RuntimeError, ValueError) as error:  # no such user, links in a circle, a character that no path has
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
        """Refuse a workspace in which a folder's place is taken by something else, or a file's."""
        folders = ("cells", "reports", "outbox", "audits", "ray", "mlartifacts")
        for path in (self.ledger, self.mlflow_database, *(self.root / name for name in folders)):
            is_file = path.suffix != ""
            if os.path.lexists(path) and not (path.is_file() if is_file else path.is_dir()):
                raise UserError(f"{path} must be a {'file' if is_file else 'folder'}: move away what lies there")

    def sharing(self, place: str | None) -> Workspace:
        """This workspace, with a storage for its cells and crafted sets."""
        return replace(self, place=place)

    def on_this_node(self) -> Workspace:
        """Where a worker works: this folder, or with a storage one of its own machine."""
        if self.place is None:
            return self
        from orchestration.storage.shared import node_folder

        return Workspace(node_folder(self.place), self.place)

    @property
    def storage(self) -> Storage | None:
        """What `place` names.

        Raises:
            UserError: nothing that is known.
        """
        if self.place is None:
            return None
        from orchestration.storage.shared import storage_at

        return storage_at(self.place)

    def store(self) -> Store:
        """The crafted sets."""
        from erat.corruption.store import Store

        if self.storage is None:
            return Store(self.crafted)
        from orchestration.storage.shared import SharedStore

        return SharedStore(self.crafted, self.storage)

    def fingerprints(self) -> Fingerprints:
        """Return what fills the fingerprint of its images into a configuration; what is known of files is kept here."""
        from erat.data.fingerprint import Cache, Fingerprints

        return Fingerprints(Cache(self.root / "fingerprints"))

    @property
    def ledger(self) -> Path:
        """What ran and what is left, one JSON line per event."""
        return self.root / "ledger.jsonl"

    @property
    def crafted(self) -> Path:
        """The store of crafted sets."""
        return self.root / "crafted"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's default store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts of the default store."""
        return self.root / "mlartifacts"

    @property
    def ray(self) -> Path:
        """Ray's own results."""
        return self.root / "ray"

    def run_directory(self, digest: str) -> Path:
        """The folder of one run; see `orchestration.run.directory`."""
        return self.root / "cells" / digest

    def report(self, name: str) -> Path:
        """Tables and figures of one sweep."""
        return self.root / "reports" / name


def move_aside(path: Path, *, folder: bool) -> None:
    """Rename what lies at `path` and is no folder where one must be, or no file where one must be; with a warning."""
    if os.path.lexists(path) and not (path.is_dir() if folder else path.is_file()):
        names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        os.rename(path, aside)
        warnings.warn(f"{path} must be a {'folder' if folder else 'file'}: moved to {aside.name}", stacklevel=3)
