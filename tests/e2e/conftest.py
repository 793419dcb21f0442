"""Provides what the end-to-end tests share: one Ray cluster per module, and command lines that run on it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from orchestration import cli
from orchestration.cluster.starting import patiently
from orchestration.commands import console
from orchestration.storage.workspace import Workspace
from tests.__main__ import RAY_PATIENCE, RAY_PRIORITY
from tests.e2e.commands import Command, Said
from tests.e2e.sweeps import processes_of
from tests.stores import stores_begin_as_copies

ROOT = Path(__file__).parents[2]
ATTEMPTS = 5  # to start a node: on a busy machine Ray gives up before its own agent has started
__all__ = ["stores_begin_as_copies"]

os.environ.update(RAY_PRIORITY | RAY_PATIENCE)  # also where pytest was started by itself


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster of two cores, which all sweeps of this file join.

    One for all files does not do: after other clusters of the process, Tune's actors ended there before they began.
    """
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 128 * 2**20}
    made = patiently(lambda: Cluster(initialize_head=True, head_node_args=options), ATTEMPTS)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("sweeps") / "workspace")


@pytest.fixture
def own_workspace(tmp_path: Path) -> Iterator[Workspace]:
    """Provide a workspace whose processes are ended after the test."""
    made = Workspace(tmp_path / "own")
    yield made
    for process in processes_of(made):
        process.kill()


@pytest.fixture(scope="module")
def command(cluster: Cluster, workspace: Workspace) -> Iterator[Command]:
    """Return a function that runs a command line in this process, on the cluster; `at` is another workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)

        def run(*words: str, at: Workspace = workspace) -> Said:
            patch.setenv("ERAT_HOME", str(at.root))
            address = ["--address", cluster.address] if words[0] not in ("status", "cancel") else []
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = console.guarded(lambda: cli.app([*words, *address], standalone_mode=False))
            return Said(code, out.getvalue(), err.getvalue())

        yield run
