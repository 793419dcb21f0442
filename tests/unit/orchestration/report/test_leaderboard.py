"""Tests the leaderboard: what is ranked together, what counts, what stands beside it, and its page."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from erat.config import build
from erat.errors import UserError
from orchestration.cli import app
from orchestration.report.boards import Board, boards_of
from orchestration.report.leaderboard import seeds_words, write_leaderboard
from orchestration.report.printed import printed
from orchestration.run.directory import RunDirectory
from orchestration.storage.workspace import Workspace
from orchestration.study.given import keys_given
from orchestration.study.grids import load_grid, specification
from orchestration.study.ledger import Ledger
from orchestration.study.overrides import parse_overrides
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec
from tests.synthetic import write_workspace
from tests.unit.orchestration.report.test_page import Outline

ONLY = {"defense": ["ce", "mspl", "erat"], "corruption": ["up", "uhp"], "noise": ["symmetric"]}
FINGERPRINT = "00112233aabbccdd"


def grid(
    preset: str = "demo", name: str = "table3", overrides: dict[str, Any] | None = None, **choice: Any
) -> StudySpec:
    return specification(load_grid(name), preset, overrides or {}, **({"only": ONLY} | choice))


def done(spec: StudySpec) -> list[tuple[dict[str, Any], str, str]]:
    return [(entry, "baseline", "done") for entry in spec.runs]


def filled(folder: Path, **studies: StudySpec) -> Workspace:
    """Return a workspace in which all listed runs of these studies are done."""
    workspace, lines = Workspace(folder), ""
    for name, spec in studies.items():
        write_workspace(workspace, name, spec, done(spec))
        lines += workspace.ledger.read_text()
    workspace.ledger.write_text(lines)
    return workspace


def boards(workspace: Workspace, *names: str) -> list[Board]:
    return boards_of(workspace, Ledger(workspace.ledger), names)[0]


def rewrite(workspace: Workspace, change: Any) -> None:
    """Let `change` alter each event of the ledger."""
    events = [json.loads(line) for line in workspace.ledger.read_text().splitlines()]
    for event in events:
        change(event)
    workspace.ledger.write_text("".join(json.dumps(event) + "\n" for event in events))


# --- what is ranked together -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Make a workspace of studies that differ in what must not be mixed."""
    return filled(
        tmp_path_factory.mktemp("many"),
        plain=grid(seeds=[0, 1]),
        again=grid(seeds=[1, 2]),
        longer=grid(overrides={"train.epochs": 20}),
        wider=grid(overrides={"model.name": "medium"}),
        fewer=grid(overrides={"data.limit": 500}),
        rate=grid(overrides={"train.lr": 0.05}),
        stronger=grid(overrides={"corruption.epsilon": 0.25}),
        before=replace(grid(only=ONLY | {"defense": ["ce", "at"]}), edition=1),
    )


def test_nothing_that_cannot_be_compared_is_in_one_ranking(many: Workspace) -> None:
    found = boards(many)
    assert len(found) == 6
    for board in found:
        for ranking in board.rankings:
            common = [
                {k: v for k, v in run.config.identity().items() if not k.startswith("defense.") and "seed" not in k}
                for line in ranking.lines
                for run in line.runs
            ]
            assert all(each == common[0] for each in common)
            for line in ranking.lines:
                options = [{k: v for k, v in run.config.flat().items() if "defense." in k} for run in line.runs]
                assert all(each == options[0] for each in options)
                assert {board.edition} <= set.intersection(*(run.editions for run in line.runs))


def test_every_board_and_ranking_says_what_it_is(many: Workspace) -> None:
    found = boards(many)
    assert sorted((board.title, board.edition) for board in found) == [
        ("mnist, medium, 16 epochs", 2),
        ("mnist, small, 16 epochs", 1),
        ("mnist, small, 16 epochs", 2),
        ("mnist, small, 16 epochs, data.limit 500", 2),
        ("mnist, small, 16 epochs, train.lr 0.05", 2),
        ("mnist, small, 20 epochs", 2),
    ]
    plain = next(board for board in found if board.title == "mnist, small, 16 epochs" and board.edition == 2)
    assert [ranking.title for ranking in plain.rankings] == [
        "UP, linf 0.1; symmetric 0.6 label noise",
        "UP, linf 0.25; symmetric 0.6 label noise",
        "UHP, l2 0.25; symmetric 0.6 label noise",
        "UHP, l2 1.25; symmetric 0.6 label noise",
    ]


