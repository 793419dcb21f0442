"""Tests that corrupted sets are crafted as Ray tasks, and that `craft --verify` shows their effect, by command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erat.config import build
from erat.corruption import pipeline
from erat.corruption.store import Store
from erat.engine.checkpoint import load_newest
from orchestration.cluster import session
from orchestration.crafting import sets
from orchestration.storage.workspace import Workspace
from tests.e2e.commands import Command, Said

pytestmark = pytest.mark.slow  # sweeps and grids of the other modules craft in Ray's tasks too

ROOT = Path(__file__).parents[2]
SMALL = ["data.limit=300", "train.epochs=2", "corruption.source_epochs=2", "corruption.steps=5"]
VERIFY = ["craft", "--verify", "corruption.data=urp,uhp,uap", "--labels", "none,symmetric:0.6", *SMALL]


@pytest.fixture(scope="module")
def verified(command: Command) -> Said:
    """Train CE on no data corruption and on three, without and with label noise."""
    with pytest.MonkeyPatch.context() as patch:
        # Crafting in this process, instead of in a Ray worker, fails.
        patch.setattr(pipeline, "_craft", _refuse)
        said = command(*VERIFY, "--json")
    assert said.code == 0, said.err
    return said


def _refuse(*_: Any) -> None:
    raise AssertionError("crafted in the driver")


def crafted(workspace: Workspace, part: str) -> list[Path]:
    return [path for path in workspace.crafted.iterdir() if path.name.startswith(f"{part}-")]


def test_each_set_is_crafted_once_and_its_source_is_shared(verified: Said, workspace: Workspace) -> None:
    assert len(crafted(workspace, "images")) == 3
    assert len(crafted(workspace, "source")) == 1, "UHP and UAP wait for one network"
    assert len(crafted(workspace, "labels")) == 2
    hidden = [path.name for path in workspace.crafted.iterdir() if path.name.endswith((".work", ".part", ".progress"))]
    assert not hidden, "nothing half-made stays"


def test_it_says_how_far_crafting_is(verified: Said) -> None:
    assert "crafting uhp l2 1.25: class vectors 5/5" in verified.err
    assert "crafting urp" not in verified.err, "that one has no steps to tell of"


def test_it_shows_how_far_accuracy_falls(verified: Said, workspace: Workspace) -> None:
    runs = verified.json["runs"]
    assert len(runs) == 8
    settings = {(run["config"]["corruption.data"], run["config"]["corruption.labels"]) for run in runs}
    assert settings == {(kind, noise) for kind in ("none", "urp", "uhp", "uap") for noise in ("none", "symmetric")}
    assert {run["config"]["defense.name"] for run in runs} == {"ce"}
    table = (workspace.report(verified.json["name"]) / "grid.md").read_text()
    assert "| data corruption | none | symmetric 0.6 |" in table
    assert "| CE on uhp l2 1.25 |" in table
    assert (workspace.report(verified.json["name"]) / "grid.png").stat().st_size > 5000
    assert verified.json["best"] is None, "nothing was searched"


def test_again_it_runs_and_crafts_nothing(verified: Said, command: Command, workspace: Workspace) -> None:
    before = {path: path.stat().st_mtime_ns for path in crafted(workspace, "images")}
    again = command(*VERIFY, "--json")
    assert [run["cell"] for run in again.json["runs"]] == [run["cell"] for run in verified.json["runs"]]
    assert {path: path.stat().st_mtime_ns for path in crafted(workspace, "images")} == before


def test_a_damaged_set_is_crafted_again_with_a_warning(
    verified: Said, command: Command, workspace: Workspace, recwarn: pytest.WarningsRecorder
) -> None:
    config = build("demo", _overrides("urp"))
    entry = pipeline.corrupted_set(config, Store(workspace.crafted)).manifest["images"]
    file = Path(entry["path"]) / "images.npy"
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert command("craft", "corruption.data=urp", *SMALL).code == 0
    assert any("is damaged" in str(warning.message) for warning in recwarn)
    np.testing.assert_array_equal(np.load(file), np.load(_write(file.with_name("sound.npy"), sound)))


def _overrides(kind: str) -> dict[str, Any]:
    return {"corruption.data": kind} | dict(word.split("=") for word in SMALL)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_a_task_refuses_reaches_the_person_in_one_line(command: Command, workspace: Workspace) -> None:
    """An error of a worker is reported to the user in one line: here, that the ensemble needs four classes."""
    folder = workspace.root.parent / "two"
    _two_classes(folder)
    words = ["data.name=folder", f"data.root={folder}", "corruption.data=aa", "corruption.attack=standard"]
    said = command("craft", *words, "corruption.source=small", "corruption.source_epochs=1", "data.image_size=8")
    assert said.code == 2
    assert said.err.splitlines()[-1] == ("error: corruption.attack=standard needs at least 4 classes, the set has 2")


def test_a_small_set_needs_no_device(command: Command, workspace: Workspace) -> None:
    before = len(crafted(workspace, "images"))
    said = command("craft", "corruption.data=urp", "corruption.seed=7", "resources.gpu=1", *SMALL)
    assert said.code == 0, said.err
    assert len(crafted(workspace, "images")) == before + 1


def test_a_device_that_no_node_has_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "SMALL_SET", 0)
    monkeypatch.setattr(session, "JOIN_SECONDS", 0.5)
    said = command("craft", "corruption.data=urp", "corruption.seed=8", "resources.gpu=1", *SMALL)
    assert said.code == 2
    assert "crafting urp needs 1 CPU, 1 GPU, the cluster has 2 CPU, 0 GPU" in said.err.splitlines()[-1]


def _two_classes(folder: Path) -> None:
    from PIL import Image

    draw = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "test" / name).mkdir(parents=True)
        for part, count in (("train", 20), ("test", 3)):
            for index in range(count):
                Image.fromarray(draw.randint(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                    folder / part / name / f"{index}.png"
                )


def test_a_killed_crafting_goes_on_to_the_same_set(tmp_path: Path) -> None:
    """After a SIGKILL in the middle, the same command resumes from the last state and ends with the same pixels."""
    words = ["corruption.data=uap", "corruption.steps=2000", "corruption.source_epochs=1"]
    undisturbed = _craft(tmp_path / "undisturbed", *words)
    killed = subprocess.Popen(_line(*words), env=_environment(tmp_path / "killed"), cwd=ROOT, stderr=subprocess.DEVNULL)

    def kept() -> list[Path]:
        return list((tmp_path / "killed" / "crafted").glob(".vectors-*.work/state.pt"))

    deadline = time.monotonic() + 600
    while not kept():
        assert killed.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    (state,) = kept()
    done = (load_newest(state, torch.device("cpu")) or {})["done"]
    again = _craft(tmp_path / "killed", *words)
    first = next(line for line in again.stderr.splitlines() if "class vectors" in line)
    assert int(first.split()[-1].split("/")[0]) > done > 1, "it goes on, and does not begin anew"
    assert json.loads(again.stdout)["checksum"] == json.loads(undisturbed.stdout)["checksum"]
    assert not kept(), "nothing is left behind"


def _line(*words: str) -> list[str]:
    return [sys.executable, "orchestrate.py", "craft", "data.limit=600", "--json", *words]


def _environment(workspace: Path) -> dict[str, str]:
    return os.environ | {"ERAT_HOME": str(workspace), "OMP_NUM_THREADS": "1"}


def _craft(workspace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _line(*words), env=_environment(workspace), cwd=ROOT, capture_output=True, text=True, check=True, timeout=600
    )
