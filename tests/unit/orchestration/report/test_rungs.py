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
from orchestration.report.progress import Progress, sweep_left
from orchestration.report.search_svg import MOST_CURVES, rung_curves
from orchestration.report.sections import missing_rows, reason
from orchestration.report.study import search_figures
from orchestration.report.summary import best, best_sentence
from orchestration.storage.workspace import Workspace
from orchestration.study.trial import Trial
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
    def test_a_curve_per_trial_a_line_per_rung_and_a_ring_at_an_end(self) -> None:
        drawn = rung_curves([trial for trial, *_ in STATES])
        assert drawn is not None
        caption, svg = drawn
        assert "a ring: a trial that ended or waits there" in caption
        assert len(re.findall(r'<line [^>]*class="rung"', svg)) == 2
        assert {">rung 10<", ">rung 30<"} <= set(re.findall(r">rung \d+<", svg))
        assert len(re.findall(r"<g data-runs", svg)) == 11, "all but the one that has not begun"
        rings = dict(re.findall(r'data-runs="(c\d+)"><title>[^<]*</title><polyline[^>]*/><circle[^>]*end (\w+)"', svg))
        assert rings == {"c0": "paused", "c1": "paused", "c6": "stopped", "c7": "stopped"}
        assert "<title>trial 7, stopped at 30 ↑10: 0.616</title>" in svg
        assert svg.count("curve best") == 2, "the chosen one, and its line in the legend"

    def test_rings_lie_on_their_rungs(self) -> None:
        drawn = rung_curves([row(0, "stopped", 10), row(1, "paused", 30, 10)])
        assert drawn is not None
        rungs = set(re.findall(r'<line x1="([\d.]+)"[^>]*class="rung"', drawn[1]))
        assert set(re.findall(r'<circle cx="([\d.]+)"', drawn[1])) == rungs

    def test_many_trials_stay_readable_and_light(self) -> None:
        rows = [row(number, "stopped", 30, 10) for number in range(3 * MOST_CURVES)]
        drawn = rung_curves(rows)
        assert drawn is not None
        assert f"The best {MOST_CURVES} of {3 * MOST_CURVES} trials" in drawn[0]
        assert drawn[1].count("data-runs") == MOST_CURVES
        assert len(drawn[1]) < 200_000

    def test_without_rungs_there_is_none(self) -> None:
        assert rung_curves([make_trial(status="done", epoch=2, epochs=2, val_history=[0.1, 0.2])]) is None
        assert rung_curves([row(0, "queued", 0)]) is None


class TestFigures:
    def test_parallel_coordinates_have_faint_lines_and_a_legend(self) -> None:
        rows = [row(n, "stopped", 10, params={ETA: n / 10, LAMBDA: float(n)}) for n in range(8)]
        rows += [row(n, "done", 90, 30, params={ETA: n / 10, LAMBDA: float(n)}) for n in (8, 9)]
        ranges = search_spec().space.distributions("mnist")
        found = dict(search_figures("toy", rows, ranges))
        (words,) = [words for words in found if "Each line is a trial" in words]
        assert "a dashed one was stopped at a rung" in words
        assert found[words].count('<polyline points="') == 10
        assert found[words].count('class="pale"/>') == 8 + 1, "the lines, and the one in the legend"
        assert "stopped at rung 10" in found[words]

    def test_a_search_without_rungs_has_neither(self) -> None:
        rows = [make_trial(n, f"c{n}", {ETA: n / 10}, status="done", best_val_accuracy=n / 10) for n in range(8)]
        rows.append(make_trial(9, "c9", {ETA: 0.9}, status="stopped", epoch=3, best_val_accuracy=0.1))
        ranges = {ETA: search_spec().space.distributions("mnist")[ETA]}
        drawn = "".join(svg for _, svg in search_figures("toy", rows, ranges))
        assert "pale" not in drawn
        assert "stopped at rung" not in drawn
        assert drawn.count('<polyline points="') == 8

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
        assert 'class="rung"' in page
        assert "waits at a rung" in page
