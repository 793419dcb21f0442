"""Tests planned runs as a table and a figure: means and spreads over seeds, missing runs, the harm of corruptions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestration.report.documents import grid_text
from orchestration.report.grid import Grid, grid
from orchestration.report.grid_figure import grid_figure
from orchestration.report.render.terminal import terminal
from orchestration.study.trial import Trial
from tests.trials import make_trial


def row(number: int, kind: str, noise: str, test: float | None, status: str = "done", **more: Any) -> Trial:
    norm = {} if kind == "none" else {"corruption.norm": "l2", "corruption.epsilon": 1.25}
    config = {
        "defense.name": "ce",
        "corruption.data": kind,
        "corruption.labels": noise,
        "corruption.rate": 0.6 if noise != "none" else 0.0,
        "train.seed": number,
    } | norm
    return make_trial(number, f"c{number}", {}, "baseline", status, final_test_accuracy=test, config=config | more)


ROWS = [
    row(0, "none", "none", 0.98),
    row(1, "none", "none", 0.96),
    row(2, "none", "symmetric", 0.60),
    row(3, "uhp", "none", 0.30),
    row(4, "uhp", "none", 0.40),
    row(5, "uhp", "none", None, "failed"),
    row(6, "uhp", "symmetric", None, "running"),
]


def test_means_spreads_and_falls() -> None:
    pivot = Grid.of(ROWS)
    assert pivot.lines == ["CE on none", "CE on uhp l2 1.25"]
    assert pivot.columns == ["none", "symmetric 0.6"]
    clean, poisoned = pivot.cells["CE on none"]["none"], pivot.cells["CE on uhp l2 1.25"]["none"]
    assert clean.mean == pytest.approx(97)
    assert clean.spread == pytest.approx(2**0.5), "of the sample, over n - 1"
    assert poisoned.values == pytest.approx((30, 40))
    assert pivot.fall("CE on uhp l2 1.25", "none") == pytest.approx(62)


def test_what_did_not_end_is_counted_and_never_averaged() -> None:
    heading, first, second = Grid.of(ROWS).texts()
    assert heading == ["data corruption", "none", "symmetric 0.6"]
    assert first == ["CE on none", "97.0 ± 1.4 (2)", "60.0 (1)"]
    assert second == ["CE on uhp l2 1.25", "35.0 ± 7.1 (2 of 3) -62.0", "-"]


def test_a_stopped_run_is_no_result() -> None:
    pivot = Grid.of([row(0, "none", "none", 0.9, "stopped")])
    assert pivot.cells["CE on none"]["none"].mean is None


def test_the_same_table_on_the_terminal_and_in_markdown() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal(grid(ROWS)))
    shown, written = console.export_text(), grid_text("md", ROWS, [])
    for words in Grid.of(ROWS).texts():
        for word in words:
            assert word in shown
        assert "| " + " | ".join(words) + " |" in written
    assert "test accuracy chooses nothing" in written


def test_a_bar_per_cell(tmp_path: Path) -> None:
    paths = grid_figure(ROWS, tmp_path)
    assert [path.name for path in paths] == ["grid.png", "grid.svg"]
    svg = paths[1].read_text()
    assert "symmetric 0.6" in svg
    assert "uhp l2 1.25" in svg


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert grid_figure([row(0, "none", "none", None, "failed")], tmp_path) == []
    assert not list(tmp_path.iterdir())
