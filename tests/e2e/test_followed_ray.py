"""Tests in a browser, with the commands as a person types them, that a real search is followed to its end."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestration.storage.workspace import Workspace
from tests.browser import chromium, open_page, work_with
from tests.e2e.sweeps import begun, gone, wait_until, writer
from tests.servers import free_port

PATIENCE = 900_000  # milliseconds until Ray has started and three short trainings have ended, on a busy machine
SPACE: dict[str, Any] = {
    "name": "rates",
    "about": "three learning rates",
    "parameters": {"train.lr": {"low": 0.01, "high": 0.2, "log": True}},
    "points": [{"train.lr": 0.1}, {"train.lr": 0.05}, {"train.lr": 0.02}],
    "proposals": 0,
}
BRIEF = ("defense.name=ce", "corruption.data=none", "corruption.labels=none", "data.limit=600", "train.epochs=8")


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a command after the block as by Ctrl-C, and check that it says nothing was wrong."""
    try:
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_a_search_is_followed_to_its_end_and_then_worked_with(own_workspace: Workspace, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    own_workspace.root.mkdir()
    (tmp_path / "spaces").mkdir()
    space = writer(tmp_path / "spaces", SPACE)()
    with chromium() as browser, log.open("wb") as output:
        ui = begun(own_workspace, "ui", "--port", str(port), stderr=output)
        with ended(ui):
            wait_until(lambda: "MLflow is at" in log.read_text(), "MLflow's page")
            page = open_page(browser, f"http://127.0.0.1:{port}")
            page.locator("#nothing").wait_for()
            sweep = begun(own_workspace, "sweep", "--space", space, "--name", "seen", *BRIEF, stderr=subprocess.DEVNULL)
            page.locator(".study .slot").first.wait_for(timeout=PATIENCE)
            page.locator(".live-curves polyline").first.wait_for(timeout=PATIENCE)
            page.locator(".study .now", has_text="3/3 trials · ended").wait_for(timeout=PATIENCE)
            assert page.locator(".live-curves polyline").count() == 3
            assert sweep.wait(300) == 0
            assert page.errors == []  # type: ignore[attr-defined]
            runs = page.context.request.get(f"http://127.0.0.1:{port}/mlflow/seen", max_redirects=0)
            assert (runs.status, "viewStateShareKey" in runs.headers["location"]) == (307, True)
            page.locator(".study .links a").first.click()
            work_with(page, "train.lr")
    assert gone(own_workspace, 120), "neither MLflow nor Ray is left"
