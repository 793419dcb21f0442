"""Tests the figures of studies: what they show of which trials, what they leave out and why, and their files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from typer.testing import CliRunner

from erat.errors import UserError
from orchestration.cli import app
from orchestration.report.assets import library
from orchestration.report.chance import Guess, is_chance
from orchestration.report.colours import on_paper, palette
from orchestration.report.document import write_report
from orchestration.report.errata import Footnotes
from orchestration.report.plots import budgets, search, settings
from orchestration.report.plots.figure import contents, file_of
from orchestration.report.sections import groups_of
from orchestration.report.study import search_figures
from orchestration.storage.workspace import Workspace
from orchestration.study.trial import Trial
from tests.drawn import rows_of, scale
from tests.searches import search_spec, write_search
from tests.trials import make_trial

INF, TWO, ETA, LAMBDA = "defense.epsilon_inf", "defense.epsilon_2", "defense.eta", "defense.lambda_u"
BUDGETS = {INF: FloatDistribution(0.001, 0.2, log=True), TWO: FloatDistribution(0.0, 1.0)}
PLANE = {ETA: FloatDistribution(0, 1), LAMBDA: FloatDistribution(0, 50)}
PAIRS = [(1, 0.1), (2, 0.2), (4, 0.3), (6, 0.4), (8, 0.5), (12, 0.6), (16, 0.7), (24, 0.8)]


def trial(number: int, params: dict[str, Any], val: float, source: str = "optuna", status: str = "done") -> Trial:
    return make_trial(
        number,
        f"c{number}",
        params,
        source,
        status,
        epoch=5,
        best_val_accuracy=val,
        final_test_accuracy=val,
        seconds=5.0,
    )


def pairs() -> list[Trial]:
    """Return the paper's eight pairs of budgets, which lie on one line of ranks."""
    return [trial(n, {INF: k / 255, TWO: two}, 0.8 + n / 100, "paper") for n, (k, two) in enumerate(PAIRS)]


def spread(count: int, status: str = "done") -> list[Trial]:
    """Return trials over the plane of two settings, of which the first decides."""
    places = [(n * 7 % 16 / 16, 50 * (n * 5 % 17) / 17) for n in range(count)]
    return [trial(n, {ETA: eta, LAMBDA: lam}, 0.9 - 0.4 * eta, status=status) for n, (eta, lam) in enumerate(places)]


# --- what does not hold is left out, and says so ---------------------------------------------------------------------


def test_eight_points_on_a_line_carry_neither_a_surface_nor_an_importance() -> None:
    figures, left_out = search_figures(pairs(), BUDGETS)
    assert {"history", "budgets", "pairs", "parallel"} <= {figure.name for figure in figures}
    assert not {"surface", "importance"} & {figure.name for figure in figures}
    assert (
        left_out[0]
        == "Importance of the settings: 8 trials ran to the last epoch, and fewer than 10 leave it to chance."
    )
    assert left_out[1].startswith("Surface over ε∞ and ε2: 8 trials ran to the last epoch, and fewer than 12")


def test_settings_that_were_varied_together_have_no_importance_of_their_own() -> None:
    line = [trial(n, {ETA: n / 20, LAMBDA: 2.0 * n}, 0.5 + n / 50) for n in range(20)]
    figures, left_out = search_figures(line, PLANE)
    assert not {"surface", "importance"} & {figure.name for figure in figures}
    assert "η and λ were varied together (correlation 1.00)" in left_out[0]
    assert "the trials lie near one line (correlation 1.00)" in left_out[1]


def test_points_that_carry_them_have_both_and_the_importance_has_a_spread() -> None:
    figures, left_out = search_figures(spread(24), PLANE)
    named = {figure.name: figure for figure in figures}
    assert not left_out
    assert "η matters most in nearly all of them" in named["importance"].caption
    first, second = named["importance"].spec["data"]["values"]
    assert (first["name"], second["name"]) == ("η", "λ")
    assert first["low"] <= first["mean"] <= first["high"] and first["low"] < first["high"]
    surface = named["surface"]
    assert 100 < len(rows_of(surface, "rect")) < settings.CELLS**2, "within the hull of the trials alone"
    low, high = (
        min(each["val"] for each in rows_of(surface, "rect")),
        max(each["val"] for each in rows_of(surface, "rect")),
    )
    assert 52 < low < high < 90


