"""Opens a store for the tests of a file."""

from __future__ import annotations

import pytest

from orchestration.storage.workspace import Workspace
from orchestration.tracking.tracker import Tracker


@pytest.fixture(autouse=True)
def _no_foreign_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    # Characters that have a meaning in URIs.
    return Workspace(tmp_path_factory.mktemp("workspace") / "with space & é #1 50%")


@pytest.fixture(scope="module")
def tracker(workspace: Workspace) -> Tracker:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker.open(workspace)


@pytest.fixture
def sweep(request: pytest.FixtureRequest) -> str:
    """Return a separate sweep name for each test, since the tests share a store."""
    return str(request.node.name)
