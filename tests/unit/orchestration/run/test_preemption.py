"""Tests a worker that is told to leave: it leaves when its training has reacted, or at once if it does not train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

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
    end = time.monotonic() + {batch}
    while time.monotonic() < end:
        time.sleep(0.05)
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
    ("trains", "batch", "told", "code", "said"),
    [
        (True, 1, True, 1, ["ready", "batch"]),  # ends the batch, then leaves
        (True, 30, True, 1, ["ready"]),  # the grace period ends first
        (True, 0.1, False, 0, ["ready", "batch", "went on"]),
        (False, 30, True, 7, ["ready"]),  # it does not train: the handler that Ray has set ends it
    ],
)
def test_it_leaves(trains: bool, batch: float, told: bool, code: int, said: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.format(trains=trains, batch=batch)],
        env=os.environ | {"ERAT_GRACE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    began = time.monotonic()
    if told:
        process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert [first, *out.split("\n")[:-1]] == said
    assert process.returncode == code
    assert time.monotonic() - began < 10
