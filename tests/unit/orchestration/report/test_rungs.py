"""Tests what is shown of rungs: states in words, tables, the live view, the time left, curves and the page."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestration.report.document import write_report
from orchestration.report.documents import search_text
from orchestration.report.figures import joint_figure
from orchestration.report.live import LiveView, visible
from orchestration.report.notation import promotion, state
from orchestration.report.plots.search import AT_RUNG, CHOSEN, DONE, MOST_CURVES, curves, promotions
from orchestration.report.progress import Progress, sweep_left
from orchestration.report.sections import missing_rows, reason
from orchestration.report.study import search_figures
from orchestration.report.summary import best, best_sentence
from orchestration.storage.workspace import Workspace
from orchestration.study.trial import Trial
from tests.drawn import marks, rows_of, scale
from tests.searches import ETA, LAMBDA, search_spec, write_search
from tests.trials import make_trial

RUNGS = (10, 30)


def row(number: int, status: str, epoch: int, promoted: int = 0, **more: Any) -> Trial:
    """Return a trial of 90 epochs with rungs at 10 and 30; an epoch takes a second."""
    history = [0.5 + 0.004 * n for n in range(epoch)]
    figures: dict[str, Any] = {"best_val_accuracy": history[-1], "val_accuracy": history[-1]} if history else {}
    more = {"seconds": float(epoch), "params": {ETA: number / 100}, "val_history": history, **figures, **more}
    trial = make_trial(number, f"c{number}", status=status, epoch=epoch, epochs=90, **more)
    kept = {name: getattr(trial, name) for name in trial.__dataclass_fields__}
    return Trial(**kept | {"rungs": RUNGS, "promoted": promoted})


STATES = [
    (row(0, "paused", 10), "paused at 10", "", 10),
    (row(1, "paused", 30, 10), "paused at 30", "↑10", 30),
    (row(2, "queued", 10, 10), "promoted at 10", "", 30),
    (row(3, "queued", 14, 10), "queued", "↑10", 30),
    (row(4, "running", 10, 10), "running", "↑10", 30),
    (row(5, "running", 40, 30), "running", "↑30", 90),
    (row(6, "stopped", 10), "stopped at 10", "", 10),
    (row(7, "stopped", 30, 10), "stopped at 30", "↑10", 30),
    (row(8, "stopped", 12, 10), "stopped", "↑10", 30),
    (row(9, "done", 90, 30), "done", "↑30", 90),
    (row(10, "queued", 0), "queued", "", 10),
    (row(11, "failed", 10), "failed", "", 10),
]


class TestWords:
    @pytest.mark.parametrize(
        ("trial", "words", "mark", "until"), STATES, ids=lambda value: str(getattr(value, "number", ""))
    )
    def test_a_state_has_its_rung(self, trial: Trial, words: str, mark: str, until: int) -> None:
        assert (state(trial), promotion(trial)) == (words, mark)
        if trial.status != "stopped" and trial.number not in (0, 6, 11):
            assert trial.until == until

    def test_without_rungs_a_state_is_one_word(self) -> None:
        assert state(make_trial(status="stopped", epoch=10)) == "stopped"

    def test_why_there_is_no_result(self) -> None:
        assert [reason(STATES[number][0]) for number in (0, 2, 3, 5, 10)] == [
            "paused at 10",
            "promoted at 10",
            "interrupted 14/90",
            "running 40/90",
            "not begun",
        ]
        missing = missing_rows([trial for trial, *_ in STATES])
        assert [(name, [trial.number for trial in rows]) for name, rows in missing] == [
            ("failed", [11]),
            ("running", [4, 5]),
            ("paused", [0, 1]),
            ("promoted", [2]),
            ("interrupted", [3]),
            ("not begun", [10]),
        ]


class TestTables:
    def test_states_and_promotions_are_shown_and_explained(self) -> None:
        text = search_text("md", [trial for trial, *_ in STATES], [ETA])
        shown = {line.split("|")[1].strip(" ★"): line.split("|")[8].strip() for line in text.splitlines()[2:14]}
        assert shown["0"] == "paused at 10"
        assert shown["7"] == "stopped at 30 ↑10"
        assert shown["9"] == "done ↑30"
        assert "Rungs after epochs 10 and 30: there the best third of each block is promoted" in text

    def test_csv_has_the_rung_in_a_column_of_its_own(self) -> None:
        records = csv.DictReader(io.StringIO(search_text("csv", [trial for trial, *_ in STATES], [ETA])))
        found = {record["number"]: (record["status"], record["epoch"], record["promoted"]) for record in records}
        assert found["0"] == ("paused", "10", "")
        assert found["7"] == ("stopped", "30", "10")

    def test_old_searches_have_no_such_column(self) -> None:
        assert "promoted" not in search_text("csv", [make_trial(status="done")], [ETA])


class TestBest:
    def test_one_that_lost_at_a_rung_is_not_the_best_while_others_go_on(self) -> None:
        lost = row(0, "stopped", 10, best_val_accuracy=0.9)
        assert best([lost, row(1, "running", 14, 10)]) is None
        assert best([lost, row(1, "paused", 10)]) is None
        assert "has come to its last epoch" in best_sentence([lost, row(1, "paused", 10)], [ETA])
        assert best([lost, row(1, "failed", 14, 10)]) is lost
        assert best([lost, row(1, "done", 90, 30, best_val_accuracy=0.8)]).number == 1  # type: ignore[union-attr]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestLive:
    def test_pauses_and_promotions_are_told_in_lines(self) -> None:
        stream = io.StringIO()
        with LiveView("t", [ETA], 2, stream, Clock()) as view:
            for trial in (
                row(0, "queued", 0),
                row(0, "running", 0),
                row(0, "paused", 10),
                row(0, "queued", 10, 10),
                row(0, "running", 10, 10),
                row(0, "stopped", 30, 10),
            ):
                view.update([trial, row(1, "paused", 10)])
        lines = stream.getvalue().splitlines()[1:]
        assert [re.sub(r" best val.*", "", line) for line in lines] == [
            "[0/2] trial 1 paused at 10/90",
            "[0/2] trial 0 running eta=0 (optuna)",
            "[0/2] trial 0 paused at 10/90",
            "[0/2] trial 0 promoted at 10",
            "[0/2] trial 0 running eta=0 (optuna)",
            "[1/2] trial 0 stopped at rung 30/90",
            "1/2 trials in 0:00: 1 stopped, 1 paused",
        ]

    def test_those_that_pause_come_last_where_there_is_no_room(self) -> None:
        progress = Progress(0, Clock())
        progress.update([row(0, "paused", 10), row(1, "queued", 10, 10), row(2, "running", 3), row(3, "stopped", 10)])
        assert [trial.number for trial in visible(progress, 3)] == [1, 2, 3]
        assert [trial.number for trial in visible(progress, 9)] == [0, 1, 2, 3]


class TestTimeLeft:
    def test_a_trial_runs_to_its_next_rung(self) -> None:
        assert row(0, "running", 4).seconds_left == 6
        assert row(0, "running", 10, 10).seconds_left == 20
        assert row(0, "running", 40, 30).seconds_left == 50
        assert row(0, "paused", 10).seconds_left is None

    def test_one_that_pauses_is_expected_to_go_on_as_often_as_others(self) -> None:
        after_ten = (20 + 60 / 3) / 3  # a third goes on from 10 to 30, and a third of these to 90
        assert sweep_left([row(0, "paused", 10)], {}, 1, 1) == pytest.approx(after_ten)
        assert sweep_left([row(0, "paused", 30, 10)], {}, 1, 1) == pytest.approx(60 / 3)
        assert sweep_left([row(0, "queued", 10, 10)], {}, 1, 1) == pytest.approx(20 + 60 / 3)
        assert sweep_left([row(0, "running", 4)], {}, 1, 1) == pytest.approx(6 + after_ten)
        assert sweep_left([row(0, "running", 40, 30)], {}, 1, 1) == pytest.approx(50)

    def test_those_yet_to_be_proposed_are_not_full_trainings(self) -> None:
        whole = 10 + (20 + 60 / 3) / 3
        assert sweep_left([row(0, "stopped", 10)], {}, 4, 1) == pytest.approx(3 * whole)
        assert sweep_left([row(0, "stopped", 10)], {}, 4, 3) == pytest.approx(whole)


class TestCurves:
    def test_a_curve_per_trial_a_line_per_rung_and_a_mark_at_an_end(self) -> None:
        figure = curves([trial for trial, *_ in STATES])
        assert figure is not None
        assert "a mark: a trial that ended or waits there" in figure.caption
        assert [each["name"] for each in rows_of(figure, "rule")] == ["rung 10", "rung 30"]
        lines = {each["runs"]: each for each in rows_of(figure, "line")}
        assert len(lines) == 11, "all but the one that has not begun"
        ends = {each["runs"]: each["kind"] for each in rows_of(figure, "point")}
        assert ends == {"c0": "waits at a rung", "c1": "waits at a rung", "c6": AT_RUNG, "c7": AT_RUNG}
        assert lines["c7"]["state"] == "stopped at 30 ↑10, epoch 30" and lines["c7"]["best"] == pytest.approx(61.6)

    def test_the_winner_lies_in_front(self) -> None:
        figure = curves([trial for trial, *_ in STATES])
        assert figure is not None
        *_, front = [part for part in marks(figure) if part["mark"]["type"] == "line"]
        assert [(each["runs"], each["kind"]) for each in front["data"]["values"]] == [("c9", CHOSEN)]
        assert front["mark"]["strokeWidth"] > 2

    def test_ends_lie_on_their_rungs(self) -> None:
        figure = curves([row(0, "stopped", 10), row(1, "paused", 30, 10)])
        assert figure is not None
        assert {each["epoch"] for each in rows_of(figure, "point")} == {
            each["epoch"] for each in rows_of(figure, "rule")
        }

    def test_many_trials_stay_readable_and_light(self) -> None:
        figure = curves([row(number, "stopped", 30, 10) for number in range(3 * MOST_CURVES)])
        assert figure is not None
        assert f"The best {MOST_CURVES} of {3 * MOST_CURVES} trials" in figure.caption
        assert len(rows_of(figure, "line")) == MOST_CURVES
        assert len(json.dumps(figure.spec)) < 200_000

    def test_without_rungs_there_are_no_lines_for_them(self) -> None:
        figure = curves([make_trial(status="done", epoch=2, epochs=2, val_history=[0.1, 0.2])])
        assert figure is not None and not rows_of(figure, "rule")
        assert curves([row(0, "queued", 0)]) is None


class TestPromotions:
    def test_what_became_of_those_that_came_to_a_rung(self) -> None:
        figure = promotions([trial for trial, *_ in STATES])
        assert figure is not None
        found = {(each["rung"], each["kind"]): each["count"] for each in figure.spec["data"]["values"]}
        assert found == {
            ("rung 10", "went on"): 8,
            ("rung 10", "waits"): 1,
            ("rung 10", "stopped"): 1,
            ("rung 10", "failed later"): 1,
            ("rung 30", "went on"): 2,
            ("rung 30", "waits"): 1,
            ("rung 30", "stopped"): 1,
        }

    def test_without_rungs_there_is_none(self) -> None:
        assert promotions([make_trial(status="done", epoch=2, epochs=2)]) is None


class TestFigures:
    def test_parallel_coordinates_tell_those_that_stopped(self) -> None:
        rows = [row(n, "stopped", 10, params={ETA: n / 10, LAMBDA: float(n)}) for n in range(8)]
        rows += [row(n, "done", 90, 30, params={ETA: n / 10, LAMBDA: float(n)}) for n in (8, 9)]
        ranges = search_spec().space.distributions("mnist")
        found = {figure.name: figure for figure in search_figures(rows, ranges)[0]}["parallel"]
        assert "a dashed line was stopped at rung 10" in found.caption
        lines = rows_of(found, "line")
        assert len(lines) == 10
        assert sum(each["kind"] == AT_RUNG for each in lines) == 8
        assert lines[-1]["kind"] == CHOSEN, "the best on top"

    def test_a_search_without_rungs_has_neither(self) -> None:
        rows = [
            make_trial(n, f"c{n}", {ETA: n / 10, LAMBDA: n % 3}, status="done", best_val_accuracy=n / 10)
            for n in range(8)
        ]
        ranges = search_spec().space.distributions("mnist")
        (found,) = [figure for figure in search_figures(rows, ranges)[0] if figure.name == "parallel"]
        assert "dashed" not in found.caption
        assert {each["kind"] for each in rows_of(found, "line")} == {CHOSEN, DONE}
        assert scale(found, "line", "color")["domain"] == [CHOSEN, DONE]

    def test_the_files_tell_a_rung_from_other_stops(self, tmp_path: Path) -> None:
        rows = [row(0, "stopped", 10), row(1, "done", 90, 30), row(2, "stopped", 14, 10)]
        text = joint_figure(rows, [ETA], tmp_path)[1].read_text()
        assert ">stopped at a rung<" in text
        assert ">stopped early<" in text


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    write_search(workspace, "s", search_spec(), 12, most=40)
    return write_report(workspace, "s", "html", None).read_text()


class TestPage:
    def test_the_head_counts_those_that_pause(self, page: str) -> None:
        count = int(re.search(r'class="state s-paused">(\d+) paused<', page)[1])  # type: ignore[index]
        assert count == len(re.findall(r'class="left t-paused"', page)) > 0
        assert f"{count} paused at a rung: go on with" in page

    def test_a_drill_down_has_the_rungs_and_how_it_ended(self, page: str) -> None:
        match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
        assert match is not None
        cells = json.loads(match[1])["cells"]
        assert {tuple(cell["rungs"]) for cell in cells} == {(4, 12)}
        assert {cell["epochs"] for cell in cells} == {36}
        assert {cell["state"] for cell in cells if cell.get("ends") == "paused"} == {"paused at 4"}

    def test_its_curves_are_there(self, page: str) -> None:
        assert '"rung 4"' in page
        assert "waits at a rung" in page
