"""Tests ledgers of the version that made its proposals in generations: what is done stays, and nothing is mixed."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from erat.errors import UserError
from orchestration.api import Study, load_study
from orchestration.commands import overview
from orchestration.search.driver import make_queue
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import ANEW, BEFORE_WINDOW, as_begun, check_name_is_free, register, reopened
from orchestration.study.ledger import Ledger
from orchestration.study.settings import begin_as
from orchestration.study.spec import StudySpec
from tests.imagined import EveryWord

# Two searches of one space, of four trials and of six, and a list of three runs of which two have ended.
OLD = Path(__file__).parent / "ledgers" / "generations.jsonl"
# As the earlier version printed them.
IDENTITIES = {"finished": "b613816e571771bc", "unfinished": "a4e1b573af93bb47", "few": "acbc4d29c9757cf2"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace")
    made.ledger.parent.mkdir()
    shutil.copy(OLD, made.ledger)
    return made


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert "begun by an earlier version, whose search made its proposals in generations" in said
    assert "another --name" in said
    return said


def fresh(workspace: Workspace, name: str) -> StudySpec:
    """Return the specification as a user of this version would give it."""
    old = StudySpec.of(Ledger(workspace.ledger).studies[name].spec)
    return replace(old, fill=workspace.fingerprints())


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_is_recorded_can_be_looked_at(name: str, workspace: Workspace, tmp_path: Path) -> None:
    study = load_study(name, workspace.root)
    ended = [trial for trial in study.trials if trial.ended]
    assert (len(study.trials), len(ended)) == {"finished": (4, 4), "unfinished": (4, 3), "few": (3, 2)}[name]
    page = study.report(tmp_path / "page.html").read_text()
    assert study.spec.space.about in page


def test_status_says_that_a_search_cannot_go_on(workspace: Workspace) -> None:
    console = Console(file=io.StringIO(), width=300, color_system=None)
    content = overview.of_sweep(workspace, "unfinished", console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{BEFORE_WINDOW}; {ANEW}" in said
    assert "resume unfinished" not in said
    assert "settings" not in content


def test_a_list_keeps_its_identity_and_goes_on(workspace: Workspace) -> None:
    ledger = Ledger(workspace.ledger)
    assert StudySpec.of(ledger.studies["few"].spec).identity() == IDENTITIES["few"]
    spec = reopened(ledger, "few", workspace.fingerprints())
    assert spec.identity() == fresh(workspace, "few").identity() == IDENTITIES["few"]
    register(ledger, "few", spec, 0)
    queue = make_queue(spec, 0, "few", ledger, EveryWord(), on_proposed=lambda trial: None)
    trial = queue.next()
    assert trial is not None
    assert trial.params == {"defense.name": "dividemix"}
    assert queue.next() is None


def test_a_finished_search_is_resumed_with_nothing_to_do(workspace: Workspace) -> None:
    ledger, before = Ledger(workspace.ledger), workspace.ledger.read_bytes()
    spec = reopened(ledger, "finished", workspace.fingerprints())
    check_name_is_free(ledger, "finished", spec)
    spec = begin_as(as_begun(ledger, "finished", spec), 2, 4)
    register(ledger, "finished", spec, 4)
    queue = make_queue(spec, 4, "finished", ledger, EveryWord(), on_proposed=lambda trial: None)
    assert queue.next() is None
    assert queue.exhausted
    assert [trial.status for _, trial in sorted(queue.trials.items())] == ["done", "done", "done", "stopped"]
    assert workspace.ledger.read_bytes() == before


def test_nothing_is_added_to_a_search(workspace: Workspace) -> None:
    ledger, before = Ledger(workspace.ledger), workspace.ledger.read_bytes()
    finished = begin_as(reopened(ledger, "finished", workspace.fingerprints()), 2, 9)
    refusal(lambda: reopened(ledger, "unfinished", workspace.fingerprints()))
    refusal(lambda: register(ledger, "unfinished", fresh(workspace, "unfinished"), 6))
    refusal(lambda: register(ledger, "finished", finished, 9))
    refusal(lambda: check_name_is_free(ledger, "finished", fresh(workspace, "unfinished")))
    assert workspace.ledger.read_bytes() == before


def test_an_extension_is_refused_before_anything_is_started(workspace: Workspace) -> None:
    spec = fresh(workspace, "finished")
    refusal(lambda: Study("finished", spec, 9, workspace))
    assert Study("finished", spec, 4, workspace).total == 4
