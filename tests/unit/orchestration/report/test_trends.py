"""Tests accuracy over what a grid varies, the paper's Figures 2 to 8: panels, lines, places, and the drawings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from orchestration.report.document import write_report
from orchestration.report.grid import Score
from orchestration.report.plots import matrix
from orchestration.report.trends import Selected, Trend, seconds_per_epoch, selections_of, trends_of, varied
from orchestration.storage.workspace import Workspace
from orchestration.study.grids import load_grid, specification
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial
from tests.drawn import rows_of as drawn_of
from tests.drawn import scale
from tests.synthetic import write_workspace
from tests.trials import with_result

Finished = Callable[..., list[Trial]]


def grid(name: str, **options: Any) -> StudySpec:
    return specification(load_grid(name), "demo", {}, **options)


def rows_of(spec: StudySpec, reached: Callable[[dict[str, Any]], float] = lambda config: 0.5) -> list[Trial]:
    rows = [spec.trial(number, "baseline", entry) for number, entry in enumerate(spec.runs)]
    return [
        with_result(row, status="done", epochs=16, train_seconds=32.0, final_test_accuracy=reached(dict(row.config)))
        for row in rows
    ]


def test_figure_3_has_a_panel_a_poison_and_noise_with_budgets_ascending() -> None:
    rows = rows_of(grid("figure3"), lambda config: config["corruption.epsilon"] / 10)
    trends = trends_of(rows[::-1])
    assert {trend.title for trend in trends} == {
        f"mnist, {noise} 0.6 label noise, {kind}" for noise in ("instance", "symmetric") for kind in ("UP", "UHP")
    }
    up = next(trend for trend in trends if trend.title.endswith("symmetric 0.6 label noise, UP"))
    assert (up.axis, up.ordered, up.ticks) == ("budget of the poison, ε'", True, ["0.025", "0.05", "0.1", "0.2"])
    assert len(up.lines) == 8
    assert [cell.mean for cell in up.lines["ERAT"]] == pytest.approx([0.25, 0.5, 1.0, 2.0])


def test_in_figure_4_no_noise_is_where_each_kind_begins() -> None:
    rows = rows_of(grid("figure4"), lambda config: config["corruption.rate"])
    trends = trends_of(rows)
    assert len(trends) == 4
    for trend in trends:
        assert trend.axis == "noise rate"
        assert trend.ticks == ["0", "0.2", "0.4", "0.6", "0.8"]
        assert [cell.mean for cell in trend.lines["CE"]] == pytest.approx([0, 20, 40, 60, 80])


@pytest.mark.parametrize(
    ("name", "axis", "ticks"),
    [
        ("figure5", "defense budgets ε∞ and ε2", 8),
        ("figure6", "η", 6),
        ("figure7", "λ", 7),
    ],
)
def test_the_settings_of_a_search_space(name: str, axis: str, ticks: int) -> None:
    trends = trends_of(rows_of(grid(name)))
    assert [(trend.axis, trend.ordered) for trend in trends] == [(axis, True)] * 4
    assert all(len(trend.ticks) == len(set(trend.ticks)) >= ticks for trend in trends)
    assert all(list(trend.lines) == ["ERAT"] for trend in trends)


def test_networks_are_no_numbers() -> None:
    trend = trends_of(rows_of(grid("figure8")))[0]
    assert not trend.ordered
    assert trend.ticks == ["VGG11", "VGG16", "ResNet18", "ResNet50", "WRN-28-10", "ViT-B/16"]
    assert list(trend.lines) == ["DivideMix", "UNICON", "ERAT"]


@pytest.mark.parametrize("name", ["table3", "table6", "rq5", "figure2"])
def test_tables_vary_nothing_more(name: str) -> None:
    assert trends_of(rows_of(grid(name))) == []


def test_two_things_at_once_are_no_trend() -> None:
    rows = rows_of(grid("figure6"))
    more = {"defense.lambda_u": 5.0}
    others = [replace(row, params={**row.params, **more}, config={**row.config, **more}) for row in rows]
    assert varied(rows) == ["defense.eta"]
    assert varied([*rows, *others]) == []


def test_seeds_are_the_spread_and_a_missing_run_is_missing() -> None:
    rows = rows_of(
        grid("figure6", seeds=(0, 1), only={"corruption": ["up"], "noise": ["symmetric"]}),
        lambda config: 0.5 + 0.1 * config["train.seed"],
    )
    rows[:2] = [with_result(row, status="failed") for row in rows[:2]]
    (trend,) = trends_of(rows)
    cells = trend.lines["ERAT"]
    missing = [index for index, cell in enumerate(cells) if cell.mean is None]
    assert len(missing) == 1
    assert {round(cell.mean or 0, 6) for cell in cells} == {0, 55}
    assert {round(cell.spread or 0, 3) for cell in cells if cell.mean} == {7.071}


# --- Figure 2 and RQ5 -------------------------------------------------------------------------------------------------


def selection(last: list[int]) -> dict[str, Any]:
    warmup = {"epoch": 1, "labelled_per_class": [10, 20], "correct_per_class": [6, 6]}
    first = {"epoch": 2, "labelled_per_class": [2, 15], "correct_per_class": [2, 5]}
    end = {"epoch": 3, "labelled_per_class": last, "correct_per_class": [4, 3]}
    return {"classes": ["a", "b"], "epochs": [warmup, first, end]}


def test_figure_2_compares_the_first_and_the_last_selection() -> None:
    rows = rows_of(grid("figure2"))
    without, with_ = rows
    found = selections_of(rows, {without.cell: selection([4, 9]), with_.cell: selection([6, 6])})
    assert [chosen.title.rpartition(": ")[2] for chosen in found] == ["first selection", "last epoch"]
    assert found[0].stacks["ERAT"] == [(2, 0), (5, 10)], "what the warm-up takes is no selection"
    assert found[1].stacks == {"ERAT w/o RB": [(4, 0), (3, 6)], "ERAT": [(4, 2), (3, 3)]}


def test_one_way_of_selecting_alone_is_compared_with_nothing() -> None:
    (row,) = rows_of(grid("figure2", only={"defense": ["erat"]}))
    assert selections_of([row], {row.cell: selection([6, 6])}) == []


def test_time_is_per_epoch_and_of_finished_runs() -> None:
    rows = rows_of(grid("rq5", seeds=(0, 1)))
    rows[:2] = with_result(rows[0], train_seconds=64.0), with_result(rows[1], status="failed")
    assert seconds_per_epoch(rows) == {"ERAT": [4.0], "ERAT w/o Uni": [2.0, 2.0]}


# --- drawn ------------------------------------------------------------------------------------------------------------


def panel(lines: dict[str, list[tuple[float, ...]]], ordered: bool = True) -> Trend:
    scores = {name: [Score(values, 2) for values in cells] for name, cells in lines.items()}
    return Trend("t", "η", [str(place) for place in range(len(next(iter(lines.values()))))], ordered, scores)


def test_points_stand_at_their_settings_and_gaps_are_left_out() -> None:
    figure = matrix.trend(panel({"ERAT": [(0.0,), (), (45.0, 55.0), (100.0,)]}), "t", ["CE", "ERAT"])
    assert [(each["at"], each["y"]) for each in drawn_of(figure, "line")] == [("0", 0), ("2", 50), ("3", 100)]
    assert scale(figure, "line", "x")["domain"] == ["0", "1", "2", "3"]
    spreads = [(each["low"], each["high"]) for each in drawn_of(figure, "rule") if each["low"] is not None]
    assert spreads == [pytest.approx((50 - 50**0.5, 50 + 50**0.5))], "one has a spread"
    assert scale(figure, "line", "color") == {"domain": ["ERAT"], "range": ["var(--c1)"]}, "its colour on all figures"


def test_settings_without_an_order_are_bars() -> None:
    figure = matrix.trend(panel({"CE": [(20.0,)], "ERAT": [(80.0,)]}, ordered=False), "t", ["CE", "ERAT"])
    assert [(each["kind"], each["y"]) for each in drawn_of(figure, "bar")] == [("CE", 20), ("ERAT", 80)]
    assert scale(figure, "bar", "y")["domain"] == [0, 100]


def test_a_selection_is_stacked() -> None:
    figure = matrix.selection(Selected("t", ["a"], {"ERAT w/o RB": [(10.0, 30.0)], "ERAT": [(20.0, 0.0)]}), "s")
    bars = [(each["way"], each["kind"], each["count"], each["place"]) for each in drawn_of(figure, "bar")]
    assert bars[:2] == [("ERAT w/o RB", "right labels", 10, 0), ("ERAT w/o RB", "wrong labels", 30, 1)]
    assert [count for _, _, count, _ in bars[2:]] == [20, 0]


def test_lines_are_told_apart_in_grey() -> None:
    """Eight defenses have eight colours, and each differs from its neighbours in dashes, too."""
    names = list("abcdefgh")
    figure = matrix.curves([matrix.Curve(name, [1.0, 2.0]) for name in names], "c", "t", names)
    colours, dashes = (scale(figure, "line", channel)["range"] for channel in ("color", "strokeDash"))
    assert len(set(colours)) == 8
    assert all(first != second for first, second in pairwise(dashes))


@pytest.mark.parametrize(
    ("name", "heading", "figures"),
    [
        ("figure2", "Which labels are believed, by class", 2),
        ("figure3", "Accuracy over budget of the poison, ε&#39;", 4),
        ("figure4", "Accuracy over noise rate", 4),
        ("figure8", "Accuracy over network", 4),
        ("rq5", "Seconds of an epoch", 1),
    ],
)
def test_they_stand_on_the_page(name: str, heading: str, figures: int, workspace: Workspace) -> None:
    spec = grid(name)
    write_workspace(workspace, "mine", spec, [(entry, "baseline", "done") for entry in spec.runs])
    page = write_report(workspace, "mine", "html", None).read_text()
    section = page[page.index(f"<h3>{heading}</h3>") :]
    section = section[: section.index("<h3>", 5) if "<h3>" in section[5:] else section.index("</section>")]
    names = re.findall(r'<div class="drawing" data-figure="([^"]+)"', section)
    assert len(names) == figures
    specs = json.loads(re.search(r'id="drawings">(.*?)</script>', page, re.DOTALL)[1])["figures"]  # type: ignore[index]
    assert all(specs[name]["layer"] for name in names)


@pytest.fixture
def workspace(tmp_path: Any) -> Workspace:
    return Workspace(tmp_path)
