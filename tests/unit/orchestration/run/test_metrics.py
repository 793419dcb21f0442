"""Tests metrics.jsonl: what an epoch reported is read back, from files of this version and of earlier ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace

ROW: dict[str, Any] = {"epoch": 1, "val_accuracy": 0.5, "test_accuracy": 0.25, "epoch_seconds": 1.0}


def read(root: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    run = RunDirectory(Workspace(root), "c")
    run.path.mkdir(parents=True)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run.read_metrics()


def test_terms_and_numbers_come_back(tmp_path: Path) -> None:
    row = ROW | {"loss_terms": {"ce": 0.5, "two words": 1}, "numbers": {"lambda_u": 12.5}}
    assert read(tmp_path, row) == [row]


def test_rows_of_earlier_versions_stay_readable(tmp_path: Path) -> None:
    """Rows of earlier versions have no numbers, the first ones no terms; some have terms that are not finite."""
    rows = [ROW, ROW | {"epoch": 2, "loss_terms": {"ce": float("nan"), "main": 1.0}}]
    first, second = read(tmp_path, *rows)
    assert first == ROW
    assert math.isnan(second["loss_terms"]["ce"]) and second["loss_terms"]["main"] == 1


@pytest.mark.parametrize("damage", [{"numbers": [1.0]}, {"numbers": {"x": "1"}}, {"loss_terms": 0.5}])
def test_what_is_no_table_of_numbers_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=rf"metrics.jsonl is damaged \(line 2: {next(iter(damage))}"):
        assert read(tmp_path, ROW, ROW | {"epoch": 2} | damage) == [ROW]
