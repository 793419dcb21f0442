"""Tests the tables of a search, of runs of one defense and of a matrix in each format, letter for letter.

The files in `tables/` were written when each table had a writer per format. Three of them have changed since then: the
caption of the grid's LaTeX promised bold and underlined figures that it does not have, its terminal caption lacked a
full stop, and LaTeX's columns are now aligned as in the other formats.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestration.report.documents import grid_text, matrix_text, search_text, study_text
from orchestration.report.grid import grid
from orchestration.report.matrix import matrix
from orchestration.report.page import Subject, html_page
from orchestration.report.render.terminal import terminal
from orchestration.report.summary import summary
from orchestration.report.table import Table
from orchestration.study.spec import Kind
from orchestration.study.trial import Trial
from tests.trials import PLANNED, make_trial

FOLDER = Path(__file__).parent / "tables"
KEYS = ["defense.epsilon_inf", "defense.epsilon_2", "defense.eta"]
NONE: dict[str, Any] = {}


def trial(number: int, settings: tuple[Any, ...], source: str, status: str, epoch: int, **more: Any) -> Trial:
    config = {"val.trusted": False, "val.objective": "perturbed"} | more.pop("config", NONE)
    params = more.pop("params", dict(zip(KEYS, settings, strict=False)))
    return make_trial(number, f"c{number}", params, source, status, epoch=epoch, epochs=10, config=config, **more)


def reached(val: float | None, best: float | None, last: float | None, test: float | None) -> dict[str, float | None]:
    names = ("val_accuracy", "best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy")
    return dict(zip(names, (val, best, last, test), strict=True))


CE = {"defense.name": "ce"}
ERROR = '=HYPERLINK("x")\nRuntimeError: boom, "twice"'
SEARCH = [
    trial(
        0,
        (),
        "baseline",
        "done",
        10,
        params=CE,
        config=CE,
        seconds=61.0,
        mlflow_run_id="r0",
        **reached(0.5, 0.55, 0.51, 0.52),
    ),
    trial(1, (8 / 255, 0.5, 0.1), "paper", "done", 10, seconds=3725.5, **reached(0.9, 1 / 3 + 0.6, 0.88, 0.87)),
    trial(2, (0.0345, 0.123456, 1e-05), "optuna", "stopped", 4, seconds=12.25, **reached(0.8, 0.95, 0.7, None)),
    trial(3, (0.2, 25.0, None), "optuna", "failed", 2, seconds=5.0, error=ERROR),
    trial(4, (float("nan"), float("-inf"), 0.3), "optuna", "running", 3, seconds=9.0, **reached(0.4, 0.41, None, None)),
    make_trial(
        5,
        "c5",
        dict(zip(KEYS, ("a|b", [1, 2], False), strict=True)),
        config={"val.trusted": False, "val.objective": "perturbed"},
    ),
]


def cell(number: int, test: float | None, status: str, **more: Any) -> Trial:
    params = {key.replace("_", ".", 1): value for key, value in more.items()}
    best = None if test is None else round(test + 0.01, 4)
    return make_trial(
        number,
        f"c{number}",
        params,
        "baseline",
        status,
        epoch=0 if status == "queued" else 5,
        epochs=10,
        seconds=60.0 * (number % 3),
        error="RuntimeError: <b>" if status == "failed" else None,
        config={"model.name": "resnet18", "corruption.rate": 0.6 if more["corruption_labels"] != "none" else 0.0}
        | params,
        **reached(test, best, test, best),
    )


def state(defense: str, kind: str, seed: int) -> str:
    if (defense, kind) == ("mspl", "uhp"):
        return "failed"
    return "queued" if (defense, kind, seed) == ("at", "up", 1) else "done"


def matrix_rows() -> list[Trial]:
    rows: list[Trial] = []
    for noise in ("none", "asymmetric"):
        for kind in ("up", "l2c", "uhp"):
            for place, defense in enumerate(("ce", "mspl", "erat", "at")):
                for seed in (0, 1):
                    status = state(defense, kind, seed)
                    test = round(0.3 + 0.15 * place + 0.013 * len(kind) + 0.01 * seed, 4) if status == "done" else None
                    on = {"corruption_data": kind, "corruption_labels": noise, "train_seed": seed}
                    rows.append(cell(len(rows), test, status, defense_name=defense, data_name="cifar10", **on))
    for place, defense in enumerate(("ce", "erat")):
        own = {"data_name": "my_data & more", "corruption_data": "up", "corruption_labels": "symmetric"}
        more = {"train_seed": 0, "defense_eta": 0.3}
        rows.append(cell(len(rows), 0.25 + place / 7, "done", defense_name=defense, **own, **more))
    return rows


MATRIX = matrix_rows()


def shown(*tables: Table) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(*map(terminal, tables), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


MAKERS: dict[str, Callable[[], str]] = {
    "search.md": lambda: search_text("md", SEARCH, KEYS),
    "search.csv": lambda: search_text("csv", SEARCH, KEYS),
    "search.tex": lambda: search_text("latex", SEARCH, KEYS),
    "search.txt": lambda: shown(summary(SEARCH, KEYS)),
    "grid.md": lambda: grid_text("md", PLANNED, []),
    "grid.csv": lambda: grid_text("csv", PLANNED, []),
    "grid.tex": lambda: grid_text("latex", PLANNED, []),
    "grid.txt": lambda: shown(grid(PLANNED)),
    "matrix.md": lambda: matrix_text("md", MATRIX),
    "matrix.csv": lambda: matrix_text("csv", MATRIX),
    "matrix.tex": lambda: matrix_text("latex", MATRIX),
    "matrix.txt": lambda: shown(*matrix(MATRIX)),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_letter_for_letter(name: str) -> None:
    assert MAKERS[name]() == (FOLDER / name).read_bytes().decode()


class Tables(HTMLParser):
    """The tables of a page: their captions, and per row its cells as [runs that it opens, text with its marks]."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            given = dict(attrs)
            self.rows[-1].append([" ".join((given.get("data-runs") or "").split()), ""])
            self.inside = tag
        elif tag == "caption":
            self.inside = tag
            self.captions.append("")
        elif self.inside in ("th", "td") and tag in ("b", "u", "sup"):
            self.rows[-1][-1][1] += f"<{tag}>"

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "caption":
            self.captions[-1] += data
        elif self.inside:
            self.rows[-1][-1][1] += data