def test_equal_accuracies_have_no_importance() -> None:
    rows = [trial(row.number, row.params, 0.5) for row in spread(24)]
    _, left_out = search_figures(rows, PLANE)
    assert "all trials have the same accuracy" in left_out[0]


# --- stopped trials are there, with their state ----------------------------------------------------------------------


def test_stopped_trials_stand_in_every_figure_of_trials_with_their_state() -> None:
    rows = [*spread(12), trial(12, {ETA: 0.5, LAMBDA: 9.0}, 0.4, status="stopped")]
    rows += [trial(13, {ETA: 0.1, LAMBDA: 1.0}, 0.0, status="failed")]
    named = {figure.name: figure for figure in search_figures(rows, PLANE)[0]}
    for name, mark in (("history", "point"), ("slice-0", "point"), ("slice-1", "point"), ("parallel", "line")):
        states = {each["trial"]: each["kind"] for each in rows_of(named[name], mark)}
        assert states["12"] == search.EARLY, name
    assert "1 failed trial has no accuracy" in named["history"].caption
    kinds = scale(named["history"], "point", "shape")
    assert len(set(kinds["range"])) == len(kinds["domain"]) == 3, "shapes tell them apart in grey"


def test_the_best_so_far_is_of_those_that_ran_to_the_end() -> None:
    rows = [trial(0, {ETA: 0.1}, 0.5), trial(1, {ETA: 0.2}, 0.9, status="stopped"), trial(2, {ETA: 0.3}, 0.7)]
    figure = search.history(rows, [ETA])
    assert figure is not None
    assert [(each["number"], each["val"]) for each in rows_of(figure, "line")] == [(0, 50), (2, 70), (2, 70)]


# --- the two budgets -------------------------------------------------------------------------------------------------


def test_a_proposal_stands_in_the_plane_of_both_budgets_and_not_among_the_pairs() -> None:
    rows = [*pairs(), trial(8, {INF: 0.0345, TWO: 0.55}, 0.96)]
    named = {figure.name: figure for figure in budgets.budgets(rows, BUDGETS)}
    assert {each["runs"] for each in rows_of(named["pairs"], "point")} == {f"c{n}" for n in range(8)}
    (place,) = [each for each in rows_of(named["budgets"], "point") if each["runs"] == "c8" and each["val"] == 96][:1]
    assert (place["inf"], place["two"], place["from"]) == (0.0345, 0.55, "optuna")
    assert "Proposals are no such pairs" in named["pairs"].caption


# --- odd settings ----------------------------------------------------------------------------------------------------


def test_choices_conditions_and_odd_numbers_are_drawn() -> None:
    ranges = {"defense.selector": CategoricalDistribution(["rebalance", "mixture"]), ETA: FloatDistribution(0, 1)}
    rows = [
        trial(n, {"defense.selector": ("rebalance", "mixture")[n % 2]} | ({ETA: n / 10} if n % 2 else {}), n / 20)
        for n in range(14)
    ]
    rows.append(trial(14, {"defense.selector": "mixture", ETA: float("nan")}, 0.5))
    figures, left_out = search_figures(rows, ranges)
    json.dumps(contents(figures), allow_nan=False)
    named = {figure.name: figure for figure in figures}
    assert {each["x"] for each in rows_of(named["slice-0"], "point")} == {"rebalance", "mixture"}
    assert "fewer than two settings vary over all trials" in left_out[0]
    (lacking,) = [each for each in rows_of(named["parallel"], "line") if each["trial"] == "0"]
    assert lacking["axis"] == ["defense.selector", "validation"], "its line passes by what it lacks"


# --- headlines -------------------------------------------------------------------------------------------------------


def cells(values: dict[str, list[float]], seed: str = "train.seed") -> list[Trial]:
    """Return the runs of each defense on one poison, an accuracy for each seed."""
    found: list[Trial] = []
    for name, reached in values.items():
        for number, height in enumerate(reached):
            config = {"data.name": "mnist", "corruption.labels": "none", "corruption.data": "up", "defense.name": name}
            params = {"defense.name": name, "corruption.data": "up", seed: number}
            figures: dict[str, Any] = {"config": config | params, "final_test_accuracy": height}
            found.append(make_trial(len(found), f"{name}{number}", params, "baseline", "done", **figures))
    return found


def headline(values: dict[str, list[float]], seed: str = "train.seed", guesses: Any = None) -> list[str]:
    (group,) = groups_of(cells(values, seed), Footnotes(), guesses or {})
    return group.sentences


