"""Where everything that a run writes lies: one folder, `ERAT_HOME` (default `./runs`), and a storage for many nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from erat.errors import UserError

if TYPE_CHECKING:
    from erat.corruption.store import Store
    from orchestration.storage import Storage


@dataclass(frozen=True)
class Home:
    """The folder and the names inside it. All paths are absolute: Ray's workers change their working directory.

    Attributes:
        place: path or URL of the storage through which nodes share cells and crafted sets; none: they share the folder.
    """

    root: Path
    place: str | None = None

    @classmethod
    def from_environment(cls) -> Home:
        """`ERAT_HOME`, or `./runs`; made if it is missing.

        Raises:
            UserError: the folder cannot be made or written.
        """
        root = Path(os.environ.get("ERAT_HOME") or "runs").expanduser().resolve()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"ERAT_HOME={root} cannot be made: {error.strerror}") from error
        if not os.access(root, os.W_OK):
            raise UserError(f"ERAT_HOME={root} is not writable; set ERAT_HOME to a folder that is")
        return cls(root)

    def sharing(self, place: str | None) -> Home:
        """This home, with a storage for its cells and crafted sets."""
        return replace(self, place=place)

    def on_this_node(self) -> Home:
        """Where a worker works: this folder, or with a storage one of its own machine."""
        if self.place is None:
            return self
        from orchestration.storage import node_folder

        return Home(node_folder(self.place), self.place)

    @property
    def storage(self) -> Storage | None:
        """What `place` names.

        Raises:
            UserError: nothing that is known.
        """
        if self.place is None:
            return None
        from orchestration.storage import storage_at

        return storage_at(self.place)

    def store(self) -> Store:
        """The crafted sets."""
        from erat.corruption.store import Store

        if self.storage is None:
            return Store(self.crafted)
        from orchestration.storage import SharedStore

        return SharedStore(self.crafted, self.storage)

    def fetch(self, digest: str, *names: str) -> None:
        """Make files of a cell what the storage has; those that it lacks go. Nothing to do without one."""
        if self.storage is not None:
            for name in names:
                self.storage.fetch(f"cells/{digest}/{name}", self.cell(digest) / name)

    def send(self, digest: str, *names: str) -> None:
        """Put files of a cell on the storage; those that are not here go there too. Nothing to do without one."""
        if self.storage is not None:
            for name in names:
                file = self.cell(digest) / name
                if file.exists():
                    self.storage.send(file, f"cells/{digest}/{name}")
                else:
                    self.storage.remove(f"cells/{digest}/{name}")

    def names(self, digest: str, folder: str) -> Iterable[str]:
        """Files of a cell's subfolder, as the storage has them."""
        if self.storage is None:
            return []
        return [f"{folder}/{name}" for name in self.storage.names(f"cells/{digest}/{folder}")]

    @classmethod
    def if_any(cls) -> Home:
        """Return `ERAT_HOME`, or `./runs`; make nothing if it is missing. Errors are those of `from_environment`."""
        root = Path(os.environ.get("ERAT_HOME") or "runs").expanduser().resolve()
        return cls.from_environment() if root.exists() else cls(root)

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

    def cell(self, digest: str) -> Path:
        """One run: configuration, checkpoint, metrics, result, log."""
        return self.root / "cells" / digest

    def report(self, name: str) -> Path:
        """Tables and figures of one sweep."""
        return self.root / "reports" / name
