"""Tests locks: they are probed without a trace, waited for, and named if another process does not release them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from erat import locks
from erat.errors import UserError
from erat.locks import StillHeldError, held, is_held

HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "some.lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_probing_makes_no_file_and_sees_who_holds(lock: Path, tmp_path: Path) -> None:
    assert not is_held(lock)
    assert list(tmp_path.iterdir()) == []
    with held(lock):
        assert is_held(lock)
    assert not is_held(lock), "the file that is left behind locks nobody out"


def test_who_holds_it_for_too_long_is_named(lock: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StillHeldError, match=rf"^process {holder.pid} \(.*\) has held {lock} for 0.2 s: "):
        held(lock, patience=0.2).__enter__()
    holder.kill()
    holder.wait()
    with held(lock, patience=5):
        pass


def test_who_only_looks_keeps_nobody_out(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`is_held` shares the lock for a moment; here another process is at that point, until it is asked twice."""
    lock.touch()
    file = os.open(lock, os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_SH)
    asked: list[bool] = []

    def looks(path: Path) -> bool:
        asked.append(is_held(path))
        if len(asked) == 2:
            os.close(file)
        return asked[-1]

    monkeypatch.setattr(locks, "is_held", looks)
    with held(lock, patience=0):
        assert asked == [False, False]
        assert is_held(lock)


def test_who_looks_forever_is_an_error_in_the_end(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOOKED_AT_SECONDS", 0.05)
    lock.touch()
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(StillHeldError, match=f"has held {lock} for 0 s"):
            held(lock, patience=0).__enter__()


def test_work_is_waited_for_with_a_word(
    lock: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SAY_SECONDS", 0.2)

    def is_stopped(process: int) -> bool:
        holder.kill()
        return False

    monkeypatch.setattr(locks, "_is_stopped", is_stopped)
    with pytest.warns(UserWarning, match=f"waiting for process {holder.pid}"), held(lock, patience=None):
        pass


def test_a_suspended_process_is_not_waited_for(
    lock: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SAY_SECONDS", 0.2)
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(StillHeldError, match="is suspended"):
        held(lock, patience=None).__enter__()


def test_what_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "loop"):
        with pytest.raises(UserError, match=rf"^the lock {tmp_path / name} cannot be taken: "):
            held(tmp_path / name, patience=1).__enter__()
        assert not is_held(tmp_path / name)