@pytest.mark.parametrize(
    ("seed", "what"), [("train.seed", "seeds of training"), ("corruption.seed", "draws of the corr")]
)
def test_a_lead_within_the_noise_is_no_headline(seed: str, what: str) -> None:
    first = headline({"ce": [0.50, 0.60, 0.70], "erat": [0.62, 0.58, 0.66]}, seed)[0]
    assert first.startswith(
        "ERAT and CE cannot be told apart: the mean of ERAT is higher, but within the noise of 3 " + what
    )


def test_a_lead_beyond_the_noise_is_one() -> None:
    first = headline({"ce": [0.50, 0.51, 0.52], "erat": [0.80, 0.81, 0.83]})[0]
    assert first.startswith("ERAT is best in 1 of 1 cells")


def test_nothing_is_best_at_chance() -> None:
    guesses = {"mnist": Guess(10, 1000)}
    words = headline({"ce": [0.10], "erat": [0.11]}, guesses=guesses)
    assert words[0] == "No defense is above chance (10 % with 10 classes): the highest mean is 11.0 (ERAT)."
    assert words[-1] == "mnist, no label noise: none above chance on UP."
    (group,) = groups_of(cells({"ce": [0.10], "erat": [0.11]}), Footnotes(), guesses)
    assert all(cell.shown.mark is None for line in group.tables[0].lines.values() for cell in line), "no bold figure"
    (above,) = groups_of(cells({"ce": [0.10], "erat": [0.3]}), Footnotes(), guesses)
    assert [cell.shown.mark for line in above.tables[0].lines.values() for cell in line] == [None, 0]


def test_chance_is_that_of_the_test_set() -> None:
    assert is_chance(11.8, Guess(10, 1000)) and not is_chance(12.0, Guess(10, 1000))
    assert not is_chance(10.9, Guess(10, 10_000))
    assert not is_chance(None, Guess(10, 10)) and not is_chance(1.0, None)


def test_a_search_at_chance_has_no_best_trial(tmp_path: Path) -> None:
    workspace, spec = Workspace(tmp_path), search_spec(pruner="none")
    write_search(workspace, "s", spec, 3)
    for folder in workspace.root.rglob("metrics.jsonl"):
        (folder.parent / "artifacts").mkdir()
        counts = [[1 if k == seen else 0 for seen in range(2)] for k in range(2)]  # two images: all is chance
        (folder.parent / "artifacts" / "confusion.json").write_text(
            json.dumps({"classes": ["a", "b"], "counts": counts})
        )
    page = write_report(workspace, "s", "html", None).read_text()
    assert 'class="lead">No trial is above chance (50 % with 2 classes)' in page


# --- files -----------------------------------------------------------------------------------------------------------


def test_colours_are_those_of_the_style_sheet() -> None:
    assert palette()["c0"] == "#0072b2"
    assert on_paper("a var(--c0) b") == "a #0072b2 b"
    text = json.dumps(contents(search_figures(spread(24), PLANE)[0]))
    assert set(re.findall(r"var\(--(\w+)\)", text)) <= set(palette())


def test_the_library_is_small() -> None:
    assert 200_000 < len(library()) < 400_000


def test_a_figure_is_a_file_on_white_without_a_browser() -> None:
    figure = search.history(spread(4), [ETA, LAMBDA])
    assert figure is not None
    text = file_of(figure, "svg").decode()
    assert text.startswith("<svg") and "var(--" not in text and "validation accuracy, best epoch, %" in text
    assert file_of(figure, "pdf").startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_every_figure_of_a_search_becomes_a_file(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERAT_HOME", str(tmp_path))
    workspace, spec = Workspace(tmp_path), search_spec(confirm={"top": 2, "seeds": 3})
    write_search(workspace, "s", spec, 16)
    done = CliRunner().invoke(app, ["report", "s", "--format", form, "--json"])
    assert done.exit_code == 0, done.output
    files = [Path(file) for file in json.loads(done.stdout.splitlines()[-1])["files"]]
    assert {"history", "curves", "promotions", "confirmation", "slice-0", "parallel"} <= {file.stem for file in files}
    for file in files:
        assert file.parent == tmp_path / "reports" / "s" / "figures"
        assert file.stat().st_size > 4000


def test_before_a_run_has_ended_there_is_no_figure_to_write(tmp_path: Path) -> None:
    write_search(Workspace(tmp_path), "s", search_spec(), 4, most=0)
    with pytest.raises(UserError, match="s has no figures yet"):
        write_report(Workspace(tmp_path), "s", "svg", None)
