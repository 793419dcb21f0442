"""The files that a study leaves when it ends: which there are follows from its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.report.files import write_files
from orchestration.study.spec import StudySpec
from tests.trials import with_result

SUMMARY = ["summary.md", "summary.csv"]


@pytest.mark.parametrize(
    ("runs", "more"),
    [
        ([{"defense.name": "ce"}, {"defense.name": "erat"}], ["matrix.md", "matrix.csv"]),
        ([{"corruption.data": "none"}, {"corruption.data": "up"}], ["grid.md", "grid.png", "grid.svg"]),
    ],
    ids=["matrix", "list"],
)
def test_a_list_of_runs_has_a_table_by_its_kind(runs: list[dict[str, Any]], more: list[str], tmp_path: Path) -> None:
    spec = StudySpec.listing("mine", "a test", runs, "demo", {})
    trials = [
        with_result(spec.trial(number, "baseline", run), status="done", epochs=4, final_test_accuracy=0.25)
        for number, run in enumerate(runs)
    ]
    folder = tmp_path / "reports" / "mine"
    assert write_files(spec, trials, folder) == [str(folder / name) for name in [*SUMMARY, *more]]
    assert {file.name for file in folder.iterdir()} == {*SUMMARY, *more, "spec.json"}
    assert "25.0" in (folder / more[0]).read_text()
    assert json.loads((folder / "spec.json").read_text()) == json.loads(json.dumps(spec.content(), default=str))
