"""Tests that a coupling is named wherever its corruption is: tags, runs, tables and crafted sets."""

from __future__ import annotations

from typing import Any

import pytest

from erat.config import RunConfig, build
from orchestration.crafting.sets import distinct_sets, set_name
from orchestration.report.grid import column_name
from orchestration.report.matrix import matrix_tables
from orchestration.report.trends import trends_of
from orchestration.study.grids import load_grid, specification
from orchestration.study.trial import Trial
from orchestration.tracking.text import child_tags, run_name


def coupled(coupling: str, **keys: Any) -> RunConfig:
    given = {"corruption.coupling": coupling, "corruption.rate": 0.4, "corruption.seed": 0}
    return build("demo", given | {f"corruption.{key}": value for key, value in keys.items()})


@pytest.mark.parametrize(
    ("config", "tag", "run", "column", "name"),
    [
        (coupled("independent"), None, "uhp+symmetric40%", "symmetric 0.4", "uhp l2 1.25"),
        (
            coupled("labels_first"),
            "labels_first",
            "uhp+symmetric40%+labels_first",
            "labels_first symmetric 0.4",
            "uhp l2 1.25 labels_first",
        ),
        (coupled("annotator"), "annotator", "uhp+annotator40%", "annotator 0.4", "uhp l2 1.25 annotator"),
        (coupled("bound"), "bound", "uhp+bound40%", "bound 0.4", "uhp l2 1.25 bound"),
        (
            coupled("overlap", share=0.5, overlap=0.25),
            "overlap 0.25",
            "uhp+symmetric40%+overlap 0.25",
            "overlap 0.25 symmetric 0.4",
            "uhp l2 1.25",
        ),
    ],
    ids=["independent", "labels_first", "annotator", "bound", "overlap"],
)
def test_names(config: RunConfig, tag: str | None, run: str, column: str, name: str) -> None:
    flat = config.flat()
    assert child_tags(flat).get("coupling") == tag
    assert f" {run} " in run_name(flat)
    assert column_name(Trial(0, "", {}, config=flat)) == column
    assert set_name(config) == name


def test_sets_that_differ_in_what_is_chosen_are_one_set() -> None:
    chosen = [coupled("independent", share=share) for share in (0.5, 1)]
    chosen += [coupled("overlap", share=0.5, overlap=overlap) for overlap in (0.25, 1)]
    assert len(distinct_sets(chosen)) == 1
    assert len(distinct_sets([coupled("annotator", share=share) for share in (0.5, 1)])) == 2, "it sees which"
    assert len(distinct_sets([*chosen, coupled("labels_first"), coupled("bound")])) == 3


def test_the_grid_has_a_table_for_each_coupling_and_no_figure_of_them() -> None:
    spec = specification(load_grid("coupled"), "demo", {}, only={"corruption": ["urp"], "defense": ["ce", "erat"]})
    configs = [spec.config(run).flat() for run in spec.runs]
    rows = [
        Trial(number, f"{number}", dict(run), config=config)
        for number, (run, config) in enumerate(zip(spec.runs, configs, strict=True))
    ]
    tables = matrix_tables(rows)
    assert tables[0].defenses == ["CE", "ERAT", "CE, share 0.5", "ERAT, share 0.5"]
    assert tables[1].defenses == ["CE", "ERAT"]
    assert [table.noise for table in tables] == [
        "symmetric 0.4",
        "labels_first symmetric 0.4",
        "annotator 0.4",
        "bound 0.4",
        "overlap 0 symmetric 0.4",
        "overlap 1 symmetric 0.4",
    ]
    assert trends_of(rows) == []
