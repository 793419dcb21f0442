"""Tests what is seen of studies from outside their drivers: states, curves, time left, last words, and what changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.report.following import IDLE_SECONDS, LOOK_SECONDS, Follower, changes, counted, other_pages
from orchestration.storage.workspace import Workspace
from tests.driven import Driven
from tests.trials import make_trial


class Clock:
    """A clock that stands still until it is told otherwise."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_study_that_runs_is_seen_trial_by_trial(workspace: Workspace, clock: Clock) -> None:
    driven, follower = Driven(workspace, trials=3), Follower(workspace, clock)
    with driven.driver():
        for number in range(2):
            driven.begin(number)
            driven.epoch(number, 0.4 + 0.1 * number)
        seen = follower.look()
        study, trials = seen["studies"]["budgets"], seen["trials"]["budgets"]
        assert (study["running"], study["slots"], study["ended"]) == (True, 2, 0)
        assert study["counts"] == {"running": 2, "not begun": study["total"] - 2}
        assert study["left"] > 0
        assert (trials["0"]["status"], trials["0"]["epoch"], trials["0"]["epochs"]) == ("running", 1, 16)
        assert trials["1"]["curve"] == [0.5]
        assert trials["0"]["settings"] == "ε∞ 0.05, ε2 0.5"
        assert trials["0"]["left"] == pytest.approx(15 * 2.0)
        assert "process" in trials["0"]["where"]

        driven.epoch(1, 0.8)
        driven.end(1)
        driven.end(0, "failed", "RuntimeError: the loss is nan")
        clock.now += LOOK_SECONDS
        seen = follower.look()
        study, trials = seen["studies"]["budgets"], seen["trials"]["budgets"]
        assert study["counts"] == {"done": 1, "failed": 1, "not begun": study["total"] - 2}
        assert (study["best"], study["best_val"]) == ("1", 0.8)
        assert trials["1"]["curve"] == [0.5, 0.8]
        assert trials["0"]["error"] == "RuntimeError: the loss is nan"
        assert trials["0"]["words"].splitlines()[-2:] == ["  in training", "RuntimeError: the loss is nan"]
    clock.now += LOOK_SECONDS
    seen = follower.look()
    assert not seen["studies"]["budgets"]["running"], "its driver has ended"
    assert seen["trials"]["budgets"].keys() == trials.keys(), "it stays until the server ends"
    json.dumps(seen)


def test_nothing_is_read_again_before_its_time(workspace: Workspace, clock: Clock) -> None:
    driven, follower = Driven(workspace), Follower(workspace, clock)
    before = follower.look()["studies"]["budgets"]
    assert not before["running"] and before["counts"] == {"not begun": before["total"]}
    driven.begin(0)  # without a driver, as if on another machine
    clock.now += LOOK_SECONDS / 2
    assert follower.look()["studies"]["budgets"] is before
    clock.now += LOOK_SECONDS
    assert follower.look()["studies"]["budgets"] is before, "one that nobody drives is looked at less often"
    clock.now += IDLE_SECONDS
    assert follower.look()["studies"]["budgets"]["running"]


def test_following_writes_nothing(workspace: Workspace, clock: Clock) -> None:
    driven = Driven(workspace)
    driven.begin(0)
    driven.epoch(0, 0.5)

    def files() -> dict[str, tuple[int, int]]:
        found = (path for path in workspace.root.rglob("*") if path.is_file() and path.name != "heartbeat")
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    before = files()
    assert Follower(workspace, clock).look()["trials"]["budgets"]["0"]["epoch"] == 1
    assert files() == before


def test_a_damaged_specification_leaves_the_others(workspace: Workspace, clock: Clock) -> None:
    driven = Driven(workspace)
    driven.ledger.append("sweep", name="later", spec={"space": {"name": "x"}}, trials=1)
    seen = Follower(workspace, clock).look()["studies"]
    assert list(seen) == ["later", "budgets"], "the newest first"
    assert seen["later"]["note"] and "total" in seen["budgets"]


def test_only_what_changes_is_sent() -> None:
    def seen(epoch: int, **more: Any) -> dict[str, Any]:
        return {"studies": {"a": {"left": 5}, **more}, "trials": {"a": {"0": {"epoch": epoch}, "1": {"epoch": 1}}}}

    assert changes(seen(1), {}) == seen(1)
    assert changes(seen(1), seen(1)) == {}
    assert changes(seen(2), seen(1)) == {"trials": {"a": {"0": {"epoch": 2}}}}
    assert changes(seen(1, b={"left": 1}), seen(1)) == {"studies": {"b": {"left": 1}}}


def test_states_are_counted_and_the_rest_has_not_begun() -> None:
    rows = [make_trial(0, status="done"), make_trial(1, epoch=2, epochs=4), make_trial(2)]
    assert counted(rows, 5) == {"done": 1, "interrupted": 1, "not begun": 3}
    assert counted(rows, 2) == {"done": 1, "interrupted": 1, "not begun": 1}


def test_pages_that_were_written_are_found(workspace: Workspace) -> None:
    for name, files in {
        "leaderboard": ["index.html"],
        "audit-x": ["index.html", "audit.json"],
        "study": ["a.md"],
    }.items():
        workspace.report(name).mkdir(parents=True)
        for file in files:
            Path(workspace.report(name) / file).write_text("x")
    found = {entry["name"]: entry["kind"] for entry in other_pages(workspace)}
    assert found == {"leaderboard": "leaderboard", "audit-x": "audit"}