def page(rows: list[Trial], columns: list[str], searched: bool) -> str:
    return html_page(
        Subject(
            name="mine",
            about="about",
            rows=rows,
            facts=[("a", "b")],
            counts={"done": 1},
            columns=columns,
            searched=searched,
            search="tags.sweep = 'mine'",
            detail=lambda row, pool: {"id": row.cell},
        )
    )


@pytest.mark.parametrize(("name", "columns"), [("search", KEYS), ("matrix", ["defense.name"])])
def test_the_tables_of_a_page_cell_by_cell(name: str, columns: list[str]) -> None:
    made = Tables(page(SEARCH if name == "search" else MATRIX, columns, name == "search"))
    lines = [*made.captions, *(" | ".join(": ".join(filter(None, one)) for one in row) for row in made.rows)]
    text = re.sub(r"[^\S\n]+", " ", "\n".join(lines)) + "\n"
    assert text == (FOLDER / f"{name}.html.txt").read_text()


@pytest.mark.parametrize(("kind", "name"), [("search", "search"), ("list", "grid"), ("matrix", "matrix")])
def test_a_remark_stands_beside_all_figures(kind: Kind, name: str) -> None:
    rows = {"search": SEARCH, "list": PLANNED, "matrix": MATRIX}[kind]
    columns = KEYS if kind == "search" else []
    plain = {form: study_text(kind, form, rows, columns) for form in ("md", "csv", "latex")}
    for form, suffix in (("md", "md"), ("csv", "csv"), ("latex", "tex")):
        assert plain[form] == MAKERS[f"{name}.{suffix}"](), "the kind of a study decides on its tables"
    assert study_text(kind, "md", rows, columns, "a, b") == plain["md"] + "\na, b\n"
    assert study_text(kind, "latex", rows, columns, "a, b") == "% a, b\n" + plain["latex"]
    head, *lines = csv.reader(io.StringIO(study_text(kind, "csv", rows, columns, "a, b")))
    assert [head[-1], *(line[-1] for line in lines)] == ["note", *["a, b"] * len(lines)]
    assert [head[:-1], *(line[:-1] for line in lines)] == list(csv.reader(io.StringIO(plain["csv"])))
