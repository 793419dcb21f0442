"""Where everything that a run writes lies: one folder, `ERAT_HOME` (default `./runs`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from erat.errors import UserError


@dataclass(frozen=True)
class Home:
    """The folder and the names inside it. All paths are absolute: Ray's workers change their working directory."""

    root: Path

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
