"""Inspects the nodes of a cluster: `look` runs on a node, `problem` compares what it found with this machine.

This module imports little, because a task that inspects a node must not load torch there first.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from erat.errors import StorageError, UserError
from erat.versions import versions
from orchestration.run.busy import Meter
from orchestration.storage.workspace import Workspace

BUSY_SECONDS = 0.3  # how long is watched what other programs do on a node
PACKAGES = ("torch", "torchvision", "ray", "numpy", "pydantic", "mlxtend")  # a worker's results depend on them


@dataclass(frozen=True)
class Sight:
    """What `look` has found on a node.

    Attributes:
        host: name of the node.
        versions: versions of Python, of PACKAGES and of the project's own code.
        disk_free_gb: free space for temporary files, in GB.
        blind: why the node does not see what the driver wrote, in one line; none: it sees it.
        busy_cores: number of cores that other programs use there.
        busy: whether these are so many that trials are slowed.
    """

    host: str
    versions: dict[str, str]
    disk_free_gb: float
    blind: str | None = None
    busy_cores: float = 0.0
    busy: bool = False


@dataclass
class Node:
    """A node as Ray knows it, and what was found on it.

    Attributes:
        address: its address.
        resources: resource -> amount, as Ray knows them.
        sight: what was found; none if the node did not answer.
        silent: why it did not answer; none if it did.
    """

    address: str
    resources: dict[str, float] = field(default_factory=dict)
    sight: Sight | None = None
    silent: str | None = None

    @property
    def name(self) -> str:
        """Return its address, and the name of its host if that is known."""
        return self.address if self.sight is None else f"{self.address} ({self.sight.host})"

    @property
    def devices(self) -> str:
        """Return its cores and GPUs as text, with the kind of GPU if Ray knows it."""
        kinds = [kind.removeprefix("accelerator_type:") for kind in self.resources if kind.startswith("accelerator_")]
        counted = [f"{self.resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if self.resources.get(kind)]
        return ", ".join([*counted, *kinds])


def deciding() -> dict[str, str]:
    """Return the versions of everything on which a result may depend."""
    return {"python": platform.python_version(), **versions(*PACKAGES), "this project's code": _code_digest()}


def _code_digest() -> str:
    digest = hashlib.sha256()
    top = Path(__file__).parents[2]
    for file in sorted(file for folder in ("erat", "orchestration") for file in (top / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(top)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


@contextmanager
def token(workspace: Workspace) -> Iterator[str]:
    """Provide a file that every node must see while the block runs; yield its word, both its name and its content.

    Raises:
        UserError: this machine cannot write it.
    """
    word = uuid.uuid4().hex
    try:
        if workspace.storage is None:
            try:
                _probe(workspace.root, word).write_text(word)
            except OSError as error:
                raise UserError(f"cannot write ERAT_HOME={workspace.root}: {error.strerror}") from error
        else:
            workspace.storage.write(f"probes/{word}", word.encode())
        yield word
        if workspace.storage is not None:
            for name in workspace.storage.names("probes"):
                if name.startswith(word):
                    workspace.storage.remove(f"probes/{name}")
    except StorageError as error:
        raise UserError(str(error.strerror)) from error
    finally:
        with suppress(OSError):  # a folder that cannot be written holds no file to delete
            _probe(workspace.root, word).unlink(missing_ok=True)


def _probe(folder: Path, word: str) -> Path:
    return folder / f".probe-{word}"


def look(root: str, place: str | None, word: str) -> Sight:
    """Inspect this machine: what it has, and whether it sees the token and can write next to it.

    Args:
        root: the workspace of the driver.
        place: the storage that the nodes share, or none.
        word: the word of the `token`.
    """
    free, meter = shutil.disk_usage(tempfile.gettempdir()).free / 1e9, Meter()
    blind = _blind(Workspace(Path(root)).sharing(place), word)
    time.sleep(BUSY_SECONDS)
    cores = meter.cores()
    busy = meter.words(cores) is not None
    return Sight(socket.gethostname(), deciding(), round(free, 1), blind, round(cores, 1), busy)


def _blind(workspace: Workspace, word: str) -> str | None:
    try:
        if workspace.storage is not None:
            if workspace.storage.read(f"probes/{word}") != word.encode():
                return (
                    f"does not see what was written to storage.path={workspace.place}: "
                    "name a place that all nodes share"
                )
            workspace.storage.write(f"probes/{word}-{uuid.uuid4().hex}", b"")
            return None
        if not _probe(workspace.root, word).exists():
            return f"does not see ERAT_HOME={workspace.root}: share that folder with all nodes, or set storage.path"
        own = _probe(workspace.root, f"{word}-{os.getpid()}")
        own.write_text("")
        own.unlink()
    except (StorageError, UserError) as error:
        return f"cannot use the storage: {getattr(error, 'strerror', None) or error}"
    except OSError as error:
        return f"cannot write ERAT_HOME={workspace.root}: {error.strerror}"
    return None


def problem(node: Node) -> str | None:
    """Return why a node cannot train for this driver, in one line; none if it can."""
    if node.sight is None:
        return f"node {node.name} {node.silent}"
    if node.sight.blind is not None:
        return f"node {node.name} {node.sight.blind}"
    for name, mine in deciding().items():
        if (theirs := node.sight.versions.get(name)) != mine:
            return f"node {node.name} has {name} {theirs}, this machine {mine}: they must be the same"
    return None
