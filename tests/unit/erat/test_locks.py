"""Tests locks: they are probed without a trace, waited for, and named if another process does not release them."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading
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


@pytest.mark.parametrize(
    ("said", "named"),
    [("far process 7", "process 7 on far"), ("far", "a process on far"), (None, "another process")],
    ids=range(3),
)
def test_a_holder_on_another_machine_that_gives_no_sign_of_life_is_not_waited_for(
    said: str | None,
    named: str,
    lock: Path,
    holder: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel of this machine does not see it, as on NFS."""
    monkeypatch.setattr(locks, "_holder", lambda path: None)
    monkeypatch.setattr(locks, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.3)
    sign = tmp_path / "sign"
    if said is not None:
        sign.write_text(said)
    line = rf"^{named} holds {lock} and has given no sign of life for 0.3 s: end it, or try later$"
    with pytest.warns(UserWarning, match=f"waiting for {named}"), pytest.raises(StillHeldError, match=line):
        held(lock, None, sign).__enter__()


@pytest.mark.filterwarnings("ignore:waiting for")
def test_a_holder_on_another_machine_is_waited_for_while_it_lives(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_holder", lambda path: None)
    monkeypatch.setattr(locks, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 1.0)
    sign, taken = tmp_path / "sign", threading.Event()

    def wait() -> None:
        with held(lock, None, sign):
            taken.set()

    with held(lock, None, sign, beat=0.05):
        assert sign.read_text() == f"{platform.node()} process {os.getpid()}"
        thread = threading.Thread(target=wait)
        thread.start()
        assert not taken.wait(1.8)
    thread.join(300)
    assert taken.is_set()
    assert not sign.exists()


def test_what_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "loop"):
        with pytest.raises(UserError, match=rf"^the lock {tmp_path / name} cannot be taken: "):
            held(tmp_path / name, patience=1).__enter__()
        assert not is_held(tmp_path / name)
