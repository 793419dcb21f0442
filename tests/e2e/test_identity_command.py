"""Tests that figures of one image set are never shown for another: other images make another run, moved ones do not."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestration.storage.workspace import Workspace
from tests.e2e.commands import Command
from tests.e2e.conftest import ROOT

PLAIN = ("corruption.data=none", "corruption.labels=none", "model.name=small", "train.epochs=1", "train.batch_size=8")
SPACE = "name: one\nabout: one run\nproposals: 0\nbaselines:\n  - {defense.name: ce}\n"


def arrays(path: Path, classes: int) -> Path:
    random, labels = np.random.RandomState(classes), np.arange(60) % classes
    images = (random.rand(60, 16, 16) * 60).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 + 3 * label : 5 + 3 * label, 4:12] = 200
    np.savez(path, images=images, labels=labels)
    return path


def train(workspace: Path, root: Path | str, at: Path = ROOT) -> tuple[dict[str, Any], str]:
    """Return (the JSON that `train --json` printed, or nothing; its messages)."""
    words = ("data.name=folder", f"data.root={root}", "defense.name=ce", *PLAIN, "--json")
    done = subprocess.run(
        [sys.executable, str(ROOT / "orchestrate.py"), "train", *words],
        cwd=at,
        env=os.environ | {"ERAT_HOME": str(workspace), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if done.stdout else 2), done.stderr
    return json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.slow
def test_two_sets_are_two_runs_and_one_that_moved_is_one(tmp_path: Path) -> None:
    workspace, places = tmp_path / "workspace", [arrays(tmp_path / "a.npz", 2), arrays(tmp_path / "b.npz", 4)]
    (one, _), (other, _) = (train(workspace, place) for place in places)
    assert one["cell"] != other["cell"]
    assert one["final_test_accuracy"] != other["final_test_accuracy"]
    assert "root" not in one["config"]["data.fingerprint"]
    places[0].rename(tmp_path / "c.npz")
    moved, told = train(workspace, "./c.npz", at=tmp_path)
    assert (moved["cell"], moved["mlflow_run_id"]) == (one["cell"], one["mlflow_run_id"])
    assert "trial 0 running" not in told
    nothing, told = train(workspace, places[0])
    assert nothing == {}
    assert f"there is none at {places[0]}" in told.splitlines()[-1]


@pytest.mark.slow
def test_a_list_with_mended_labels_is_trained_anew(tmp_path: Path) -> None:
    """The list is like cleaned.csv after an audit, which suggested other labels."""
    pictures = np.load(arrays(tmp_path / "a.npz", 2))
    for row, image in enumerate(pictures["images"]):
        Image.fromarray(image).save(tmp_path / f"{row}.png")

    def listed(labels: Any) -> Path:
        with (tmp_path / "cleaned.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("path", "label"), *((f"{row}.png", f"c{label}") for row, label in enumerate(labels))]
            )
        return tmp_path / "cleaned.csv"

    wrong = np.where(np.arange(60) % 5 == 0, 1 - pictures["labels"], pictures["labels"])
    before, _ = train(tmp_path / "workspace", listed(wrong))
    after, _ = train(tmp_path / "workspace", listed(pictures["labels"]))
    again, _ = train(tmp_path / "workspace", listed(wrong))
    assert before["cell"] != after["cell"]
    assert (before["mlflow_run_id"], before["cell"]) == (again["mlflow_run_id"], again["cell"])
    assert before["mlflow_run_id"] != after["mlflow_run_id"]


@pytest.mark.slow
def test_the_name_of_a_study_is_of_its_images(command: Command, tmp_path: Path) -> None:
    workspace, place, other = (
        Workspace(tmp_path / "workspace"),
        arrays(tmp_path / "a.npz", 2),
        arrays(tmp_path / "b.npz", 4),
    )
    (tmp_path / "one.yaml").write_text(SPACE)

    def sweep(root: Path) -> Any:
        words = ("--space", str(tmp_path / "one.yaml"), "--name", "s", "data.name=folder", f"data.root={root}")
        return command("sweep", *words, *PLAIN, "--json", at=workspace)

    first = sweep(place).json["runs"][0]
    refused = sweep(other)
    assert refused.code == 2
    assert "choose another --name" in refused.err.splitlines()[-1]
    assert "data.fingerprint was" in refused.err.splitlines()[-1]
    place.rename(tmp_path / "c.npz")
    assert command("resume", "s", "--json", at=workspace).json["runs"][0]["cell"] == first["cell"]
    moved = sweep(tmp_path / "c.npz").json["runs"][0]
    assert {**moved, "config": {}} == {**first, "config": {}}
