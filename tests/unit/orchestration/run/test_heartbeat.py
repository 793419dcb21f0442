"""Tests that only one driver runs a study at a time, and that a driver can be asked to stop."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from erat.errors import UserError
from orchestration.run import heartbeat
from orchestration.run.directory import RunDirectory
from orchestration.run.heartbeat import ask_to_stop, at_work, driving, heard, is_driven, is_running
from orchestration.storage.workspace import Workspace

DRIVER = """
import signal, sys, time
from pathlib import Path
from orchestration.storage.workspace import Workspace
from orchestration.run.heartbeat import driving

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
with driving(Workspace(Path(sys.argv[1])), "mine"):
    print("driving", flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("asked", flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path) -> subprocess.Popen[str]:
    """Start another process that drives `mine`, in the way in which a shell starts a background job."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[4],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "driving\n"
    return process


def test_a_driver_is_asked_and_stops(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert is_driven(workspace, "mine")
    assert not is_driven(workspace, "other")
    ask_to_stop(workspace, "mine")
    assert driver.communicate(timeout=300)[0] == "asked\n"
    assert driver.returncode == 0
    assert not is_driven(workspace, "mine")
    assert not list(tmp_path.glob("*.stop")), "the wish is fulfilled"


def test_two_do_not_drive_the_same(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mine is running already: status mine --watch .*cancel mine"):
        driving(Workspace(tmp_path), "mine").__enter__()
    with driving(Workspace(tmp_path), "other"):
        pass
    driver.kill()
    driver.communicate()
    assert not is_driven(Workspace(tmp_path), "mine"), "a killed driver's hold ends with it"
    with driving(Workspace(tmp_path), "mine"):
        assert is_driven(Workspace(tmp_path), "mine")


def test_a_driver_is_not_refused_because_somebody_looks(tmp_path: Path) -> None:
    """`status --watch` asks again and again whether the study is driven, and shares the lock for a moment each time."""
    with driving(Workspace(tmp_path), "mine"):
        pass  # from now on, the file of the lock is there
    file = os.open(tmp_path / ".mine.driver", os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_SH)
    looked = threading.Timer(0.1, os.close, [file])
    looked.start()
    with driving(Workspace(tmp_path), "mine"):
        looked.join()
        assert is_driven(Workspace(tmp_path), "mine")


def test_nobody_can_be_asked_where_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^nothing runs under 'mine'; status mine says how it stands$"):
        ask_to_stop(Workspace(tmp_path), "mine")


def test_an_old_wish_stops_no_new_driver(tmp_path: Path) -> None:
    (tmp_path / ".mine.stop").write_text("")
    with driving(Workspace(tmp_path), "mine"):
        time.sleep(1.5)


def test_a_run_says_that_it_is_alive_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    run = RunDirectory(Workspace(tmp_path), "c")
    run.prepare()
    assert heard(run) is None
    with at_work(run):
        os.utime(run.heartbeat, (0, 0))
        limit = time.monotonic() + 300
        while (heard(run) or 0) > 5:
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert is_running(run)
    assert heard(run) is None
    assert not is_running(run)


@pytest.mark.parametrize(
    ("host", "age", "running"), [("elsewhere", 3, True), ("elsewhere", 60, False), (platform.node(), 3, False)]
)
def test_a_lock_that_is_not_seen_across_machines(tmp_path: Path, host: str, age: float, running: bool) -> None:
    """On this machine the lock is decisive; of another machine only its heartbeat is known."""
    run = RunDirectory(Workspace(tmp_path), "c")
    run.prepare()
    run.heartbeat.write_text(host)
    os.utime(run.heartbeat, (time.time() - age, time.time() - age))
    assert is_running(run) is running
