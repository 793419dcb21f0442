"""Tests reports: what the page says of finished and unfinished runs, that it stands alone, and the other formats."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from erat.errors import UserError
from orchestration.cli import app
from orchestration.report import importance
from orchestration.report.detail import Pool, detail_of
from orchestration.report.document import write_report
from orchestration.report.errata import RECONSTRUCTION, Footnotes
from orchestration.report.render.latex import escape, latex
from orchestration.report.sections import groups_of
from orchestration.report.table import Table
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace
from orchestration.study.grids import load_grid, specification
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec
from orchestration.study.trial import Trial
from tests.synthetic import write_workspace
from tests.trials import make_trial, with_result

ROOT = Path(__file__).parents[4]
VOID = {"meta", "link", "input", "br", "hr"}


def grid(preset: str = "demo", grid_name: str = "table3", **choice: Any) -> StudySpec:
    overrides = choice.pop("overrides", {})
    return specification(load_grid(grid_name), preset, overrides, **choice)


def with_states(spec: StudySpec, states: dict[int, str]) -> list[tuple[dict[str, Any], str, str]]:
    """Return the spec's runs, done unless another state is given; "absent" runs are not proposed."""
    runs = [(entry, "baseline", states.get(number, "done")) for number, entry in enumerate(spec.runs)]
    return [run for run in runs if run[2] != "absent"]


@pytest.fixture(scope="module")
def make_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def make(spec: StudySpec, states: dict[int, str] | None = None, form: str = "html") -> str:
        workspace = Workspace(tmp_path_factory.mktemp("workspace"))
        write_workspace(workspace, "mine", spec, with_states(spec, states or {}))
        return write_report(workspace, "mine", form, None).read_text()

    return make


@pytest.fixture(scope="module")
def small(make_page: Callable[..., str]) -> str:
    """Make a page of three defenses on two corruptions: one run failed, one is interrupted, one has not begun."""
    spec = grid(only={"defense": ["ce", "mspl", "erat"], "corruption": ["up", "uhp"], "noise": ["symmetric"]})
    return make_page(spec, {1: "failed", 4: "interrupted", 5: "absent"})


@pytest.fixture(scope="module")
def whole(make_page: Callable[..., str]) -> str:
    """Make a page of Table III with all of its 168 runs, on the paper's data set."""
    return make_page(grid("paper"), {})


