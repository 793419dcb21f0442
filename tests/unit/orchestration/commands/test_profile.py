"""Tests `train --profile`: the parts of a step add up, and the files can be opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erat.config import build
from orchestration.commands import profile
from orchestration.commands.profile import LOSS_PARTS, STEP_PARTS, Profile, run_profile
from orchestration.storage.workspace import Workspace

TINY: dict[str, Any] = {
    "data.limit": 600,
    "corruption.data": "urp",
    "train.batch_size": 16,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "STEPS", 2)  # reading what the profiler has of five takes five times as long as these
        yield run_profile(build("demo", TINY), Workspace(tmp_path_factory.mktemp("workspace")))


def test_parts_of_a_step(made: Profile) -> None:
    assert set(made.parts) == set(STEP_PARTS)
    assert all(spent > 0 for spent in made.parts.values())
    assert sum(made.parts.values()) == pytest.approx(made.step)
    assert set(made.loss_parts) == set(LOSS_PARTS), "of the phase after warm-up, with unlabelled images"
    assert sum(made.loss_parts.values()) <= made.parts["loss"]
    assert max(made.loss_parts, key=lambda name: made.loss_parts[name]) == "perturb", "14 of 23 units"


def test_rows_say_shares(made: Profile) -> None:
    rows = {name: share for name, _, share in made.rows()}
    assert sum(rows[name] for name in STEP_PARTS) == pytest.approx(1)
    assert rows["loss"] == pytest.approx(sum(share for name, share in rows.items() if name.startswith("  ")))


def test_the_trace_and_the_table(made: Profile) -> None:
    trace, table = made.files
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"batch", "perturb", "strong views", "student", "backward", "update"} <= names
    text = table.read_text()
    assert "| perturb |" in text
    assert "aten::convolution" in text, "torch's own operators below"


def test_a_defense_without_parts_of_its_own(tmp_path: Path) -> None:
    made = run_profile(build("demo", TINY | {"defense.name": "ce"}), Workspace(tmp_path))
    assert made.loss_parts == {}
    assert [name for name, _, _ in made.rows()] == list(STEP_PARTS)
