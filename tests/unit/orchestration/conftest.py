"""Provides what tests of the orchestration share."""

from pathlib import Path

import pytest

from orchestration.storage.workspace import Workspace
from tests.stores import stores_begin_as_copies

__all__ = ["stores_begin_as_copies"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a workspace of the test's own, whose folder does not exist yet."""
    return Workspace(tmp_path / "workspace")