class Outline(HTMLParser):
    """A parser that checks the nesting of elements and collects ids, addresses and headers without a scope."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.unscoped = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []  # type: ignore[list-item]
        self.links += [str(given[key]) for key in ("src", "href", "xlink:href", "action", "data") if given.get(key)]
        self.unscoped += tag == "th" and "scope" not in given
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    content: dict[str, Any] = json.loads(match[1])
    return content


def specs_of(page: str) -> dict[str, Any]:
    """Return the specifications of the figures of a page."""
    match = re.search(r'<script type="application/json" id="drawings">(.*?)</script>', page, re.DOTALL)
    assert match
    content: dict[str, Any] = json.loads(match[1])["figures"]
    return content


def table_of(page: str) -> str:
    return page[page.index('<table class="matrix">') : page.index("</table>")]


# --- the page of a matrix --------------------------------------------------------------------------------------------


def test_the_page_says_what_was_run_and_who_wins(small: str) -> None:
    for words in ("3 done", "1 failed", "1 interrupted", "1 not begun", "symmetric 0.6 label noise"):
        assert words in small
    assert "Too few cells are finished" in small
    assert "cccccccccccc" in small and "2023-11-14" in small


def test_unfinished_runs_have_no_figure_and_say_why(small: str) -> None:
    table = table_of(small)
    for words in ("failed", "interrupted 5/16", "not begun"):
        assert f'<span class="why">{words}' in table
    missing = small[small.index('<section id="missing">') :]
    assert "RuntimeError: the loss &lt;left&gt; the finite numbers &amp; more" in missing
    assert "python orchestrate.py retry mine" in missing
    assert "python orchestrate.py resume mine" in missing


def test_a_reconstruction_is_called_one_wherever_it_is_shown(small: str) -> None:
    assert re.search(r'MSPL<sup><a href="#note-1"', table_of(small))
    assert RECONSTRUCTION in small.replace("&#39;", "'")


def test_the_page_loads_nothing(whole: str, small: str) -> None:
    for page in (whole, small):
        assert all(link.startswith(("#", "data:,")) for link in Outline(page).links)
        assert not re.search(r"@import|url\((?!#)|<iframe|<img|<script src|fetch\(|XMLHttpRequest", page)


def test_the_page_is_well_formed_and_accessible(whole: str) -> None:
    outline = Outline(whole)
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.unscoped == 0
    assert whole.count("<table") == whole.count("<caption")
    drawings = re.findall(r'<div class="drawing"[^>]*>', whole)
    assert drawings
    assert all(re.search(r'role="img" aria-label="[^"]{20,}"', drawing) for drawing in drawings)


def test_168_runs_stay_below_5_mb_and_all_can_be_opened(whole: str) -> None:
    assert len(whole.encode()) < 2_000_000
    assert len(data_of(whole)["cells"]) == 168


def test_the_whole_table_has_a_winner_and_a_test(whole: str) -> None:
    assert re.search(r'class="lead">ERAT is best in \d+ of 21 cells', whole)
    assert "One draw of the corruption has no interval" in whole
    curves = [spec for name, spec in specs_of(whole).items() if name.startswith("curves")]
    assert [len(spec["layer"][0]["data"]["values"]) for spec in curves] == [8, 8, 8], "eight under each of three noises"


def test_the_paper_and_its_errata_stand_beside_ours(whole: str, small: str) -> None:
    assert re.search(r'class="paper"[^>]*>75.16<sup>', whole)
    assert "75.16 in the paper&#39;s Table III and 75.31 in Table VI" in whole
    assert "headline gains" in whole
    assert 'class="paper"' not in small and "headline gains" not in small
    assert re.search(r'class="best"[^>]*>\d\d\.\d', whole)


def test_a_drill_down_has_all_that_reproduces_a_run(small: str) -> None:
    data = data_of(small)
    cell = next(cell for cell in data["cells"] if cell["t"][2] == "ERAT")
    assert cell["cmd"].startswith("python orchestrate.py train --preset demo")
    assert "defense.name=erat" in cell["cmd"] and cell["sum"] == "ab" * 32 and cell["run"].startswith("run")
    assert [len(curve) for curve in cell["curves"]] == [16, 16, 16]
    assert list(cell["terms"]) == ["label", "consistency"] and cell["terms"]["label"][:2] == [2.18, 1.09]
    assert cell["terms"]["consistency"] == [0.1] * 16 and cell["numbers"] == {"lambda_u": 25.0, "label_trust": 0.7123}
    assert len(cell["selection"]) == 4 and len(cell["confusion"]) == 10
    config = dict(data["pool"][number] for number in cell["config"])
    assert config["train"]["epochs"] == 16 and config["corruption"]["data"] == "up"
    assert data["pool"][cell["env"]]["git_commit"] == "c" * 40
    failed = next(cell for cell in data["cells"] if cell["state"] == "failed")
    assert "<left>" in failed["error"] and "<left>" not in small


def test_a_drill_down_of_epochs_that_lack_terms_and_numbers(tmp_path: Path) -> None:
    """Epochs may lack terms and numbers, have numbers that end or values that are none, or come from older versions."""
    base = {"val_accuracy": 0.5, "test_accuracy": 0.5, "epoch_seconds": 1.0}
    more = [
        {"loss_terms": {"warmup": 2.34567}, "numbers": {"early": 1}},
        {"loss_terms": {"labelled": 1.5, "gone": None}, "numbers": {"rate": float("inf")}},
    ]
    row = run("erat", "up", 0.5)
    directory = RunDirectory(Workspace(tmp_path), row.cell)
    directory.path.mkdir(parents=True)
    for extra in (more, [{}, {}], [{"loss_terms": {}, "numbers": {}}] * 2):
        lines = [json.dumps({"epoch": number + 1} | base | entry) for number, entry in enumerate(extra)]
        (directory.path / "metrics.jsonl").write_text("\n".join(lines))
        content = detail_of(row, directory, "", Pool())
        assert content["curves"][2] == [0.5, 0.5]
        if extra is not more:
            assert "terms" not in content and "numbers" not in content
            continue
        assert content["terms"] == {"warmup": [2.35, None], "labelled": [None, 1.5], "gone": [None, None]}
        assert content["numbers"] == {"early": 1}


def test_a_command_leaves_out_what_was_meant_for_another_defense(make_page: Callable[..., str]) -> None:
    spec = grid(
        only={"defense": ["ce", "erat"], "corruption": ["up"], "noise": ["symmetric"]},
        overrides={"defense.eta": 0.3, "train.epochs": 4},
    )
    commands = {cell["t"][2]: cell["cmd"] for cell in data_of(make_page(spec))["cells"]}
    assert "defense.eta=0.3" in commands["ERAT"]
    assert "eta" not in commands["CE"] and "train.epochs=4" in commands["CE"]


def test_more_runs_than_fit_are_said_to_be_left_out(
    make_page: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.report.page.MOST_BYTES", 60_000)
    page = make_page(grid(seeds=(0, 1), only={"noise": ["symmetric"]}), {90: "failed"})
    kept = data_of(page)["cells"]
    assert 5 < len(kept) < 60 and {cell["t"][5] for cell in kept if cell["state"] == "done"} == {0}
    assert any(cell["state"] == "failed" for cell in kept)
    assert f"{len(kept)} of 112 runs are shown here: so many fit" in page


# --- sections --------------------------------------------------------------------------------------------------------


def run(defense: str, kind: str, accuracy: float | None, **config: Any) -> Trial:
    params = {"defense.name": defense, "corruption.data": kind, **config}
    fixed = {"data.name": "mnist", "corruption.labels": "symmetric", "corruption.rate": 0.6, "model.name": "small"}
    status = "queued" if accuracy is None else "done"
    known = fixed | params | config
    return make_trial(0, defense + kind, params, status=status, final_test_accuracy=accuracy, config=known)


def test_only_what_all_defenses_have_finished_is_compared() -> None:
    rows = [run("ce", "up", 0.3), run("ce", "uhp", 0.9), run("erat", "up", 0.8), run("erat", "uhp", None)]
    (group,) = groups_of(rows, Footnotes())
    assert group.sentences[0] == "ERAT is best in 1 of 1 cells, and in the mean 50.0 points ahead of CE."
    assert group.sentences[1].startswith("So far all defenses have finished 1 of 2 settings")
    assert group.sentences[-1] == "mnist, symmetric 0.6 label noise: ERAT on UP."


def test_what_is_no_axis_of_the_tables_makes_groups_and_seeds_do_not() -> None:
    rows = [
        run(name, "up", 0.5, **{"model.name": net, "train.seed": seed})
        for net in ("resnet34", "vgg11")
        for name in ("ce", "erat")
        for seed in (0, 1)
    ]
    groups = groups_of(rows, Footnotes())
    assert [group.title for group in groups] == ["network ResNet34", "network VGG11"]
    assert [cell.last.planned for group in groups for cell in group.tables[0].lines["CE"]] == [2, 2]


def test_adversarial_training_in_two_norms_is_two_defenses(make_page: Callable[..., str]) -> None:
    page = make_page(grid("paper", "table1"))
    assert "AT∞</th>" in page and "AT2</th>" in page
    assert "78.63" in page, "Table I of the paper, AT_inf on L2C"


# --- a search --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    spec, workspace = StudySpec(load_space("joint"), "demo", {}), Workspace(tmp_path_factory.mktemp("search"))
    ranges = spec.space.distributions("mnist")
    points: list[dict[str, Any]] = [
        {
            key: range_.low + (range_.high - range_.low) * ((7 * step + 3 * place) % 11 + 1) / 13
            for place, (key, range_) in enumerate(ranges.items())
        }
        for step in range(12)
    ]
    write_workspace(workspace, "mine", spec, [(point, "optuna", "done") for point in points], trials=14)
    return workspace


def test_a_search_has_its_table_figures_importance_and_contours(search: Workspace) -> None:
    Ledger(search.ledger).append("place", sweep="mine", where="GPU 3 of node 10.0.0.7 (abcdef)", out="3 trials died")
    page = write_report(search, "mine", "html", None).read_text()
    for words in (
        "Importance of each setting",
        "Each line is a trial",
        "Validation accuracy over",
        "<h1>mine on mnist</h1>",
        "Best by validation",
        "GPU 3 of node 10.0.0.7 (abcdef), because 3 trials died",
    ):
        assert words in page
    assert "12 is missing" not in page and "eight pairs of budgets and seven labels" in page
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith(("#", "data:,")) for link in outline.links)
    assert "<metadata" not in page and "2 not begun" in page


def test_importance_finds_the_setting_that_matters() -> None:
    ranges = load_space("joint").distributions("mnist")
    settings = [
        {key: r.low + (r.high - r.low) * ((n * (3 + place)) % 17) / 17 for place, (key, r) in enumerate(ranges.items())}
        for n in range(17)
    ]
    rows = [
        make_trial(n, str(n), params, status="done", best_val_accuracy=0.9 - 0.5 * params["defense.eta"])
        for n, params in enumerate(settings)
    ]
    assert next(iter(importance.importances(rows, ranges))) == "defense.eta"
    assert importance.importances([with_result(row, best_val_accuracy=0.9) for row in rows], ranges) == {}


# --- other formats ---------------------------------------------------------------------------------------------------


def test_latex_is_escaped_and_marks_the_best(make_page: Callable[..., str]) -> None:
    spec = grid("paper", only={"noise": ["asymmetric"], "corruption": ["up", "aa"]})
    text = make_page(spec, {1: "failed"}, form="latex")
    assert r"\providecommand{\toprule}{\hline}" in text
    assert re.search(r"ERAT & \\textbf\{[\d.]+\} \[75\.16\]|ERAT & \\textbf\{[\d.]+\} \[75\.2\]", text)
    assert re.search(r"MSPL & \\underline\{", text)
    assert re.search(r"\nAT & failed & ", text)
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]
    assert {line.replace(r"\&", "").count("&") for line in body} == {3}
    for pair in (("{", "}"), (r"\begin{table}", r"\end{table}"), (r"\begin{tabular}", r"\end{tabular}")):
        assert text.count(pair[0]) == text.count(pair[1])


def test_any_text_is_safe_in_latex() -> None:
    assert escape(r"a_b & 50% #1 {x} \y ~ ^ $") == (
        r"a\_b \& 50\% \#1 \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \$"
    )
    assert r"\caption{1 $\pm$ 2}" in latex(Table.of(["a"], [["b"]], caption="1 ± 2"))


def test_csv_has_every_run(make_page: Callable[..., str]) -> None:
    records = list(csv.DictReader(make_page(grid("paper"), {3: "failed"}, form="csv").splitlines()))
    assert len(records) == 168 and sum(record["mean"] == "" for record in records) == 1


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_where_it_is_told(
    search: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERAT_HOME", str(search.root))
    for form, start in (("md", "| # | source"), ("csv", "number,cell"), ("latex", "% Needs no package")):
        file = tmp_path / "new" / f"file.{form}"
        done = CliRunner().invoke(app, ["report", "mine", "--format", form, "--out", str(file), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout.splitlines()[-1]) == {"name": "mine", "format": form, "files": [str(file)]}
        assert file.read_text().startswith(start)


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("mien", "html", "unknown sweep 'mien': did you mean mine?"),
        ("mine", "htlm", "unknown format 'htlm': did you mean html?"),
    ],
)
def test_a_wrong_name_is_one_line(search: Workspace, name: str, form: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        write_report(search, name, form, None)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_line(search: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .* cannot be written: "):
        write_report(search, "mine", "csv", str(tmp_path / "file" / "report.csv"))


@pytest.mark.slow
def test_ten_thousand_runs_take_little_memory_and_time_in_proportion(tmp_path: Path) -> None:
    """Report 1,008 and 10,080 runs; what grows with the square of their number would take a hundred times as long."""
    few, many = (reported(tmp_path / str(seeds), seeds) for seeds in (6, 60))
    assert many.seconds < 15 * few.seconds
    assert many.kilobytes < 1.5e6
    assert many.page.stat().st_size < 5e6


class Reported(NamedTuple):
    """What the command `report` took: seconds of processor, largest memory; and the page that it wrote."""

    seconds: float
    kilobytes: int
    page: Path


def reported(root: Path, seeds: int) -> Reported:
    """Write a workspace with so many seeds of every cell, and report it in a process of its own."""
    spec = grid(seeds=range(seeds))
    write_workspace(Workspace(root), "many", spec, with_states(spec, {5: "failed"}))
    # Not what the system reports of an ended child: that counts the memory of the process from which it was forked.
    script = (
        "import atexit, runpy, sys, time; sys.argv[1:] = ['report', 'many']\n"
        "atexit.register(lambda: print(next(line for line in open('/proc/self/status') if 'VmHWM' in line)))\n"
        "atexit.register(lambda: print('seconds', time.process_time()))\n"
        f"runpy.run_path({str(ROOT / 'orchestrate.py')!r}, run_name='__main__')"
    )
    environment = os.environ | {"ERAT_HOME": str(root), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, text=True, stdout=subprocess.PIPE
    )
    *_, seconds, _, kilobytes, _ = done.stdout.split()
    return Reported(float(seconds), int(kilobytes), root / "reports" / "many" / "report.html")
