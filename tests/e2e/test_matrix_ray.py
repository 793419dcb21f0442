"""Tests a small matrix on a real Ray cluster: every run once, its tables, and no more at a time than allowed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from orchestration.storage.workspace import Workspace
from tests.e2e.commands import Command, Said

SMALL = ["data.limit=300", "train.epochs=2", "corruption.source_epochs=1", "corruption.steps=5"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("grid") / "small.yaml"
    path.write_text(
        "name: small\nabout: three defenses on two poisons\n"
        "axes: {noise: [symmetric], corruption: [uhp, urp], defense: [ce, dividemix, erat_no_at]}\n"
    )
    return str(path)


@pytest.fixture(scope="module")
def ran(command: Command, grid: str) -> Said:
    said = command("matrix", "--grid", grid, "--max-concurrent", "1", *SMALL, "--json")
    assert said.code == 0, said.err
    return said


def test_every_trial_runs_once_and_one_at_a_time(ran: Said) -> None:
    assert len({run["cell"] for run in ran.json["runs"]}) == 6
    assert {run["status"] for run in ran.json["runs"]} == {"done"}
    words = [line.split() for line in ran.err.splitlines() if line.startswith("[") and "trial" in line]
    states = [word for line in words for word in line if word in ("running", "done")]
    assert states == ["running", "done"] * 6


def test_its_tables_name_the_defenses_as_the_paper_does(ran: Said, workspace: Workspace) -> None:
    folder = workspace.report(ran.json["name"])
    text = (folder / "matrix.md").read_text()
    assert "**mnist, symmetric 0.6 label noise**" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:] == [
        "CE",
        "DivideMix",
        "ERAT w/o AT",
    ]
    records = list(csv.DictReader((folder / "matrix.csv").open()))
    reached = {(run["config"]["defense.name"], run["config"]["corruption.data"]): run for run in ran.json["runs"]}
    for record in records:
        name = {"CE": "ce", "DivideMix": "dividemix", "ERAT w/o AT": "erat"}[record["defense"]]
        accuracy = reached[name, record["corruption"].lower()]["final_test_accuracy"]
        assert float(record["mean"]) == pytest.approx(100 * accuracy, abs=0.01)


def test_another_grid_runs_only_what_is_new(ran: Said, command: Command, workspace: Workspace, tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(
        "name: more\nabout: one more\naxes: {noise: [symmetric], corruption: [urp], defense: [ce, iss, erat_no_at]}\n"
    )
    said = command("matrix", "--grid", str(more), *SMALL, "--json")
    assert said.code == 0, said.err
    assert len(said.json["runs"]) == 3
    assert [line for line in said.err.splitlines() if " running " in line and "defense.name=iss" in line]
    assert not [line for line in said.err.splitlines() if " running " in line and "defense.name=iss" not in line]
    known = {run["cell"]: run["final_test_accuracy"] for run in ran.json["runs"]}
    shared = [run for run in said.json["runs"] if run["cell"] in known]
    assert len(shared) == 2
    assert all(run["final_test_accuracy"] == known[run["cell"]] for run in shared)


@pytest.mark.slow
def test_training_begins_beside_crafting(command: Command, workspace: Workspace, tmp_path: Path) -> None:
    grid = tmp_path / "beside.yaml"
    grid.write_text(
        "name: beside\nabout: a slow set and a quick one\n"
        "axes: {noise: [symmetric, instance], corruption: [uap, urp], defense: [ce]}\n"
    )
    words = ["data.limit=360", "train.epochs=2", "corruption.source_epochs=1", "corruption.steps=1500"]
    before = image_sets(workspace)
    said = command("matrix", "--grid", str(grid), *words, "--json")
    assert said.code == 0, said.err
    lines = said.err.splitlines()
    first = next(index for index, line in enumerate(lines) if " running " in line)
    last = max(index for index, line in enumerate(lines) if line.startswith("crafting uap"))
    assert "images=urp" in lines[first]
    assert first < last, "the quick set's runs wait for nobody"
    assert {run["status"] for run in said.json["runs"]} == {"done"}
    assert image_sets(workspace) == before + 2, "both label noises share the sets of uap and urp"


def image_sets(workspace: Workspace) -> int:
    """Return the number of sets of poisoned images in the store."""
    return len(list(workspace.crafted.glob("images-*")))


@pytest.mark.slow
def test_what_crafting_refuses_leaves_the_name_free(command: Command, workspace: Workspace, tmp_path: Path) -> None:
    bad = tmp_path / "weights.pt"
    bad.write_bytes(b"none")
    grid = tmp_path / "one.yaml"
    grid.write_text("name: one\nabout: one\naxes: {noise: [symmetric], corruption: [uhp], defense: [ce]}\n")
    words = ["matrix", "--grid", str(grid), "--name", "mistaken", "--json", *SMALL[:2], SMALL[3]]
    said = command(*words, f"corruption.source_weights={bad}")
    assert said.code == 2, said.err
    assert str(bad) in said.err.splitlines()[-1]
    assert command(*words, "corruption.source_epochs=1").code == 0
