"""Tests the Pareto front of accuracy and cost, in figures, files and tables."""

from __future__ import annotations

import csv
import io
from math import nan
from pathlib import Path
from typing import Any

import pytest

from orchestration.report.costs import cost, front, measured
from orchestration.report.documents import search_text
from orchestration.report.files import write_files
from orchestration.report.pareto import pareto_figure
from orchestration.report.plots.search import pareto
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.status import trials_of
from orchestration.study.trial import Trial
from tests.drawn import rows_of, scale
from tests.searches import ETA, search_spec, write_search
from tests.trials import make_trial


def row(number: int, val: float | None, seconds: float, **more: Any) -> Trial:
    """Return a trial of ten epochs, each of which took so many seconds."""
    more = {"status": "done", "params": {ETA: number / 10}, **more}
    return make_trial(number, f"c{number}", epoch=10, epochs=10, seconds=10 * seconds, best_val_accuracy=val, **more)


ROWS = [
    row(0, 0.90, 2.0),
    row(1, 0.95, 4.0),
    row(2, 0.94, 4.0),  # as cheap as 1 and worse
    row(3, 0.90, 3.0),  # as good as 0 and dearer
    row(4, 0.70, 1.0),
    row(5, 0.60, 1.5),  # worse and dearer than 4
]


def numbers(rows: list[Trial]) -> list[int]:
    return [trial.number for trial in front(rows)]


class TestFront:
    def test_the_front_has_those_that_none_beats(self) -> None:
        assert numbers(ROWS) == [4, 0, 1]
        assert numbers(ROWS[::-1]) == [4, 0, 1]

    def test_equal_trials_are_all_on_it(self) -> None:
        assert numbers([*ROWS, row(6, 0.90, 2.0)]) == [4, 0, 6, 1]

    @pytest.mark.parametrize(
        "other",
        [
            row(9, 0.99, 0.5, status="stopped"),
            row(9, 0.99, 0.5, status="running"),
            row(9, 0.99, 0.5, source="baseline"),
            row(9, 0.99, 0.5, source="confirm"),
            row(9, nan, 0.5),
            row(9, None, 0.5),
            row(9, 0.99, 0.0),
        ],
        ids=["stopped", "running", "listed", "confirmation", "nan", "unmeasured", "without-time"],
    )
    def test_only_trials_of_the_search_that_are_done_count(self, other: Trial) -> None:
        assert numbers([*ROWS, other]) == [4, 0, 1]
        assert 9 not in {trial.number for trial, _, _ in measured([*ROWS, other])}

    def test_the_cost_is_the_mean_of_its_epochs(self) -> None:
        assert cost(row(0, 0.9, 2.5)) == pytest.approx(2.5)
        assert cost(make_trial()) is None


class TestFigures:
    def test_the_page_has_a_point_per_trial_and_a_line_through_the_front(self) -> None:
        figure = pareto(ROWS, [ETA])
        assert figure is not None
        points = rows_of(figure, "point")
        assert [each["runs"] for each in points] == ["c2", "c3", "c5", "c4", "c0", "c1"]
        assert [each["kind"] for each in points] == [*["not on the front"] * 3, *["on the front, with its number"] * 3]
        assert [(each["cost"], each["val"]) for each in rows_of(figure, "line")] == [(1, 70), (2, 90), (4, 95)]
        assert [each["trial"] for each in rows_of(figure, "text")] == ["4", "0", "1"]
        assert "trial 1 0.950, 4 s" in figure.words

    def test_a_wide_range_of_costs_is_logarithmic(self) -> None:
        narrow, wide = (pareto([row(0, 0.5, 1.0), row(1, 0.8, most)], []) for most in (2.0, 100.0))
        assert narrow is not None and "type" not in scale(narrow, "point", "x")
        assert wide is not None and scale(wide, "point", "x")["type"] == "log"

    @pytest.mark.parametrize("rows", [[], [row(0, None, 1.0)], [row(0, 0.9, 1.0, status="stopped")]])
    def test_nothing_measured_draws_nothing(self, rows: list[Trial], tmp_path: Path) -> None:
        assert pareto(rows, []) is None
        assert pareto_figure(rows, tmp_path) == []

    @pytest.mark.parametrize(
        "rows", [ROWS, ROWS[:1], [row(0, 0.5, 1.0), row(1, 0.8, 100.0)]], ids=["six", "one", "wide"]
    )
    def test_the_files(self, rows: list[Trial], tmp_path: Path) -> None:
        png, svg = pareto_figure(rows, tmp_path)
        assert (png.name, svg.name) == ("pareto.png", "pareto.svg")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert "seconds of an epoch" in svg.read_text()
        assert "on the Pareto front" in svg.read_text()


class TestTables:
    def test_members_are_marked_and_every_cost_is_shown(self) -> None:
        text = search_text("md", ROWS, [ETA], pareto=True)
        firsts = [line.split("|")[1].strip() for line in text.splitlines()[2:8]]
        assert firsts == ["★◆ 1", "2", "◆ 0", "3", "◆ 4", "5"]
        assert text.splitlines()[0].endswith("| time | s per epoch |")
        assert "◆ on the Pareto front" in text.splitlines()[-1]

    def test_csv_says_who_is_on_the_front(self) -> None:
        records = list(csv.DictReader(io.StringIO(search_text("csv", ROWS, [ETA], pareto=True))))
        assert {record["number"] for record in records if record["pareto"] == "True"} == {"0", "1", "4"}
        assert {float(record["seconds_per_epoch"]) for record in records} == {1.0, 1.5, 2.0, 3.0, 4.0}

    def test_latex_has_letters_for_the_marks(self) -> None:
        text = search_text("latex", ROWS, [ETA], pareto=True)
        assert r"$\star$$\diamond$ 1" in text
        assert "◆" not in text

    def test_a_search_with_one_objective_has_none_of_this(self) -> None:
        assert "◆" not in search_text("md", ROWS, [ETA])
        assert "pareto" not in search_text("csv", ROWS, [ETA])


def test_the_files_of_a_study_with_two_objectives_have_the_front(tmp_path: Path) -> None:
    workspace, spec = Workspace(tmp_path), search_spec(pruner="none", objective=["val_accuracy", "cost"])
    write_search(workspace, "s", spec, 3)
    rows, _ = trials_of(workspace, Ledger(workspace.ledger), "s")
    names = {Path(path).name for path in write_files(spec, rows, tmp_path / "report")}
    assert {"pareto.png", "pareto.svg"} <= names
    plain = search_spec(pruner="none")
    assert "pareto.png" not in {Path(path).name for path in write_files(plain, rows, tmp_path / "other")}
