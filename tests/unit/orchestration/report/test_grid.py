"""Tests planned runs as a table and a figure: means and spreads over seeds, missing runs, the harm of corruptions."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestration.report.documents import grid_text
from orchestration.report.grid import Grid, grid
from orchestration.report.grid_figure import grid_figure
from orchestration.report.render.terminal import terminal
from tests.trials import PLANNED, planned


def test_means_spreads_and_falls() -> None:
    pivot = Grid.of(PLANNED)
    assert pivot.lines == ["CE on none", "CE on uhp l2 1.25"]
    assert pivot.columns == ["none", "symmetric 0.6"]
    clean, poisoned = pivot.cells["CE on none"]["none"], pivot.cells["CE on uhp l2 1.25"]["none"]
    assert clean.mean == pytest.approx(97)
    assert clean.spread == pytest.approx(2**0.5), "of the sample, over n - 1"
    assert poisoned.values == pytest.approx((30, 40))
    assert pivot.fall("CE on uhp l2 1.25", "none") == pytest.approx(62)


def test_what_did_not_end_is_counted_and_never_averaged() -> None:
    heading, first, second = Grid.of(PLANNED).texts()
    assert heading == ["data corruption", "none", "symmetric 0.6"]
    assert first == ["CE on none", "97.0 ± 1.4 (2)", "60.0 (1)"]
    assert second == ["CE on uhp l2 1.25", "35.0 ± 7.1 (2 of 3) -62.0", "-"]


def test_a_stopped_run_is_no_result() -> None:
    pivot = Grid.of([planned(0, "none", "none", 0.9, "stopped")])
    assert pivot.cells["CE on none"]["none"].mean is None


def test_the_same_table_on_the_terminal_and_in_markdown() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal(grid(PLANNED)))
    shown, written = console.export_text(), grid_text("md", PLANNED, [])
    for words in Grid.of(PLANNED).texts():
        for word in words:
            assert word in shown
        assert "| " + " | ".join(words) + " |" in written
    assert "test accuracy chooses nothing" in written


def test_a_bar_per_cell(tmp_path: Path) -> None:
    paths = grid_figure(PLANNED, tmp_path)
    assert [path.name for path in paths] == ["grid.png", "grid.svg"]
    svg = paths[1].read_text()
    assert "symmetric 0.6" in svg
    assert "uhp l2 1.25" in svg


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert grid_figure([planned(0, "none", "none", None, "failed")], tmp_path) == []
    assert not list(tmp_path.iterdir())
