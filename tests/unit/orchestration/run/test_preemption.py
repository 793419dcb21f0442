"""Tests a worker that is told to leave: it leaves when its training has reacted, or at once if it does not train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = """
import signal, sys, time
from orchestration.run import preemption
before = signal.signal
preemption.prepare()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))  # as Ray does, later
assert signal.signal is before
def told():
    print("ready", flush=True)
    if {ends}:
        sys.stdin.readline()
    else:
        time.sleep(600)
    print("batch", flush=True)
    if preemption.requested():
        sys.exit(1)
    print("went on", flush=True)
if {trains}:
    with preemption.training():
        told()
else:
    told()
"""


@pytest.mark.parametrize(
    ("trains", "ends", "told", "code", "said"),
    [
        (True, True, True, 1, ["ready", "batch"]),  # ends the batch, then leaves
        (True, False, True, 1, ["ready"]),  # the grace period ends first
        (True, True, False, 0, ["ready", "batch", "went on"]),
        (False, False, True, 7, ["ready"]),  # it does not train: the handler that Ray has set ends it
    ],
)
def test_it_leaves(trains: bool, ends: bool, told: bool, code: int, said: list[str]) -> None:
    """The batch ends when this test says so, which is after the signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.format(trains=trains, ends=ends)],
        env=os.environ | {"ERAT_GRACE": "300" if ends else "0.5"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    if told:
        process.send_signal(signal.SIGTERM)
    assert process.stdin is not None
    if ends:
        process.stdin.write("\n")
        process.stdin.flush()
    out, _ = process.communicate(timeout=300)
    assert [first, *out.split("\n")[:-1]] == said
    assert process.returncode == code
