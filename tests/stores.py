"""Lets the MLflow stores that tests make begin as copies of an empty one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.tracking import opening


@pytest.fixture(scope="session", autouse=True)
def stores_begin_as_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make an empty store once for this process: MLflow takes a second for the 66 steps to its present form.

    Stores that programs make in processes of their own are not touched, nor are those that cannot be copied to their
    place, so that a full or read-only disk is met as ever.
    """
    empty = tmp_path_factory.mktemp("store") / "empty.db"
    begin = opening.use_write_ahead_log

    def copied(database: Path) -> None:
        if not database.exists():
            if not empty.exists():
                _make(empty)
            try:
                shutil.copyfile(empty, database)
            except OSError:
                database.unlink(missing_ok=True)
        begin(database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "use_write_ahead_log", copied)
        yield


def _make(database: Path) -> None:
    opening._import_mlflow()
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(f"sqlite:///{database}")
    _initialize_tables(engine)
    engine.dispose()
