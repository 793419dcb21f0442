"""Tests what is shown of confirmations: their own table, the winner by its mean, words, CSV, figures and the page."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

from orchestration.report.document import write_report
from orchestration.report.documents import search_text
from orchestration.report.figures import joint_figure
from orchestration.report.live import LiveView
from orchestration.report.notation import number_of
from orchestration.report.plots.confirmations import confirmations
from orchestration.report.study import search_figures
from orchestration.report.summary import best, best_sentence, confirmed_table, ranked
from orchestration.storage.workspace import Workspace
from orchestration.study.confirmations import winner
from orchestration.study.ledger import Ledger
from orchestration.study.status import trials_of
from orchestration.study.trial import Trial, confirmation
from tests.drawn import rows_of as drawn_of
from tests.searches import ETA, LAMBDA, search_spec, write_search

SPEC = search_spec(pruner="none", confirm={"top": 2, "seeds": 3})


def rows_of(workspace: Workspace) -> list[Trial]:
    return trials_of(workspace, Ledger(workspace.ledger), "s")[0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Make a search of seven trials whose best two are confirmed with three seeds."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    write_search(made, "s", SPEC, 7)
    return made


@pytest.fixture(scope="module")
def rows(workspace: Workspace) -> list[Trial]:
    return rows_of(workspace)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    """Return the same search, in which a repetition of the winner failed."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    write_search(made, "s", SPEC, 7, failing=[confirmation(2, 2)])
    return rows_of(made)


def test_the_winner_is_the_best_mean(rows: list[Trial]) -> None:
    over = winner(rows)
    assert over is not None
    assert best(rows) is over.trial
    lucky = max((row for row in rows if row.confirms is None), key=lambda row: row.best_val_accuracy or 0)
    assert len(over.runs) == 3
    assert lucky.number in {row.confirms for row in rows}


def test_repetitions_stand_below_their_candidate_under_words(rows: list[Trial]) -> None:
    first = winner(rows)
    assert first is not None
    number = first.trial.number
    assert [number_of(row) for row in ranked(rows)[:3]] == [str(number), f"{number}, seed 1", f"{number}, seed 2"]
    text = search_text("md", rows, [ETA, LAMBDA])
    assert f"| {number} | seed 2 | " in text
    assert "10000" not in text and "20000" not in text


def test_the_table_has_mean_spread_and_number_of_seeds(rows: list[Trial]) -> None:
    table = confirmed_table(rows, [ETA, LAMBDA])
    over = winner(rows)
    assert table is not None
    assert over is not None
    assert [column.heading for column in table.columns] == ["#", "η", "λ", "val (mean)", "test (mean)", "seeds"]
    first, second = table.rows
    assert (first.chosen, second.chosen) == (True, False)
    assert first.cells[0].text == f"★ {over.trial.number}"
    assert first.cells[3].text == f"{over.val.mean:.3f} ± {over.val.spread:.3f}"
    assert first.cells[4].text == f"{over.test.mean:.3f} ± {over.test.spread:.3f}"
    assert [line.cells[5].text for line in table.rows] == ["3", "3"]
    assert len(first.cells[0].runs) == 3, "the drill-down opens every seed"


def test_a_failed_repetition_is_named(failing: list[Trial]) -> None:
    table = confirmed_table(failing, [ETA])
    assert table is not None
    assert "Left out because they failed: trial 2, seed 2." in table.caption
    assert sorted(line.cells[-1].text for line in table.rows) == ["2", "3"]
    assert "Not all seeds" not in table.caption


def test_what_has_not_ended_is_named_and_nobody_has_won(workspace: Workspace, rows: list[Trial]) -> None:
    cut = [row for row in rows if row.number < 20_000_000]
    table = confirmed_table(cut, [ETA])
    assert table is not None
    assert "Not all seeds have ended: trial" in table.caption
    assert winner(cut) is None
    assert best(cut) is max(
        (row for row in cut if row.confirms is None), key=lambda row: (row.best_val_accuracy or 0, -row.number)
    )
    assert workspace.ledger.exists()


def test_the_sentence_says_over_how_many_seeds(rows: list[Trial]) -> None:
    over = winner(rows)
    assert over is not None
    sentence = best_sentence(rows, [ETA])
    assert sentence.startswith(f"Best by validation over 3 seeds: trial {over.trial.number} with η = ")
    assert f"{over.val.mean:.3f} ± {over.val.spread:.3f} in validation" in sentence


def test_csv_has_every_digit(rows: list[Trial]) -> None:
    records = {record["number"]: record for record in csv.DictReader(io.StringIO(search_text("csv", rows, [ETA])))}
    over = winner(rows)
    assert over is not None
    mine = records[str(over.trial.number)]
    assert float(mine["val_accuracy_mean"]) == over.val.mean
    assert float(mine["test_accuracy_std"]) == over.test.spread
    assert mine["seeds_done"] == "3"
    other = records[str(confirmation(over.trial.number, 2))]
    assert (other["confirms"], other["seed"], other["val_accuracy_mean"]) == (str(over.trial.number), "2", "")
    assert "confirms" not in search_text("csv", [row for row in rows if row.confirms is None], [ETA])


def test_the_live_view_shows_the_mean(rows: list[Trial]) -> None:
    stream = io.StringIO()
    over = winner(rows)
    assert over is not None
    with LiveView("t", [ETA], len(rows), stream) as view:
        view.update(rows)
    assert f"trial {over.trial.number}, seed 2 done" in stream.getvalue()
    assert "trial 20" not in stream.getvalue()


def test_figures_have_the_search_alone_and_ring_the_winner(rows: list[Trial], tmp_path: Path) -> None:
    searched = [row for row in rows if row.confirms is None]
    ranges = SPEC.space.distributions("mnist")
    figures, _ = search_figures(rows, ranges)
    (parallel,) = [figure for figure in figures if figure.name == "parallel"]
    assert len(drawn_of(parallel, "line")) == len(searched) == 7
    drawn = joint_figure(rows, [ETA, LAMBDA], tmp_path)[1].read_text()
    assert "7 trials, each in every panel" in drawn
    assert "train.seed" not in "".join(figure.caption for figure in figures)


def test_a_figure_has_each_seed_and_the_interval_of_the_mean(rows: list[Trial]) -> None:
    over = winner(rows)
    figure = confirmations(rows)
    assert over is not None and figure is not None
    name, kind = f"trial {over.trial.number}", "validation, which chooses"
    seeds = [each["y"] for each in drawn_of(figure, "tick") if (each["candidate"], each["kind"]) == (name, kind)]
    (mean,) = [each for each in drawn_of(figure, "point") if (each["candidate"], each["kind"]) == (name, kind)]
    assert len(seeds) == mean["n"] == 3
    half = 4.302653 * stdev(seeds) / 3**0.5  # Student's t with two degrees of freedom, 97.5 %
    assert (mean["low"], mean["high"]) == pytest.approx((fmean(seeds) - half, fmean(seeds) + half), rel=1e-4)
    assert re.search(
        r"over 3 shared seeds, 95% interval \[[-+.0-9]+, [-+.0-9]+\]: (within|more than) the noise", figure.caption
    )


def test_the_page_has_both_tables(workspace: Workspace) -> None:
    page = write_report(workspace, "s", "html", None).read_text()
    assert 'id="over-seeds"' in page
    assert page.index('id="over-seeds"') < page.index("All trials")
    assert "11 done" in page
    assert "of 11<" in page.replace("\n", "")
    assert "Best by validation over 3 seeds" in page
    assert ">10000" not in page and ">20000" not in page
