"""Tests what a study's name means for a user's own images, and records from before runs had fingerprints of images."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from erat.config import content_digest
from erat.errors import UserError
from erat.result import RunResult
from orchestration.commands import overview, verify
from orchestration.report.document import write_report
from orchestration.storage.workspace import Workspace
from orchestration.study import grids
from orchestration.study.entries import BEFORE_IDENTITY, register, reopened
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from orchestration.study.status import spec_of, trials_of

OLD = Path(__file__).parent / "ledgers" / "before_identity.jsonl"  # two sweeps of one run, made before fingerprints
PLAIN = {"corruption.data": "none", "corruption.labels": "none", "model.name": "small", "train.epochs": 1}


def arrays(path: Path, seed: int = 0, classes: int = 2) -> Path:
    random = np.random.RandomState(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=random.randint(0, 255, (24, 12, 12), np.uint8), labels=np.arange(24) % classes)
    return path


def study(workspace: Workspace, root: Path | str, baselines: list[dict[str, Any]] | None = None) -> StudySpec:
    runs = baselines or [{"defense.name": "ce"}, {"defense.name": "ce", "train.seed": 1}]
    space = parse_space({"name": "mine", "about": "a test", "baselines": runs, "proposals": 0}, "mine.yaml")
    return StudySpec(space, "demo", {**PLAIN, "data.name": "folder", "data.root": str(root)}, workspace.fingerprints())


def finish(ledger: Ledger, made: StudySpec, numbers: tuple[int, ...]) -> None:
    """Record these runs of sweep "s" as done."""
    for number in numbers:
        params = made.runs[number]
        cell = made.config(params).digest()
        ledger.append("proposed", sweep="s", number=number, params=params, source="baseline", cell=cell)
        ledger.finish(RunResult(cell, "done", 1, 0.5, 0.5, 0.5, 0.5, train_seconds=1.0), sweep="s")


# --- a name means one set of images -----------------------------------------------------------------------------------


def test_the_images_are_part_of_what_a_study_is(workspace: Workspace, tmp_path: Path) -> None:
    one, other = (study(workspace, arrays(tmp_path / f"{seed}.npz", seed)) for seed in (0, 1))
    moved = study(workspace, shutil.copy(tmp_path / "0.npz", tmp_path / "moved.npz"))
    assert one.identity() == moved.identity() != other.identity()
    cells = [[made.config(run).digest() for run in made.runs] for made in (one, moved, other)]
    assert cells[0] == cells[1]
    assert not set(cells[0]) & set(cells[2])


def test_so_are_those_that_only_some_of_its_runs_have(workspace: Workspace, tmp_path: Path) -> None:
    first, second = arrays(tmp_path / "first.npz"), arrays(tmp_path / "second.npz", 1)
    runs = [{"defense.name": "ce", "data.root": str(root)} for root in (first, second)]
    before = study(workspace, first, runs)
    assert len({before.config(run).digest() for run in runs}) == 2
    arrays(second, 2)
    assert study(workspace, first, runs).identity() != before.identity()


@pytest.mark.parametrize("verb", ["matrix", "verify"])
def test_every_kind_of_study_knows_its_images(verb: str, workspace: Workspace, tmp_path: Path) -> None:
    def made(root: Path) -> StudySpec:
        keys, fill = {"data.name": "folder", "data.root": str(root)}, workspace.fingerprints()
        if verb == "verify":
            return verify.specification("demo", keys | {"corruption.data": "urp"}, ["none"], [0], fill)
        only = {"defense": ["ce"], "corruption": ["urp"]}
        return grids.specification(grids.load_grid("table3"), "demo", keys, only=only, fill=fill)

    one, other = (made(arrays(tmp_path / f"{seed}.npz", seed)) for seed in (0, 1))
    assert one.identified
    assert one.identity() != other.identity()


def test_the_name_of_a_study_is_refused_to_other_images(workspace: Workspace, tmp_path: Path) -> None:
    ledger, made = Ledger(workspace.ledger), study(workspace, arrays(tmp_path / "a.npz"))
    register(ledger, "s", made, 0)
    with pytest.raises(UserError, match=r"sweep 's' exists.*data.fingerprint was .*, is .*choose another --name"):
        register(ledger, "s", study(workspace, arrays(tmp_path / "b.npz", 1)), 0)
    arrays(tmp_path / "a.npz", 1)
    with pytest.raises(UserError, match=r"data\.fingerprint was"):
        register(ledger, "s", study(workspace, tmp_path / "a.npz"), 0)


def test_the_same_images_at_another_place_go_on_from_there(workspace: Workspace, tmp_path: Path) -> None:
    ledger = Ledger(workspace.ledger)
    register(ledger, "s", study(workspace, arrays(tmp_path / "a.npz")), 0)
    shutil.move(tmp_path / "a.npz", tmp_path / "b.npz")
    register(ledger, "s", study(workspace, tmp_path / "b.npz"), 0)
    again = reopened(Ledger(workspace.ledger), "s", workspace.fingerprints())
    assert again.base.data.root == str(tmp_path / "b.npz")
    lines = workspace.ledger.read_text().count("\n")
    register(Ledger(workspace.ledger), "s", again, 0)
    assert workspace.ledger.read_text().count("\n") == lines, "nothing new to write down"


def test_a_study_is_found_again_from_another_folder(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays(tmp_path / "here" / "a.npz")
    monkeypatch.chdir(tmp_path / "here")
    register(Ledger(workspace.ledger), "s", study(workspace, "a.npz"), 0)
    monkeypatch.chdir(tmp_path)
    assert reopened(Ledger(workspace.ledger), "s", workspace.fingerprints()).identified


@pytest.mark.parametrize("what", ["moved", "changed"])
def test_going_on_without_the_images_says_how(what: str, workspace: Workspace, tmp_path: Path) -> None:
    ledger, made = Ledger(workspace.ledger), study(workspace, arrays(tmp_path / "a.npz"))
    register(ledger, "s", made, 0)
    finish(ledger, made, (0,))
    arrays(tmp_path / "a.npz", 1) if what == "changed" else shutil.move(tmp_path / "a.npz", tmp_path / "b.npz")
    with pytest.raises(UserError, match=r"repeat the first command with --name s and their data.root") as caught:
        reopened(ledger, "s", workspace.fingerprints())
    assert "\n" not in str(caught.value)


def test_what_is_finished_needs_no_images(workspace: Workspace, tmp_path: Path) -> None:
    ledger, made = Ledger(workspace.ledger), study(workspace, arrays(tmp_path / "a.npz"))
    register(ledger, "s", made, 0)
    finish(ledger, made, (0, 1))
    (tmp_path / "a.npz").unlink()
    assert reopened(ledger, "s", workspace.fingerprints()).identity() == made.identity()
    rows, _ = trials_of(workspace, Ledger(workspace.ledger), "s")
    assert {row.config["data.fingerprint"] for row in rows} == {made.base.data.fingerprint}
    console = Console(file=io.StringIO(), width=200)
    assert "note" not in overview.of_sweep(workspace, "s", console)
    for form in ("html", "csv", "md", "latex"):
        assert BEFORE_IDENTITY not in write_report(workspace, "s", form, str(tmp_path / "report")).read_text()


def test_a_large_matrix_looks_at_its_images_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import erat.data.fingerprint as module

    looked: list[int] = []
    plain = module.fingerprint_of
    monkeypatch.setattr(module, "fingerprint_of", lambda *words: looked.append(1) or plain(*words))
    runs = [{"defense.name": name, "train.seed": seed} for name in ("ce", "erat") for seed in range(30)]
    made = study(workspace, arrays(tmp_path / "a.npz"), runs)
    assert len({made.config(run).digest() for run in runs}) == 60
    assert len(looked) == 1


# --- ledgers from before ----------------------------------------------------------------------------------------------


@pytest.fixture
def old(workspace: Workspace) -> Ledger:
    workspace.root.mkdir()
    shutil.copy(OLD, workspace.ledger)
    return Ledger(workspace.ledger)


def test_old_ledgers_are_read(workspace: Workspace, old: Ledger) -> None:
    for name in ("mine", "digits"):
        [row], total = trials_of(workspace, old, name)
        assert (row.status, total) == ("done", 1)
        assert row.final_test_accuracy is not None


def test_digits_of_before_go_on(workspace: Workspace, old: Ledger) -> None:
    made = reopened(old, "digits", workspace.fingerprints())
    assert made.identified
    [cell] = [made.config(run).digest() for run in made.runs]
    assert cell == old.studies["digits"].proposals[0].cell
    assert old.outcome(cell) is not None
    register(old, "digits", made, 0)


def test_images_of_before_are_marked(workspace: Workspace, old: Ledger, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    notes = {entry["name"]: entry.get("note") for entry in overview.of_all(workspace, console)}
    assert notes == {"mine": BEFORE_IDENTITY, "digits": None}
    assert overview.of_sweep(workspace, "mine", console)["note"] == BEFORE_IDENTITY
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count(BEFORE_IDENTITY) == 2
    for form in ("html", "csv", "md", "latex"):
        assert BEFORE_IDENTITY in write_report(workspace, "mine", form, str(tmp_path / f"mine.{form}")).read_text()
    [row] = csv.DictReader(io.StringIO((tmp_path / "mine.csv").read_text()))
    assert (row["note"], row["status"]) == (BEFORE_IDENTITY, "done")


def test_runs_of_before_are_not_reused(workspace: Workspace, old: Ledger, tmp_path: Path) -> None:
    """This holds whether the images are known now or not."""
    [run] = old.studies["mine"].proposals.values()
    made = spec_of(old, "mine")
    assert old.outcome(made.config(run.params).digest()) is None
    assert content_digest(made.base.identity()) != content_digest(old.studies["mine"].spec["base"])
    space, overrides = made.space, made.overrides | {"data.root": str(arrays(tmp_path / "a.npz"))}
    anew = StudySpec(space, "demo", overrides, workspace.fingerprints())
    assert old.outcome(anew.config(run.params).digest()) is None
    with pytest.raises(UserError, match=f"sweep 'mine' was {BEFORE_IDENTITY}; choose another --name"):
        register(old, "mine", anew, 0)
    with pytest.raises(UserError, match=f"sweep 'mine' was {BEFORE_IDENTITY}.*another --name"):
        reopened(old, "mine", workspace.fingerprints())


def test_a_study_begun_without_the_command_looks_at_its_images_too(workspace: Workspace, tmp_path: Path) -> None:
    """A given fingerprint of other images must not bring up the figures of those images."""
    from orchestration.search.launch import run_study

    made = study(workspace, arrays(tmp_path / "a.npz"))
    keys = made.overrides | {"data.root": str(arrays(tmp_path / "b.npz", 1))}
    wrong = StudySpec(made.space, "demo", keys | {"data.fingerprint": made.base.data.fingerprint})
    assert wrong.identity() == made.identity()
    with pytest.raises(UserError, match="not those that this run was planned with"):
        run_study("s", wrong, 0, workspace, Ledger(workspace.ledger))


# --- many seeds of one setting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, True, -1, 1.0, "3", None])
def test_a_digest_is_that_of_the_configuration_whatever_the_seed(
    workspace: Workspace, tmp_path: Path, seed: Any
) -> None:
    made = study(workspace, arrays(tmp_path / "0.npz"), [{"defense.name": "ce", "train.seed": n} for n in (0, 7, 8)])
    params = {"defense.name": "ce", "defense.warmup_epochs": 2} if seed is None else {"train.seed": seed}
    said = []
    for digest in (made.digest, lambda params: made.config(params).digest()):
        try:
            said.append(digest(params))
        except UserError as error:
            said.append(str(error))
    assert said[0] == said[1]
    assert made.digest({"defense.name": "ce", "train.seed": 7}) == made.config(made.runs[1]).digest()
    assert made.digest({"defense.name": "ce", "train.seed": 7}) != made.digest({"defense.name": "ce", "train.seed": 8})
