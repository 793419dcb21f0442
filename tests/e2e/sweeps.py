"""Shared by the tests of whole sweeps: what the ledger has of one, what two have in common, and processes to kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestration.storage.workspace import Workspace

ROOT = Path(__file__).parents[2]
TWO_RATES = """
name: two
about: two learning rates
proposals: 0
baselines:
  - {train.lr: 0.1}
  - {train.lr: 0.05}
"""


def writer(folder: Path, content: Mapping[str, Any]) -> Callable[..., str]:
    """Return a function that writes this content, with changes, as a space into a new file, and returns its path."""

    def write(**changes: Any) -> str:
        path = folder / f"space{len(list(folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return str(path)

    return write


def events(workspace: Workspace, sweep: str) -> list[dict[str, Any]]:
    """Return the entries of the ledger that are about one sweep."""
    lines = [json.loads(line) for line in workspace.ledger.read_text().splitlines()]
    return [event for event in lines if sweep in (event.get("sweep"), event.get("name"))]


def table(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what two sweeps must have in common, trial by trial."""
    kept = ("cell", "status", "config", "final_test_accuracy", "best_val_test_accuracy", "val_accuracy", "error")
    return [{key: run[key] for key in kept} for run in content["runs"]]


def begun(workspace: Workspace, *words: str, **more: Any) -> subprocess.Popen[Any]:
    """Start `python orchestrate.py` with these words in a workspace, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "orchestrate.py", *words],
        cwd=ROOT,
        env=os.environ | {"ERAT_HOME": str(workspace.root)},
        # A background job of a shell ignores SIGINT and passes that on to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


def wait_until(happened: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait until something has happened, and fail the test if it has not in time."""
    give_up = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > give_up:
            pytest.fail(f"{what} in {seconds} s")
        time.sleep(0.05)


def processes_of(workspace: Workspace) -> list[psutil.Process]:
    """Return the living processes that belong to this workspace: a command, and all processes of its Ray."""
    found = []
    for process in psutil.process_iter():
        try:
            own = process.environ().get("ERAT_HOME") == str(workspace.root)
            if own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def gone(workspace: Workspace, seconds: float) -> bool:
    """Wait until no process of this workspace is left, and return whether that came about in time."""
    give_up = time.monotonic() + seconds
    while processes_of(workspace):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.2)
    return True