def test_studies_that_share_runs_make_one_line(many: Workspace) -> None:
    plain = next(board for board in boards(many, "plain", "again"))
    for line in plain.rankings[0].lines:
        assert [run.seeds for run in line.runs] == [(0, 0), (0, 1), (0, 2)]
        assert [run.studies for run in line.runs] == [["plain"], ["plain", "again"], ["again"]]
        assert seeds_words(line) == "0-2"


def test_lines_have_the_mean_the_spread_and_the_number_of_their_runs(tmp_path: Path) -> None:
    spec = grid(only=ONLY | {"defense": ["ce", "erat", "mspl"], "corruption": ["up"]}, seeds=[0, 1])
    workspace = filled(tmp_path, mine=spec)
    reached = {"ce": (0.50, 0.54), "erat": (0.90, 0.96), "mspl": (0.91, 0.95)}
    cells = {spec.config(run).digest(): reached[run["defense.name"]][run["train.seed"]] for run in spec.runs}

    def change(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            event["result"] |= {
                "final_test_accuracy": cells[event["cell"]],
                "train_seconds": 100 * cells[event["cell"]],
            }

    rewrite(workspace, change)
    path, content = write_leaderboard(workspace)
    ranking = content["boards"][0]["rankings"][0]
    told = [(line["place"], line["defense"], line["n"]) for line in ranking["lines"]]
    assert told == [(1, "ERAT", 2), (1, "MSPL", 2), (3, "CE", 2)]  # means that print alike share a place
    first, _, last = ranking["lines"]
    assert first["mean"] == pytest.approx(0.93) and first["spread"] == pytest.approx(0.06 / 2**0.5)
    assert last["train_seconds"] == pytest.approx(52)
    assert ranking["verdict"].endswith("one draw of the corruption: how sure that is cannot be told.")
    assert '<b>93.0</b><span class="spread"> ± 4.2</span>' in path.read_text()


def test_a_lead_within_noise_is_called_so_and_so_is_one_that_is_not(tmp_path: Path) -> None:
    spec = grid(only=ONLY | {"defense": ["ce", "erat"], "corruption": ["up"]}, draws=[0, 1, 2])
    for leads, said in ((0.3, "95% interval +29.8 to +30.2."), (0.001, "within noise.")):
        workspace = filled(tmp_path / str(leads), mine=spec)
        cells = {}
        for run in spec.runs:
            draw = run["corruption.seed"]
            wiggle = (0.001, 0.0, -0.001)[draw] if run["defense.name"] == "erat" else 0.0
            cells[spec.config(run).digest()] = 0.5 + wiggle + leads * (run["defense.name"] == "erat")

        def change(event: dict[str, Any], cells: dict[str, float] = cells) -> None:
            if event["event"] == "done":
                event["result"]["final_test_accuracy"] = cells[event["cell"]]

        rewrite(workspace, change)
        assert write_leaderboard(workspace)[1]["boards"][0]["rankings"][0]["verdict"].endswith(said)


def test_no_defense_leads_at_chance_level(tmp_path: Path) -> None:
    workspace = filled(tmp_path, mine=grid())

    def change(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            event["result"]["final_test_accuracy"] = 0.11

    rewrite(workspace, change)
    path, content = write_leaderboard(workspace)
    assert {ranking["verdict"] for ranking in content["boards"][0]["rankings"]} == {
        "No defense is above chance, 10.0 %."
    }
    assert "<b>11.0</b>" not in path.read_text()


# --- what counts -----------------------------------------------------------------------------------------------------


def test_only_runs_that_are_done_count(tmp_path: Path) -> None:
    spec, workspace = grid(), Workspace(tmp_path)
    states = ["failed", "interrupted", "done", "proposed", "failed", "interrupted"]
    write_workspace(workspace, "mine", spec, [(run, "baseline", to) for run, to in zip(spec.runs, states, strict=True)])
    (board,) = boards(workspace)
    assert [run.config.digest() for run in board.runs] == [spec.config(spec.runs[2]).digest()]


def test_of_a_search_only_what_validation_chose_counts(tmp_path: Path) -> None:
    spec, workspace = StudySpec(load_space("eta"), "demo", {}), Workspace(tmp_path)
    points = [("baseline", run) for run in spec.runs] + [("paper", point) for point in spec.points]
    cells = write_workspace(workspace, "eta", spec, [(point, source, "done") for source, point in points], 9)
    listed, chosen = len(spec.runs), cells[-2]
    assert len(spec.points) > 2

    def change(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            others = cells.index(event["cell"])
            validated = 0.99 if event["cell"] == chosen else 0.5
            event["result"] |= {"best_val_accuracy": validated, "final_test_accuracy": 0.6 + 0.01 * others}

    rewrite(workspace, change)
    found = [run for board in boards(workspace) for run in board.runs]
    assert {run.result.cell for run in found} == {chosen, *cells[:listed]}
    assert {run.result.cell for run in found if run.chosen == ["eta"]} == {chosen}
    assert "chosen by validation" in write_leaderboard(workspace)[0].read_text()


def test_runs_outside_any_study_count_unless_their_configuration_is_lost(tmp_path: Path) -> None:
    workspace = filled(tmp_path, mine=grid())
    ledger = Ledger(workspace.ledger)
    result = next(iter(ledger.done().values()))
    for name in ("dat", "unicon"):
        config = build("demo", {"defense.name": name, "corruption.data": "up", "data.fingerprint": FINGERPRINT})
        RunDirectory(workspace, config.digest()).prepare()
        RunDirectory(workspace, config.digest()).begin(config)
        ledger.finish(replace(result, cell=config.digest()), sweep=None)
    (RunDirectory(workspace, config.digest()).path / "config.json").write_text("{")
    found, unread = boards_of(workspace, ledger)
    assert unread == 1
    # other images than those of the study, so a board of its own
    assert [[line.name for line in board.rankings[0].lines] for board in found if len(board.runs) == 1] == [["DAT"]]
    assert f"data.fingerprint {FINGERPRINT}" in {board.more for board in found}
    assert boards_of(workspace, ledger, ["mine"])[1] == 0


def test_nothing_finished_and_unknown_names_are_errors_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a leaderboard needs a run that is done, got none in"):
        write_leaderboard(Workspace(tmp_path))
    workspace = filled(tmp_path, mine=grid())
    with pytest.raises(UserError, match="unknown sweep 'mime': did you mean mine"):
        write_leaderboard(workspace, ["mime"])
    with pytest.raises(UserError, match=r"--out .* cannot be written"):
        write_leaderboard(workspace, out=str(workspace.ledger / "board.html"))


def test_a_damaged_study_is_left_out_with_a_warning(tmp_path: Path) -> None:
    workspace = filled(tmp_path, mine=grid(), other=grid(overrides={"train.epochs": 20}))

    def change(event: dict[str, Any]) -> None:
        if event["event"] == "sweep" and event["name"] == "other":
            event["spec"]["preset"] = "nothing"

    rewrite(workspace, change)
    with pytest.warns(UserWarning, match="other is left out"):
        assert [board.title for board in boards(workspace)] == ["mnist, small, 16 epochs"]


# --- the command of a line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "preset"), [("table6", "demo"), ("table3", "paper"), ("table1", "medium")])
def test_a_command_makes_the_run_again(name: str, preset: str, tmp_path: Path) -> None:
    root = {} if preset == "demo" else {"data.root": "/data"}
    only = (
        {"corruption": ["up", "uhp"]} if name == "table1" else {"corruption": ["l2c", "uhp"], "noise": ["asymmetric"]}
    )
    spec = grid(preset, name, root, only=only, seeds=[3])
    check_commands(filled(tmp_path, mine=spec), len(spec.runs))


def test_a_command_makes_a_run_of_an_earlier_edition_again(tmp_path: Path) -> None:
    spec = replace(grid(only={"corruption": ["l2c"], "noise": ["asymmetric"]}), edition=1)
    workspace = filled(tmp_path, mine=spec)
    check_commands(workspace, len(spec.runs))
    names = {line.name for board in boards(workspace) for ranking in board.rankings for line in ranking.lines}
    assert "AT, warmup_epochs 0, epsilon_ramp 0" in names


def check_commands(workspace: Workspace, count: int) -> None:
    checked = 0
    for board in boards(workspace):
        for line in (line for ranking in board.rankings for line in ranking.lines):
            for run in line.runs:
                command = line.command(run)
                assert command is not None and "/data" not in command
                words = shlex.split(command)
                assert words[:4] == ["python", "orchestrate.py", "train", "--preset"]
                made = build(words[4], parse_overrides(words[5:]), quiet=True).identity()
                wanted = run.config.identity()
                assert made.pop("data.fingerprint", None) is wanted.pop("data.fingerprint", None)
                assert made == wanted
                checked += 1
    assert checked == count


def test_keys_of_settings_that_do_not_fit_one_by_one_are_all_given() -> None:
    given = {"defense.warmup_epochs": 1, "train.epochs": 2, "corruption.data": "urp", "corruption.norm": "linf"}
    config = build("demo", given, quiet=True)
    found = keys_given(config)
    assert found is not None
    assert build("demo", found, quiet=True).identity() == config.identity()
    assert keys_given(build("demo", {}, quiet=True)) == {}


# --- the paper's figures ---------------------------------------------------------------------------------------------


def test_the_papers_figure_stands_beside_its_own_setting_only(tmp_path: Path) -> None:
    spec = grid("paper", overrides={"data.root": "/data"})

    def other(key: str, setting: Any, only: dict[str, Any] = ONLY) -> StudySpec:
        return grid("paper", overrides={"data.root": "/data", key: setting}, only=only)

    workspace = filled(
        tmp_path,
        same=spec,
        shorter=other("train.epochs", 50),
        smaller=other("model.name", "resnet18"),
        weaker=other("corruption.epsilon", 0.01),
        cleaner=other("corruption.share", 0.8),
        tuned=other("defense.weak", "crop", ONLY | {"defense": ["erat"]}),
    )
    found = {
        run.result.cell: figure.test_accuracy
        for board in boards(workspace)
        for ranking in board.rankings
        for line in ranking.lines
        for run in line.runs
        if (figure := printed(board, ranking, line)) is not None
    }
    assert found.keys() == {spec.config(run).digest() for run in spec.runs}
    erat = {"defense.name": "erat", "corruption.data": "up"}
    cell = next(spec.config(run).digest() for run in spec.runs if erat.items() <= run.items())
    path, content = write_leaderboard(workspace, ["same"])
    lines = content["boards"][0]["rankings"][0]["lines"]
    told = next(line["published"] for line in lines if line["runs"][0]["cell"] == cell)
    assert told == {"table": "III", "test_accuracy": found[cell] / 100}
    text = path.read_text()
    ranked, published = text.split('<section id="published"')
    assert f"{found[cell]:.2f}" in ranked and f"{found[cell]:.2f}" in published
    assert ranked.count('class="printed"') == len(spec.runs) + 2  # the lines, and the heads of two rankings


def test_all_that_the_paper_printed_stands_apart(many: Workspace) -> None:
    text = write_leaderboard(many)[0].read_text()
    ranked, published = text.split('<section id="published"')
    assert 'class="printed"' not in ranked
    figures = re.findall(r"<td>(\d+\.\d\d)", published)
    assert len(figures) == 729
    assert "not measurements of this project" in published


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(many: Workspace, tmp_path: Path) -> None:
    path, _ = write_leaderboard(many, out=str(tmp_path / "deep" / "board.html"))
    text = path.read_text()
    outline = Outline(text)
    assert all(link.startswith(("#", "data:,")) for link in outline.links)
    assert len(set(outline.ids)) == len(outline.ids)
    assert not outline.unscoped
    assert not re.search(r"@import|url\((?!#)|<iframe|<img|<script src|fetch\(|XMLHttpRequest", text)
    for link in outline.links:
        assert not link.startswith("#") or link[1:] in outline.ids
    assert str(many.root) not in text


def test_every_line_opens_its_runs_and_commands(many: Workspace) -> None:
    path, content = write_leaderboard(many)
    text = path.read_text()
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    details = json.loads(match[1])
    assert set(re.findall(r'data-runs="([^"]+)"', text)) == set(details)
    lines = [line for board in content["boards"] for ranking in board["rankings"] for line in ranking["lines"]]
    assert len(details) == len(lines)
    for line, told in zip(lines, details.values(), strict=True):
        assert [run["cell"] for run in line["runs"]] == [run[6] for run in told["runs"]]
        assert told["commands"] == [run["command"] for run in line["runs"]]


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    workspace = filled(tmp_path, mine=grid())

    def change(event: dict[str, Any]) -> None:
        if event["event"] == "done":
            event["result"]["device"] = "</script><b>device"

    rewrite(workspace, change)
    text = write_leaderboard(workspace)[0].read_text()
    assert "<b>device" not in text
    assert "&lt;/script&gt;&lt;b&gt;device" in text


def test_the_command_prints_the_file_and_the_rankings(many: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERAT_HOME", str(many.root))
    said = CliRunner().invoke(app, ["leaderboard", "plain", "longer", "--json"])
    assert said.exit_code == 0
    content = json.loads(said.stdout.splitlines()[-1])
    page = Path(content["files"][0])
    assert page == many.report("leaderboard") / "index.html"
    assert "of plain, longer" in page.read_text()
    assert [(board["data"], board["network"], board["epochs"]) for board in content["boards"]] == [
        ("mnist", "small", 16),
        ("mnist", "small", 20),
    ]
    line = content["boards"][0]["rankings"][0]["lines"][0]
    assert 0 < line["mean"] <= 1 and line["n"] == len(line["runs"]) == 2
