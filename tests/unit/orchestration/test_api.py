"""Tests studies in Python, without Ray: plans, results from the ledger, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from erat.errors import UserError
from orchestration import GridSpec, SearchSpace, Study, Workspace, load_study, study_names
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as
from tests.searches import search_spec, write_search

SPACE: dict[str, Any] = {
    "name": "momentum",
    "about": "two runs",
    "proposals": 0,
    "baselines": [{"train.momentum": 0.0}, {"train.momentum": 0.5}],
}
FIGURES = {
    "epochs": 2,
    "val_accuracy": 0.5,
    "best_val_accuracy": 0.6,
    "final_test_accuracy": 0.7,
    "best_val_test_accuracy": 0.8,
    "train_seconds": 3.0,
    "mlflow_run_id": "abc",
}


def result(cell: str, status: str, **figures: Any) -> dict[str, Any]:
    return {"cell": cell, "status": status, **FIGURES, **figures}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def small(workspace: Path) -> Study:
    return Study.create(space=SPACE, name="small", workspace=workspace, overrides={"train.epochs": 2})


def end(study: Study, number: int, status: str = "done", **figures: Any) -> None:
    """Record the end of a run of this study in the ledger."""
    ledger = Ledger(study.workspace.ledger)
    register(ledger, study.name, study.spec, study.search_trials)
    trial = study.trials[number]
    fields = {"number": number, "params": trial.params, "source": trial.source, "cell": trial.cell}
    ledger.append("proposed", sweep=study.name, **fields)
    sweep = study.name if status == "stopped" else None
    ledger.append(status, cell=trial.cell, sweep=sweep, result=result(trial.cell, status, **figures))


# --- what is said ----------------------------------------------------------------------------------------------------


def test_nothing_is_written_before_it_runs(small: Study, workspace: Path) -> None:
    assert [trial.status for trial in small.trials] == ["queued", "queued"]
    assert [trial.config["train.momentum"] for trial in small.trials] == [0.0, 0.5]
    assert small.parameters == ["train.momentum"]
    assert (small.total, small.begun, small.best, small.end) == (2, False, None, None)
    assert not (workspace / "ledger.jsonl").exists()


@pytest.mark.parametrize("form", ["mapping", "object", "text", "path"])
def test_a_space_in_four_forms(form: str, tmp_path: Path, workspace: Path) -> None:
    file = tmp_path / "momentum.yaml"
    file.write_text(json.dumps(SPACE))
    space = {"mapping": SPACE, "object": SearchSpace(**SPACE), "text": str(file), "path": file}[form]
    study = Study.create(space, name="one", workspace=workspace)
    assert [trial.params for trial in study.trials] == SPACE["baselines"]


@pytest.mark.parametrize("form", ["mapping", "object", "path"])
def test_a_grid_in_three_forms(form: str, tmp_path: Path, workspace: Path) -> None:
    content = {"name": "g", "about": "two defenses", "axes": {"defense": ["ce", "iss"], "corruption": ["urp", "uhp"]}}
    file = tmp_path / "g.yaml"
    file.write_text(json.dumps(content))
    grid = {"mapping": content, "object": GridSpec(**content), "path": file}[form]
    study = Study.create(grid=grid, seeds=(0, 1), only={"defense": ["ce"]}, workspace=workspace)
    configs = [trial.config for trial in study.trials]
    assert [(c["defense.name"], c["corruption.data"], c["train.seed"]) for c in configs] == [
        ("ce", kind, seed) for kind in ("urp", "uhp") for seed in (0, 1)
    ]


def test_keys_are_given_as_a_mapping_or_as_keywords(workspace: Path) -> None:
    study = Study.create(
        SPACE, workspace=workspace, overrides={"train.epochs": 3}, train__lr_batch=32, defense__eta=0.3
    )
    assert study.spec.overrides == {"train.epochs": 3, "train.lr_batch": 32, "defense.eta": 0.3}


def test_names_are_those_of_the_command_line(workspace: Path) -> None:
    assert Study.create("budgets", workspace=workspace).name == "budgets"
    changed = Study.create("budgets", workspace=workspace, train__epochs=3)
    assert changed.name == f"budgets-{changed.spec.identity()[:6]}"
    assert Study.create(grid="table6", workspace=workspace).name == "table6"
    assert Study.create("budgets", workspace=workspace, trials=3).search_trials == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of the two"),
        ({"space": "budgets", "grid": "table3"}, "give one of the two"),
        ({"space": "budget"}, "did you mean budgets"),
        ({"space": SPACE | {"runs_": 1}}, "the space: unknown key 'runs_'"),
        ({"grid": {"name": "g"}}, "the grid: "),
        ({"space": "budgets", "epochs": 3}, r"unknown argument 'epochs'.*section__key"),
        ({"space": "budgets", "trails": 3}, "did you mean trials"),
        ({"space": "budgets", "train__epoch": 3}, "unknown key 'train.epoch'"),
        ({"space": "budgets", "train__epochs": 3, "overrides": {"train.epochs": 3}}, "given twice"),
        ({"space": "budgets", "trials": 0}, r"trials must be a whole number in \[1, "),
        ({"space": "budgets", "trials": True}, r"trials must be a whole number in \[1, 100000\], got True"),
        ({"space": SPACE, "trials": 3}, "trials can be given for a search only, and momentum is a list of runs; got 3"),
        ({"grid": "table3", "trials": 3}, "trials can be given for a search only, and table3 is a list of runs; got 3"),
        ({"grid": "table3", "seeds": (0, 0)}, r"seeds must be different whole numbers, got \(0, 0\)"),
        ({"space": "budgets", "seeds": (0, 1)}, "choose points of a grid"),
        ({"space": "budgets", "name": "../up"}, "name must be letters"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value) or "nothing",
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], words: str, workspace: Path) -> None:
    with pytest.raises(UserError, match=words):
        Study.create(workspace=workspace, **arguments)


# --- what a ledger says ----------------------------------------------------------------------------------------------


def test_results_are_a_table_with_a_row_a_trial(small: Study) -> None:
    end(small, 0)
    table = small.results()
    assert list(table["number"]) == [0, 1]
    assert list(table["status"]) == ["done", "queued"]
    assert list(table["source"]) == ["baseline", "baseline"]
    assert list(table["params"]) == SPACE["baselines"]
    assert list(table["train.momentum"]) == [0.0, 0.5]
    first = table.iloc[0]
    assert (first["final_test_accuracy"], first["best_val_test_accuracy"]) == (0.7, 0.8)
    assert (first["seconds"], first["epoch"], first["mlflow_run_id"]) == (3.0, 2, "abc")
    assert set(small.trials[0].config) <= set(table.columns)
    assert table["final_test_accuracy"].isna().tolist() == [False, True]


def test_a_study_is_found_again_under_its_name(small: Study, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end(small, 1)
    monkeypatch.setenv("ERAT_HOME", str(workspace))
    found = load_study("small")
    assert study_names() == study_names(workspace) == study_names(Workspace(workspace)) == ["small"]
    assert found.results().equals(small.results())
    assert found.begun
    with pytest.raises(UserError, match=r"unknown sweep 'smal': did you mean small\?"):
        load_study("smal")


def test_a_name_means_one_specification(small: Study, workspace: Path) -> None:
    end(small, 0)
    with pytest.raises(UserError, match="exists with another specification"):
        Study.create(SPACE, name="small", workspace=workspace, overrides={"train.epochs": 3})
    assert Study.create(SPACE, name="small", workspace=workspace, overrides={"train.epochs": 2}).begun


def test_a_search_keeps_the_trials_that_it_has(workspace: Path) -> None:
    study = Study.create("budgets", workspace=workspace, trials=5)
    register(Ledger(study.workspace.ledger), study.name, study.spec, 5)
    fewer = Study.create("budgets", workspace=workspace, trials=2)
    assert (fewer.asked, fewer.search_trials) == (2, 5)
    assert load_study("budgets", workspace).search_trials == 5


def test_the_best_is_chosen_by_validation_accuracy(workspace: Path) -> None:
    study = Study.create("budgets", workspace=workspace)
    searched = [trial.number for trial in study.trials if trial.source == "paper"]
    end(study, searched[0], best_val_accuracy=0.6, final_test_accuracy=0.9)
    end(study, searched[1], best_val_accuracy=0.8, final_test_accuracy=0.1)
    assert study.best is not None
    assert study.best.number == searched[1]


def test_the_report_is_a_file(small: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown sweep"):
        small.report()
    end(small, 0)
    assert small.report() == small.workspace.report("small") / "report.html"
    assert "0.5" in small.report(tmp_path / "table.csv", format="csv").read_text()
    with pytest.raises(UserError, match=r"^path .* cannot be written"):
        small.report(tmp_path / "table.csv" / "below.csv", format="csv")
    with pytest.raises(UserError, match="unknown format 'docx'"):
        small.report(format="docx")


def test_retry_asks_for_the_failed_ones_alone(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    end(small, 0, "failed", error="it broke")
    end(small, 1)
    ran: list[str] = []
    monkeypatch.setattr(Study, "run", lambda study, address=None, at_most=None: ran.append(study.name) or study)
    assert load_study("small", small.workspace).retry().name == "small"
    assert ran == ["small"]
    ledger = Ledger(small.workspace.ledger)
    assert [ledger.outcome(trial.cell, "small") is None for trial in small.trials] == [True, False]


def test_settings_are_part_of_the_specification(workspace: Path) -> None:
    study = Study.create(
        "eta", workspace=workspace, sampler="random", pruner="halving", rungs=[4, 8], window=6, confirm="2x3"
    )
    space = study.spec.content()["space"]
    kept = {key: space[key] for key in ("sampler", "pruner", "rungs", "window", "confirm")}
    assert kept == {
        "sampler": "random",
        "pruner": "halving",
        "rungs": [4, 8],
        "window": 6,
        "confirm": {"top": 2, "seeds": 3},
    }
    assert study.name.startswith("eta-")
    names = {Study.create("eta", workspace=workspace, window=window).name for window in (None, 5, 6)}
    assert len(names) == 3
    assert Study.create("eta", workspace=workspace, pruner="median").name == "eta", "the space has it already"


@pytest.mark.parametrize("place", ["grid", "space"])
def test_a_list_of_runs_has_no_settings(place: str, workspace: Path) -> None:
    content: dict[str, Any] = {"grid": "table1"} if place == "grid" else {"space": SPACE}
    with pytest.raises(UserError, match=r"sampler can be given for a search only, and .* is a list of runs; got 'gp'"):
        Study.create(**content, workspace=workspace, sampler="gp")


def test_a_study_that_has_begun_keeps_its_window(workspace: Path) -> None:
    study = Study.create("eta", workspace=workspace)
    register(Ledger(study.workspace.ledger), "eta", begin_as(study.spec, 1, 20), 20)
    assert Study.create("eta", workspace=workspace).spec.space.window == 2
    with pytest.raises(UserError, match="begun with window 2, which stays; got 3"):
        Study.create("eta", workspace=workspace, name="eta", window=3)
    further = Study.create("eta", workspace=workspace, trials=30)
    assert further.spec.space.window == "auto", "it is settled when the further trials begin"
    assert further.windows == study.windows == {20: 2}
    register(Ledger(workspace / "ledger.jsonl"), "eta", begin_as(study.spec, 1, 20), 30, {20: 2, 30: 8})
    assert load_study("eta", workspace).windows == {20: 2, 30: 8}


@pytest.mark.parametrize("at_most", [-1, 0, True, 2.0])
def test_a_number_of_runs_side_by_side_is_one(small: Study, at_most: Any) -> None:
    for act in (small.run, small.retry):
        with pytest.raises(UserError, match=r"at_most must be a whole number in \[1, 100000\], got "):
            act(at_most=at_most)
    assert not small.begun


def test_a_listed_run_with_a_value_that_is_not_searched_stays_on_record(workspace: Path) -> None:
    space = {
        "name": "which",
        "about": "one of two defenses",
        "parameters": {"defense.name": {"choices": ["erat", "dat"]}},
        "proposals": 1,
        "baselines": [{"defense.name": "ce"}],
    }
    study = Study.create(space=space, workspace=workspace)
    end(study, 0)
    assert [(trial.number, trial.status) for trial in load_study(study.name, workspace).begun_trials()] == [(0, "done")]


def test_confirmations_are_part_of_the_table_of_results(workspace: Path) -> None:
    spec = search_spec(pruner="none", confirm={"top": 1, "seeds": 3})
    write_search(Workspace(workspace), "s", spec, 3)
    study = load_study("s", workspace)
    table = study.results().set_index("number")
    assert study.total == len(table) == 3 + 2
    assert study.best is not None
    best = table.loc[study.best.number]
    seeds = table[(table.index == study.best.number) | (table["confirms"] == study.best.number)]
    assert len(seeds) == best["seeds_done"] == 3
    assert best["val_accuracy_mean"] == pytest.approx(seeds["best_val_accuracy"].mean())
    assert best["val_accuracy_std"] == pytest.approx(seeds["best_val_accuracy"].std(ddof=1))
    assert best["test_accuracy_mean"] == pytest.approx(seeds["final_test_accuracy"].mean())
    assert table["val_accuracy_mean"].notna().sum() == 1
