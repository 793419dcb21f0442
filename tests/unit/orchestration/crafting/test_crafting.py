"""Tests crafting as users see it: the sets that are needed, their progress, the sheet, and the runs of --verify."""

from __future__ import annotations

import io
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import orchestration.cluster
from erat.config import RunConfig, build
from erat.errors import UserError
from orchestration.commands import verify
from orchestration.commands.preview import preview
from orchestration.crafting.jobs import Crafting, craft_here
from orchestration.crafting.sets import by_images, distinct_sets, missing_sets, placed, set_name
from orchestration.report import crafting
from orchestration.report.crafting import craft_view
from orchestration.storage.workspace import Workspace

TINY: dict[str, Any] = {
    "data.limit": 100,
    "corruption.source_epochs": 1,
    "corruption.steps": 2,
    "corruption.labels": "symmetric",
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replace the clock with one that advances only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(crafting.time, "monotonic", lambda: now[0])

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


def config(kind: str, **changes: Any) -> RunConfig:
    return build("demo", {**TINY, "corruption.data": kind, **changes}, quiet=True)


# --- which sets -------------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_training_alone_share_a_set(workspace: Workspace) -> None:
    runs = [config("urp"), config("urp", **{"train.seed": 3}), config("urp", **{"corruption.seed": 1})]
    assert len(distinct_sets(runs)) == 2
    assert len(missing_sets(runs, workspace)) == 2
    craft_here(runs[0], workspace, silent)
    assert missing_sets(runs, workspace) == [runs[2]]


def test_a_set_has_a_name_that_says_what_it_is() -> None:
    assert set_name(config("uhp")) == "uhp l2 1.25"
    assert set_name(config("up", **{"corruption.seed": 3, "corruption.epsilon": "8/255"})) == "up linf 0.0314 seed 3"
    assert set_name(config("none")) == "symmetric labels"
    assert set_name(config("cuda", **{"corruption.seed": 3})) == "cuda unbounded seed 3"
    assert set_name(config("ops", **{"corruption.epsilon": 5})) == "ops l0 5"


def test_sets_of_the_same_images_are_crafted_together() -> None:
    noises = [config("urp", **{"corruption.labels": labels}) for labels in ("symmetric", "instance")]
    others = [config("urp", **{"corruption.epsilon": 1}), config("none"), config("none", **{"corruption.rate": 0.2})]
    assert by_images([noises[0], others[0], *others[1:], noises[1]]) == [
        [noises[0], noises[1]],
        [others[0]],
        [others[1]],
        [others[2]],
    ]


# --- beside the runs --------------------------------------------------------------------------------------------------


def silent(name: str, what: str, done: int, total: int) -> None: ...


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace Ray's tasks.

    The first entry is to be called with the number of a group that is done; an error that is put on top is raised.
    """
    ended: list[Any] = []

    def craft_sets(groups: Any, workspace: Workspace, told: Any, ready: Callable[[int], None], given_up: Any) -> None:
        ended.append(ready)
        while not given_up():
            if isinstance(ended[-1], BaseException):
                raise ended[-1]
            time.sleep(0.01)

    module = types.ModuleType("orchestration.cluster.crafting")
    module.craft_sets = craft_sets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "orchestration.cluster.crafting", module)
    monkeypatch.setattr(orchestration.cluster, "crafting", module, raising=False)
    return ended


def until(reached: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_each_run_begins_when_its_set_is_there(workspace: Workspace, tasks: list[Any]) -> None:
    up, uhp = config("up"), config("uhp")
    there = config("none", **{"corruption.labels": "none"})
    crafting = Crafting([up, uhp], workspace)
    ready = crafting.gate([there, up, uhp, up], [uhp])
    with crafting.running(silent):
        until(lambda: bool(tasks))
        assert [ready(number) for number in range(5)] == [True, False, False, False, False]
        tasks[0](0)
        assert [ready(number) for number in range(5)] == [True, True, False, True, False]
        tasks[0](1)
        assert all(ready(number) for number in range(9)), "numbers after the points are Optuna's"


def test_what_crafting_raised_is_raised_where_a_run_is_asked_for(workspace: Workspace, tasks: list[Any]) -> None:
    crafting = Crafting([config("up")], workspace)
    ready = crafting.gate([config("up")], [])
    with crafting.running(silent):
        until(lambda: bool(tasks))
        tasks.append(UserError("no such weights"))
        with pytest.raises(UserError, match="no such weights"):
            until(lambda: ready(0))


def test_small_sets_leave_devices_to_the_runs() -> None:
    small = config("uap", **{"resources.gpu": 0.5})
    assert (placed(small).resources.gpu, placed(small).resources.device) == (0.0, "cpu")
    assert placed(small).digest() == small.digest()
    large = build("demo", {"data.name": "cifar10", "corruption.data": "uap", "resources.gpu": 1.0}, quiet=True)
    assert placed(large) == large
    few = build("demo", large.flat() | {"data.limit": 1000}, quiet=True)
    assert placed(few).resources.gpu == 0.0
    plain = config("uap")
    assert placed(plain) == plain, "where runs have no device, nothing is taken from them"


# --- progress ---------------------------------------------------------------------------------------------------------


def test_lines_are_few_and_say_the_time_left(clock: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with craft_view(stream) as view:
        for done in range(1, 101):
            view.show("uhp", "class vectors", done, 100)
            clock(0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "crafting uhp: class vectors 1/100"
    assert lines[1] == "crafting uhp: class vectors 11/100, 0:44 left", "10 done in 5 seconds, 89 to go"
    assert lines[-1] == "crafting uhp: class vectors 100/100"
    assert len(lines) == 11, "one in 5 seconds, and the last"


def test_a_crafting_that_goes_on_counts_from_where_it_was(clock: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with craft_view(stream) as view:
        view.show("uap", "class vectors", 80, 100)
        clock(10)
        view.show("uap", "class vectors", 90, 100)
    assert stream.getvalue().splitlines()[1].endswith("90/100, 0:10 left")


def test_what_was_said_is_not_said_again() -> None:
    """The end of a Ray task is read from its file each time that somebody looks."""
    stream = io.StringIO()
    with craft_view(stream) as view:
        for _ in range(3):
            view.show("uhp", "class vectors", 100, 100)
    assert len(stream.getvalue().splitlines()) == 1


def test_two_sets_side_by_side_have_lines_of_their_own(clock: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with craft_view(stream) as view:
        view.show("ap", "targeted images", 250, 1000)
        view.show("aa", "apgd-ce on images", 250, 1000)
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["crafting ap", "crafting aa"]


# --- the sheet --------------------------------------------------------------------------------------------------------


def test_a_sheet_shows_every_kind_and_the_transitions(workspace: Workspace) -> None:
    path = preview([config("urp"), config("uhp")], workspace, silent)
    assert path == workspace.report(path.parent.name) / "preview.png"
    one, both = _pixels(preview([config("urp")], workspace, silent)), _pixels(path)
    assert both.shape[0] > one.shape[0] + 100, "a band for each"
    assert both.std() > 10


def test_a_sheet_of_many_colour_classes(workspace: Workspace, register: Callable[..., None], make_images: Any) -> None:
    """Ten of 30 classes are shown; colours stay colours; without noise the heat map is the diagonal."""
    from dataclasses import replace

    import torch

    from erat.data.types import ImageSet, SourceFacts
    from erat.registry import DATASETS

    class Many:
        facts = SourceFacts(epsilon={"linf": 0.1, "l2": 1.0}, flip=False, policy="svhn")

        def load(self, config: Any) -> tuple[ImageSet, ImageSet]:
            grey = make_images(120, classes=30)
            colour = replace(grey, images=torch.cat([grey.images, grey.images // 2, grey.images // 4], dim=1))
            return colour, colour

    register(DATASETS, "many", Many())
    path = preview(
        [config("urp", **{"data.name": "many", "data.image_size": 8, "corruption.labels": "none"})], workspace, silent
    )
    pixels = _pixels(path).astype(int)
    assert (abs(pixels[..., 0] - pixels[..., 1]) > 30).any()


def _pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


# --- --verify ---------------------------------------------------------------------------------------------------------


BEYOND = ("adaptive", "ar", "cuda", "lsp", "ops", "pil", "rem", "tue")


def test_every_kind_is_verified_beside_none() -> None:
    spec = verify.specification("demo", {}, ["none", "symmetric:0.4"], [0, 1])
    runs, _ = spec.planned(0)
    kinds = [run.corruption.data for run in runs]
    assert list(dict.fromkeys(kinds)) == ["none", *verify.PAPER_ORDER, *BEYOND]
    assert len(runs) == (8 + len(BEYOND)) * 2 * 2
    assert {run.defense.name for run in runs} == {"ce"}
    assert {(run.corruption.labels, run.corruption.rate) for run in runs} == {("none", 0.0), ("symmetric", 0.4)}
    assert {(run.corruption.seed, run.train.seed) for run in runs} == {(0, 0), (1, 1)}
    assert {run.corruption.epsilon for run in runs if run.corruption.data == "uhp"} == {1.25}, "the preset's own"


def test_those_named_alone() -> None:
    runs = verify.specification("demo", {"corruption.data": "up, uap", "train.epochs": 2}, ["none"], [0]).planned(0)[0]
    assert [run.corruption.data for run in runs] == ["none", "up", "uap"]
    assert {run.train.epochs for run in runs} == {2}


@pytest.mark.parametrize(
    ("overrides", "labels", "said"),
    [
        ({"corruption.data": "up,uapp"}, ["none"], "unknown data corruption 'uapp': did you mean uap"),
        ({}, ["symetric:0.6"], "corruption.labels: input should be"),
        ({}, ["symmetric:much"], "--labels must be none or KIND:RATE, such as symmetric:0.6, got 'symmetric:much'"),
        ({}, ["symmetric:1.6"], "corruption.rate: input should be less than or equal to 1, got 1.6"),
    ],
)
def test_what_it_refuses(overrides: dict[str, Any], labels: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        verify.specification("demo", overrides, labels, [0])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
