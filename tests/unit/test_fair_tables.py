"""Tests the making of tables from results: what is kept of a report, what replaces what, and what a table says."""

from __future__ import annotations

from itertools import pairwise

from orchestration.study.grids import load_grid, parse_choice, specification
from tests.benchmarks.fair_tables import block, merged, read_report, tables

REPORT = """dataset,noise,corruption,defense,planned,done,mean,std,paper,difference,seeds
mnist,symmetric 0.6,UP,"CE, epochs 440",3,2,50.00,14.14,,,40.00 60.00
mnist,symmetric 0.6,UP,"ERAT, epochs 28",3,3,95.00,1.00,,,94.00 95.00 96.00
mnist,symmetric 0.6,UHP,"ERAT, epochs 28",3,0,,,,,
"""


def test_a_table_of_results_says_mean_spread_and_how_many_runs() -> None:
    lines = tables(read_report("fair3", REPORT)).splitlines()
    assert lines[0] == "**fair3: mnist, symmetric 0.6 label noise**"
    assert lines[2] == "| defense | UP | UHP |"
    assert lines[4] == "| CE, epochs 440 | 50.0 ± 14.1 (2 of 3) | - |"
    assert lines[5] == "| ERAT, epochs 28 | 95.0 ± 1.0 (3) | - |"


def test_a_block_replaces_its_own_lines_alone() -> None:
    before = [
        row | {"noise": noise} for row in read_report("fair3", REPORT) for noise in ("instance 0.6", "symmetric 0.6")
    ]
    new = read_report("fair3", REPORT)
    after = merged(before, new)
    assert after[-3:] == new
    assert [row["noise"] for row in after] == ["instance 0.6"] * 3 + ["symmetric 0.6"] * 3


def test_a_block_s_command_asks_for_the_runs_of_its_noise() -> None:
    name, words = block("fair6", "instance", "0,1,2", "0,1", "defense=erat corruption=up")
    assert name == "fair6-instance"
    only = [word for option, word in pairwise(words) if option == "--only"]
    grid = load_grid("fair6").model_copy(update={"least_epochs": None, "compute_of": None})
    spec = specification(grid, "demo", {}, draws=(0, 1, 2), seeds=(0, 1), only=parse_choice("--only", only))
    assert len(spec.runs) == 6
    assert {run["corruption.labels"] for run in spec.runs} == {"instance"}
