"""A worker that is told to leave: at the end of an epoch while it trains, at once while it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

CODE = """
import signal, sys, time
from orchestration import leaving
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
leaving.prepare()
def told():
    print("ready", flush=True)
    end = time.monotonic() + {epoch}
    while time.monotonic() < end:
        time.sleep(0.05)
    print("epoch", flush=True)
    leaving.leave_if_asked()
    print("went on", flush=True)
if {trains}:
    with leaving.training():
        told()
else:
    told()
"""


@pytest.mark.parametrize(
    ("trains", "epoch", "told", "code", "said"),
    [
        (True, 1, True, 1, ["ready", "epoch"]),  # ends the epoch, then leaves
        (True, 30, True, 1, ["ready"]),  # grace is over first
        (True, 0.1, False, 0, ["ready", "epoch", "went on"]),
        (False, 30, True, 7, ["ready"]),  # as before
    ],
)
def test_it_leaves(trains: bool, epoch: float, told: bool, code: int, said: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.format(trains=trains, epoch=epoch)],
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
