"""Tests grids as lists of runs, and finished runs as the paper's tables."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erat.errors import UserError
from orchestration.report.documents import matrix_text
from orchestration.report.matrix import line_name, matrix_tables, summary_sentences
from orchestration.report.published import published
from orchestration.study.grids import GRIDS, load_grid, parse_choice, specification
from orchestration.study.trial import Trial
from tests.trials import make_trial


def runs_of(grid: str, preset: str = "demo", **choice: Any) -> list[dict[str, Any]]:
    overrides = choice.pop("overrides", {})
    return specification(load_grid(grid), preset, overrides, **choice).runs


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        *[("table1", 12), ("table2", 8), ("table3", 168), ("table4", 168), ("table5", 168), ("table6", 189)],
        # Two noises on two poisons: four budgets of the poison; no noise and four rates; the paper's own points.
        *[("figure2", 2), ("figure3", 4 * 4 * 8), ("figure4", (1 + 2 * 4) * 2 * 8), ("rq5", 2)],
        *[("figure5", 4 * 8), ("figure6", 4 * 6), ("figure7", 4 * 7), ("figure8", 4 * 6 * 3)],
    ],
)
def test_a_grid_has_the_runs_of_the_paper_s_table(grid: str, count: int) -> None:
    assert len(runs_of(grid)) == count
    assert len(runs_of(grid, seeds=(0, 1, 2))) == 3 * count


def test_the_grid_of_further_poisons_has_each_under_each_defense_and_the_paper_s_on_request() -> None:
    runs = runs_of("poisons")
    assert {run["corruption.data"] for run in runs} == {"ops", "lsp", "ar", "cuda", "tue", "pil", "rem", "adaptive"}
    assert len(runs) == 2 * 8 * 7
    chosen = runs_of("poisons", only={"corruption": ["uhp", "ops"], "defense": ["erat"], "noise": ["symmetric"]})
    assert [run["corruption.data"] for run in chosen] == ["ops", "uhp"]


def test_every_grid_is_known_by_its_name_and_its_runs_differ() -> None:
    names = sorted(file.stem for file in GRIDS.glob("*.yaml") if file.stem != "base")
    figures, tables = ([f"{word}{n}" for n in range(*ends)] for word, ends in (("figure", (2, 9)), ("table", (1, 7))))
    assert names == ["coupled", "fair3", "fair6", *figures, "poisons", "rq5", *tables]
    for name in names:
        assert load_grid(name).name == name
        # Without the counting of operations, which takes seconds for each defense.
        spec = specification(load_grid(name).model_copy(update={"least_epochs": None, "compute_of": None}), "demo", {})
        digests = [spec.config(run).digest() for run in spec.runs]
        assert len(set(digests)) == len(digests)


def test_tables_share_the_runs_that_they_have_in_common() -> None:
    third, sixth = (specification(load_grid(name), "demo", {}) for name in ("table3", "table6"))
    shared = {third.config(run).digest() for run in third.runs} & {sixth.config(run).digest() for run in sixth.runs}
    assert len(shared) == 21, "ERAT on seven corruptions under three noises"


def test_at_paper_scale_a_table_names_its_data_set() -> None:
    spec = specification(load_grid("table4"), "paper", {})
    assert spec.base.data.name == "cifar100"
    assert len(runs_of("table2", "paper")) == 24
    assert {run["data.name"] for run in runs_of("table2", "paper")} == {"cifar10", "cifar100", "tiny-imagenet"}


def test_a_poison_s_budget_is_a_multiple_of_the_tables() -> None:
    budgets = {run.get("corruption.epsilon") for run in runs_of("figure3", "paper", only={"corruption": ["uhp"]})}
    assert budgets == {0.125, 0.25, None, 1.0}
    assert {run.get("corruption.epsilon") for run in runs_of("figure3", only={"corruption": ["uhp"]})} == {
        0.3125,
        0.625,
        None,
        2.5,
    }


def test_a_figure_s_middle_is_the_table_s_run() -> None:
    table = specification(load_grid("table3"), "paper", {})
    known = {table.config(run).digest() for run in table.runs}
    for name, shared in {"figure3": 32, "figure4": 32, "figure5": 4, "figure6": 4, "figure7": 4}.items():
        spec = specification(load_grid(name), "paper", {})
        assert len(known & {spec.config(run).digest() for run in spec.runs}) == shared, name


def test_only_and_skip() -> None:
    chosen = runs_of("table3", only={"defense": ["erat", "ce"], "corruption": ["up"]})
    assert [run["defense.name"] for run in chosen] == ["ce", "erat"] * 3, "in the order of the grid"
    rest = runs_of("table3", skip={"noise": ["instance", "symmetric"], "defense": ["mspl"]})
    assert len(rest) == 7 * 7
    assert {run["corruption.rate"] for run in rest} == {0.4}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"only": {"defence": ["erat"]}}, "--only defence: unknown axis 'defence': did you mean defense?"),
        ({"skip": {"defense": ["erta"]}}, "--skip defense=erta: unknown point 'erta': did you mean erat?"),
        ({"skip": {"noise": ["instance", "symmetric", "asymmetric"]}}, "--only and --skip leave no cell"),
        ({"only": {"defense.name": ["erta"]}}, "--only defense.name=erta: unknown value 'erta': did you mean erat?"),
        ({"only": {"train.lr": ["0.1"]}}, "--only train.lr: no axis of this grid sets it"),
        ({"overrides": {"corruption.data": "up"}}, "corruption.data is what the grid table3 varies"),
    ],
)
def test_a_wrong_choice_is_one_line(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        runs_of("table3", **choice)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_dotted_keys_choose_beside_axes() -> None:
    whole = runs_of("table3")
    chosen = runs_of("table3", only={"defense": ["erat", "ce"], "corruption.data": ["up", "uhp"]})
    assert {(run["defense.name"], run["corruption.data"]) for run in chosen} == {
        (defense, poison) for defense in ("erat", "ce") for poison in ("up", "uhp")
    }
    both = runs_of("table3", only={"corruption.data": ["up"]}, skip={"corruption.data": ["uhp"]})
    assert {run["corruption.data"] for run in both} == {"up"}, "what is not there any more need not be skipped"
    skipped = runs_of("table3", skip={"corruption.data": ["up"]})
    assert len(skipped) == sum(run["corruption.data"] != "up" for run in whole) < len(whole)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes: {a: {one: {corruption.epsilno: 1}}}", "unknown key 'corruption.epsilno': did you mean corruption.eps"),
        ("axes: {a: {one: {times: abc}}}", "times must be a number in [0, 1000], got 'abc'"),
        ("axes: {a: []}", "axis 'a' must have at least one point, got none"),
        ("axes: {a: {one: 3}}", "axes.a"),
        ("axes: 3", "axes: input should be a valid dict"),
        ("axes: {a: {one: {train.lr: 1}}}\npaper: {train.rl: 1}", "unknown key 'train.rl'"),
        (
            "axes:\n" + "".join(f"  a{n}: {{x: {{train.lr: 1}}, y: {{train.lr: 2}}}}\n" for n in range(60)),
            "a grid must have at most 200,000 cells, got 1,152,921,504,606,846,976",
        ),
    ],
)
def test_a_wrong_grid_is_one_line_at_once(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\nabout: x\n{text}\n")
    with pytest.raises(UserError) as caught:
        runs_of(str(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_choices_are_words_of_axis_and_names() -> None:
    assert parse_choice("--only", ["defense=erat,ce noise=none"]) == {"defense": ["erat", "ce"], "noise": ["none"]}
    assert parse_choice("--only", None) == {}
    assert parse_choice("--only", ["defense=erat,ce noise=none", "defense=ce"]) == {
        "defense": ["ce"],
        "noise": ["none"],
    }
    assert parse_choice("--skip", ["defense=erat", "defense=ce"]) == {"defense": ["erat", "ce"]}
    with pytest.raises(UserError, match="--only must not be empty"):
        parse_choice("--only", [""])
    with pytest.raises(UserError, match="--only defense leaves nothing: erat and ce share no name"):
        parse_choice("--only", ["defense=erat", "defense=ce"])
    with pytest.raises(UserError, match=r"--only must be AXIS=NAME,NAME .*, got 'erat'"):
        parse_choice("--only", ["erat"])


def test_a_grid_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nabout: budgets of a poison\naxes:\n  defense: [ce, erat]\n"
        "  budget: {small: {corruption.epsilon: 0.5}, large: {corruption.epsilon: 2}}\n"
    )
    assert [run["corruption.epsilon"] for run in runs_of(str(file))] == [0.5, 2, 0.5, 2]
    file.write_text("name: mine\nabout: x\naxes: {defense: [ce, eart]}\n")
    with pytest.raises(UserError, match="unknown defense 'eart': did you mean"):
        runs_of(str(file))
    file.write_text("name: mine\nabout: x\n")
    with pytest.raises(UserError, match=r"mine\.yaml: axes: field required"):
        runs_of(str(file))
    with pytest.raises(UserError, match="unknown grid 'tabel3': did you mean table3"):
        load_grid("tabel3")


# --- tables ----------------------------------------------------------------------------------------------------------


def row(defense: str, corruption: str, accuracy: float | None, *, noise: str = "symmetric", **more: Any) -> Trial:
    config = {
        "data.name": "mnist",
        "defense.name": defense,
        "corruption.data": corruption,
        "corruption.labels": noise,
        "corruption.rate": 0.6,
    }
    status = "failed" if accuracy is None else "done"
    cell, config = f"{defense}{corruption}", config | more
    return make_trial(0, cell, status=status, final_test_accuracy=accuracy, config=config)


ROWS = [
    row("ce", "up", 0.30),
    row("ce", "uhp", 0.40),
    row("at", "up", 0.951),
    row("at", "uhp", None),
    row("erat", "up", 0.9514),
    row("erat", "uhp", 0.90),
]


def test_best_and_second_best_of_each_column_are_marked_and_ties_share_a_place() -> None:
    lines = matrix_text("md", ROWS).splitlines()
    assert lines[0] == "**mnist, symmetric 0.6 label noise**"
    assert lines[2] == "| defense | UP | UHP | mean |"
    assert lines[4] == "| CE | <u>30.0</u> | <u>40.0</u> | <u>35.0</u> |"
    assert lines[5] == "| AT | **95.1** | - | - |"
    assert lines[6] == "| ERAT | **95.1** | **90.0** | **92.6** |"


def test_seeds_make_a_mean_and_a_spread_and_a_missing_one_is_said() -> None:
    rows = [row("erat", "up", value) for value in (0.9, 0.92, None)] + [row("ce", "up", 0.2)]
    (table,) = matrix_tables(rows)
    assert table.cells["ERAT"]["UP"].text() == "91.0 ± 1.4 (2 of 3)"


def test_the_paper_s_figure_stands_beside_ours_where_the_data_set_is_the_paper_s() -> None:
    rows = [row(name, "up", 0.5, **{"data.name": "cifar10"}) for name in ("ce", "dividemix", "erat_no_at")]
    rows[2] = replace(rows[2], config={**rows[2].config, "defense.name": "erat", "defense.adversarial": False})
    printed = {
        cell.method: cell.test_accuracy
        for cell in published()
        if (cell.dataset, cell.label_noise, cell.data_corruption) == ("cifar10", "symmetric", "UP")
    }
    text = matrix_text("md", rows)
    for method in ("CE", "DivideMix", "ERAT w/o AT"):
        assert f"| {method} | **50.0 [{printed[method]:.1f}]**" in text
    records = list(csv.DictReader(io.StringIO(matrix_text("csv", rows))))
    assert float(records[0]["difference"]) == pytest.approx(50 - printed["CE"], abs=0.01)


def test_in_words_who_wins_and_how_surely() -> None:
    kinds = ("l2c", "up", "aa", "ap", "uap", "uhp", "urp")
    rows = [row("ce", kind, 0.2 + 0.01 * i) for i, kind in enumerate(kinds)]
    rows += [row("erat", kind, 0.9 + 0.001 * i) for i, kind in enumerate(kinds)]
    words = summary_sentences(rows)
    assert words[0] == "Mean over 7 cells: ERAT 90.3, CE 23.0."
    assert words[1] == "ERAT is best in 7 of 7 cells, and in the mean 67.3 points ahead of CE."
    assert words[2].startswith("One draw of the corruption has no interval")


def test_a_lead_has_an_interval_over_draws_in_which_seeds_and_cells_are_averaged() -> None:
    rows = []
    for draw, lead in enumerate((0.1, 0.2, 0.3)):
        for seed in (0, 1):
            for kind, easy in (("up", 0.0), ("uhp", 0.2)):
                more = {"corruption.seed": draw, "train.seed": seed}
                rows += [row("ce", kind, 0.3 + easy + 0.1 * seed, **more)]
                rows += [row("erat", kind, 0.3 + easy + lead + 0.1 * seed, **more)]
    (table,) = matrix_tables(rows)
    assert table.defenses == ["CE", "ERAT"]
    assert table.cells["ERAT"]["UP"].planned == 6
    # The mean of 10, 20 and 30 points, and 4.303 standard errors of 10 / sqrt(3) each way.
    words = summary_sentences(rows)[2]
    assert "the mean over 3 draws" in words
    assert words.endswith("CE +20.0 [-4.8, +44.8].")


def test_unfinished_runs_enter_no_mean() -> None:
    assert summary_sentences(ROWS)[0] == "Mean over 2 cells: ERAT 92.6, CE 35.0."
    records = list(csv.DictReader(io.StringIO(matrix_text("csv", ROWS))))
    missing = next(record for record in records if record["defense"] == "AT" and record["corruption"] == "UHP")
    assert (missing["planned"], missing["done"], missing["mean"]) == ("1", "0", "")


def test_whatever_else_tells_runs_apart_stands_beside_the_name() -> None:
    rows = [row("erat", "up", 0.9), row("erat", "up", 0.8), row("unicon", "up", 0.7), row("erat", "up", 0.6)]
    set_too: list[dict[str, Any]] = [
        {"defense.eta": 0.3},
        {"corruption.epsilon": 0.05},
        {"model.name": "vgg16"},
        {"defense.norms": "linf"},
    ]
    (table,) = matrix_tables(
        [
            replace(entry, params={**entry.params, **more}, config={**entry.config, **more})
            for entry, more in zip(rows, set_too, strict=True)
        ]
    )
    assert table.defenses == ["ERAT, η 0.3", "ERAT", "UNICON, vgg16", "ERAT∞"]
    assert table.corruptions == ["UP", "UP 0.05"]


def test_a_variant_is_called_by_its_title_however_its_run_was_asked_for() -> None:
    asked = row("erat", "up", 0.9, **{"defense.norms": "linf"})
    asked = replace(asked, params={"defense.name": "erat_inf", "corruption.data": "up"})
    bare = replace(asked, config={})
    assert [line_name(entry) for entry in (asked, bare)] == ["ERAT∞", "ERAT∞"]


# --- compute, draws and further points -------------------------------------------------------------------------------


def test_draws_are_seeds_of_the_corruption_each_with_all_seeds_of_training() -> None:
    only = {"defense": ["ce"], "corruption": ["up"], "noise": ["symmetric"]}
    runs = runs_of("table3", only=only, draws=(0, 2), seeds=(0, 1))
    assert [(run["corruption.seed"], run["train.seed"]) for run in runs] == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert "corruption.seed" not in runs_of("table3", only=only)[0]
    with pytest.raises(UserError, match=r"corruption\.seed is what the grid table3 varies.*--draws"):
        runs_of("table3", only=only, draws=(0,), overrides={"corruption.seed": 1})


def test_further_points_run_only_if_they_are_named() -> None:
    names = ["at_dividemix", "at_unicon", "iss_dividemix", "iss_erat"]
    assert len(runs_of("table3")) == 168
    chosen = runs_of("table3", only={"defense": ["erat", *names], "corruption": ["up"], "noise": ["symmetric"]})
    assert [run["defense.name"] for run in chosen] == ["erat", *names]
    with pytest.raises(UserError, match="unknown point 'at_uni'"):
        runs_of("table3", only={"defense": ["at_uni"]})


def test_runs_of_equal_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has the reference's operations, or the least number of epochs if these are more."""
    costs = {"ce": 3, "erat": 47, "unicon": 94, "at": 17}
    monkeypatch.setattr(
        "orchestration.study.estimate.memory", lambda config: SimpleNamespace(flops=costs[config.defense.name])
    )
    only = {"defense": list(costs), "corruption": ["up"], "noise": ["symmetric"]}
    found = {run["defense.name"]: run["train.epochs"] for run in runs_of("fair3", only=only)}
    assert found == {"ce": round(28 * 47 / 3), "erat": 28, "unicon": 28, "at": round(28 * 47 / 17)}
    with pytest.raises(UserError, match=r"train\.epochs is what the grid fair3 gives each run"):
        runs_of("fair3", only=only, overrides={"train.epochs": 3})


def test_medium_takes_its_own_data_set_in_every_grid() -> None:
    """Only the presets of the paper's sets take what a grid says of these."""
    assert all(run.get("data.name") is None for grid in ("table2", "table4") for run in runs_of(grid, "medium"))
    assert len(runs_of("table2", "medium")) == len(runs_of("table2", "demo"))
