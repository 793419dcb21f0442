"""Tests the directory of a run: how it is prepared, which files are deleted when, and how a stop is requested."""

from __future__ import annotations

from pathlib import Path

import pytest

from erat.config import build
from erat.result import RunResult
from orchestration.run.directory import RunDirectory, stop_request
from orchestration.storage.workspace import Workspace

STATE = ["checkpoint.pt", "previous-checkpoint.pt", "metrics.jsonl"]
ENDS = ["result.json", "error.txt", "left.txt"]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(Workspace(tmp_path), "c")
    made.prepare()
    return made


def there(run: RunDirectory) -> set[str]:
    return {path.name for path in run.path.iterdir()}


def test_what_takes_the_place_of_a_run_s_files_is_moved_aside(tmp_path: Path) -> None:
    run = RunDirectory(Workspace(tmp_path), "c")
    run.path.parent.mkdir()
    run.path.write_text("a file")
    with pytest.warns(UserWarning, match=r"cells/c must be a folder: moved to c.1"):
        run.prepare()
    for name in ("result.json", "previous-checkpoint.pt", "heartbeat"):
        (run.path / name).mkdir()
        (run.path / name / "kept").write_text("nothing is lost")
    run.artifacts.write_text("")
    with pytest.warns(UserWarning, match=r"result.json must be a file: moved to result.json.1"):
        run.prepare()
    for name in ("result.json", "previous-checkpoint.pt", "heartbeat"):
        assert (run.path / f"{name}.1" / "kept").is_file()
    assert (run.path / "artifacts.1").is_file()
    assert (tmp_path / "cells" / "c.1").read_text() == "a file"


def test_a_run_that_begins_forgets_how_it_ended_and_keeps_what_it_goes_on_from(run: RunDirectory) -> None:
    for name in (*STATE, *ENDS):
        (run.path / name).write_text("before")
    run.begin(build("demo"))
    assert there(run) == {*STATE, "config.json"}
    run.refuse("no such data")
    assert run.read_error() == "no such data"
    run.leave("told to leave in epoch 3")
    assert run.read_departure() == "told to leave in epoch 3"
    run.forget()
    assert there(run) == {"config.json"}
    assert (run.read_error(), run.read_departure(), run.read_result(), run.read_metrics()) == (None, None, None, [])


def test_a_run_that_is_done_needs_one_checkpoint_and_a_stopped_one_both(run: RunDirectory) -> None:
    for name in STATE:
        (run.path / name).write_text("kept")
    stopped = RunResult("c", "stopped", 1, 0.5, 0.5, 0.5, 0.5)
    run.keep_result(stopped)
    assert run.read_result() == stopped
    assert there(run) == {*STATE, "result.json"}
    done = RunResult("c", "done", 2, 0.5, 0.5, 0.5, 0.5)
    run.keep_result(done)
    assert run.read_result() == done
    assert there(run) == {"checkpoint.pt", "metrics.jsonl", "result.json"}


def test_the_first_request_to_stop_says_after_which_epoch(run: RunDirectory) -> None:
    request = stop_request("mine")
    assert request == "stop-mine"
    assert not run.asked_to_stop(request)
    run.ask_to_stop(request, 2)
    run.ask_to_stop(request, 3)
    assert run.asked_to_stop(request)
    assert run.stop_epoch(request) == 2
    assert not run.asked_to_stop(stop_request("another"))
    run.withdraw_stop(request)
    assert not run.asked_to_stop(request)


@pytest.mark.parametrize("content", ["", "0", "-1", "two", "²", "9" * 10], ids=range(6))
def test_a_request_that_names_no_epoch_is_one_all_the_same(run: RunDirectory, content: str) -> None:
    (run.path / "stop-mine").write_text(content)
    assert run.asked_to_stop("stop-mine")
    assert run.stop_epoch("stop-mine") is None


def test_requests_and_ends_travel_over_the_storage(tmp_path: Path) -> None:
    place = str(tmp_path / "storage")
    one, other = (RunDirectory(Workspace(tmp_path / name).sharing(place), "c") for name in ("driver", "node"))
    one.prepare()
    other.prepare()
    one.ask_to_stop("stop-mine", 2)
    assert other.asked_to_stop("stop-mine")
    one.withdraw_stop("stop-mine")
    assert not other.asked_to_stop("stop-mine")
    other.refuse("no such data")
    assert one.read_error() is None
    one.fetch("error.txt")
    assert one.read_error() == "no such data"
    one.forget()
    other.fetch("error.txt")
    assert other.read_error() is None, "what the storage lacks goes"
