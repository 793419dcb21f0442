"""Tests that an interrupted crafting ends with the same bits, from states in a workspace that is then deleted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erat.config import RunConfig
from erat.corruption import l2c, scratch, up
from erat.corruption.base import Craft, ShuffledBatches
from erat.corruption.pipeline import corrupted_set
from erat.corruption.samplewise import by_part, in_batches
from erat.corruption.scratch import Scratch
from erat.corruption.store import Store
from erat.data.types import ImageSet
from erat.registry import CORRUPTIONS

STEPS = {"uhp": 12, "uap": 12, "up": 4, "ap": 5, "aa": 5, "l2c": 4}
LONG = [
    pytest.param(kind, granularity, marks=[pytest.mark.slow] * (kind in ("up", "l2c") and granularity == "sample"))
    for kind in CORRUPTIONS.names()
    for granularity in CORRUPTIONS[kind].granularities
    if CORRUPTIONS[kind].Options.own_keys() or kind == "ar"  # the others are made in a single step
]


class Killed(Exception):  # noqa: N818
    """Raised to end a crafting half way."""


class Watch:
    """A progress listener that counts its calls and raises at the n-th."""

    def __init__(self, die_at: int | None = None) -> None:
        self.told: list[int] = []
        self._die_at = die_at

    def __call__(self, what: str, done: int, total: int) -> None:
        self.told.append(done)
        if len(self.told) == self._die_at:
            raise Killed


@pytest.fixture
def order(make_images: Callable[..., ImageSet], order: Craft) -> Craft:
    """Make an order with so many images that no step is a pass over all of them."""
    images = make_images(300, seed=1)
    return replace(order, images=images.images.float() / 255, labels=images.labels)


@pytest.fixture(autouse=True)
def _until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the last steps matter.

    UP makes all its rounds, L2C takes its last generator, what is crafted per image has three batches.
    """
    monkeypatch.setattr(up, "STOP_ERROR", -1.0)
    monkeypatch.setattr(up, "SAMPLE_STEPS", 3)
    real = l2c._Confusion._trial

    def trial(self: l2c._Confusion, learning: nn.Module | None, optimizer: torch.optim.Optimizer) -> float:
        real(self, learning, optimizer)
        steps = [float(state["step"]) for state in optimizer.state.values()]
        return 0.0 if learning is None else 1 / (1 + steps[0])

    monkeypatch.setattr(l2c._Confusion, "_trial", trial)
    for parts in (in_batches, by_part):
        monkeypatch.setattr(parts, "__defaults__", (110,))


def craft(order: Craft, kind: str, granularity: str, scratch: Scratch, watch: Watch) -> Tensor:
    """Craft as a new process would, to which an earlier process has left nothing but its scratch folder."""
    fresh = replace(
        order,
        granularity=granularity,
        generator=torch.Generator().manual_seed(0),
        options=dict(order.options) | {"steps": STEPS.get(kind, 4)},
        progress=watch,
        scratch=scratch,
    )
    return CORRUPTIONS[kind].perturb(fresh)


# --- every kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "granularity"), LONG)
def test_an_interrupted_crafting_goes_on_to_the_same_bits(
    order: Craft, tmp_path: Path, kind: str, granularity: str
) -> None:
    whole = Watch()
    undisturbed = craft(order, kind, granularity, Scratch(), whole)
    half = len(whole.told) // 2 + 1
    with pytest.raises(Killed):
        craft(order, kind, granularity, Scratch(tmp_path / "state.pt", seconds=0), Watch(half))
    rest = Watch()
    assert torch.equal(craft(order, kind, granularity, Scratch(tmp_path / "state.pt", seconds=0), rest), undisturbed)
    assert rest.told == whole.told[-len(rest.told) :]
    assert 0 < len(rest.told) <= len(whole.told) - half + 1 < len(whole.told)


@pytest.mark.parametrize(("kind", "granularity"), LONG)
def test_interrupted_at_every_step(order: Craft, tmp_path: Path, kind: str, granularity: str) -> None:
    """Each process gets two steps further, of which the second may be lost."""
    undisturbed = craft(order, kind, granularity, Scratch(), Watch())
    for deaths in itertools.count():
        try:
            delta = craft(order, kind, granularity, Scratch(tmp_path / "state.pt", seconds=0), Watch(2))
        except Killed:
            assert deaths < 40, "it gets nowhere"
        else:
            break
    assert deaths > 0
    assert torch.equal(delta, undisturbed)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "l2c")) for kind in STEPS])
def test_a_scratch_that_cannot_be_read_is_a_fresh_start(order: Craft, tmp_path: Path, kind: str) -> None:
    granularity = CORRUPTIONS[kind].granularities[0]
    whole, again = Watch(), Watch()
    undisturbed = craft(order, kind, granularity, Scratch(), whole)
    (tmp_path / "state.pt").write_bytes(b"half of it")
    assert torch.equal(craft(order, kind, granularity, Scratch(tmp_path / "state.pt", seconds=0), again), undisturbed)
    assert again.told == whole.told


# --- its parts -------------------------------------------------------------------------------------------------------


def test_a_scratch_keeps_the_last_state(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.pt"
    assert Scratch(path).load(torch.device("cpu")) is None
    scratch = Scratch(path, seconds=0)
    scratch.save({"delta": torch.ones(2), "done": 1})
    scratch.save({"delta": torch.zeros(2), "done": 2})
    state = Scratch(path).load(torch.device("cpu"))
    assert state is not None
    assert state["done"] == 2
    assert torch.equal(state["delta"], torch.zeros(2))


def test_a_damaged_scratch_costs_one_step(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "state.pt", seconds=0)
    for done in (1, 2):
        scratch.save({"delta": torch.full((99,), done), "done": done})
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.warns(UserWarning, match="going on from the one before it"):
        state = Scratch(tmp_path / "state.pt").load(torch.device("cpu"))
    assert state is not None
    assert state["done"] == 1


def test_a_scratch_is_not_written_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("erat.corruption.scratch.time.monotonic", lambda: now[0])
    scratch, written = Scratch(tmp_path / "state.pt", seconds=5), []
    for step in range(1, 13):
        now[0] += 1
        scratch.save({"done": step})
        state = scratch.load(torch.device("cpu"))
        written.append(state and state["done"])
    assert written == [None] * 4 + [5] * 5 + [10] * 3


def test_without_a_path_nothing_is_kept() -> None:
    scratch = Scratch(seconds=0)
    scratch.save({"done": 1})
    assert scratch.load(torch.device("cpu")) is None


def test_the_random_stream_goes_on_where_it_stood(order: Craft, tmp_path: Path) -> None:
    first = replace(order, scratch=Scratch(tmp_path / "state.pt", seconds=0))
    assert first.resume() is None
    torch.rand(7, generator=first.generator)
    first.keep(done=3)
    expected = torch.rand(5, generator=first.generator)
    second = replace(first, generator=torch.Generator().manual_seed(0))
    state = second.resume()
    assert state is not None
    assert state["done"] == 3
    assert torch.equal(torch.rand(5, generator=second.generator), expected)


def test_shuffled_batches_pass_through_all_images_again_and_again(order: Craft) -> None:
    batches = ShuffledBatches(order, 110)
    passes = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    for order_of_pass in passes:
        assert sorted(order_of_pass.tolist()) == list(range(300)), "110, 110 and the remaining 80"
    assert not torch.equal(*passes)


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4])
def test_shuffled_batches_go_on_from_their_state(order: Craft, taken: int) -> None:
    first = ShuffledBatches(order, 110)
    for _ in range(taken):
        next(first)
    state, stream = first.state(), order.generator.get_state()
    expected = [next(first) for _ in range(5)]
    later = replace(order, generator=torch.Generator())
    later.generator.set_state(stream)
    second = ShuffledBatches(later, 110, state)
    assert all(torch.equal(next(second), batch) for batch in expected)


# --- through the store -----------------------------------------------------------------------------------------------


def workspaces(root: Path) -> list[Path]:
    return list(root.glob(".*.work"))


@pytest.mark.parametrize("kind", ["up", "uhp", "l2c"])
def test_a_workspace_is_kept_until_the_set_is_made(
    configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(scratch, "SECONDS", 0.0)
    config = configure({"corruption.data": kind, "corruption.steps": 5})
    whole, rest = Watch(), Watch()
    undisturbed = corrupted_set(config, Store(tmp_path / "undisturbed"), whole)
    assert not workspaces(tmp_path / "undisturbed")
    root = tmp_path / "killed"
    with pytest.raises(Killed):
        corrupted_set(config, Store(root), Watch(len(whole.told) - 2))
    (workspace,) = workspaces(root)
    assert (workspace / "state.pt").is_file()
    assert not list(root.glob("images-*"))
    data = corrupted_set(config, Store(root), rest)
    assert torch.equal(data.train.images, undisturbed.train.images)
    assert len(rest.told) < len(whole.told)
    assert not workspaces(root)


@pytest.mark.slow
def test_another_set_does_not_go_on_from_this_one_s_workspace(
    configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "SECONDS", 0.0)
    with pytest.raises(Killed):
        corrupted_set(configure({"corruption.data": "up", "corruption.steps": 4}), Store(tmp_path), Watch(3))
    changes: list[dict[str, Any]] = [{"corruption.steps": 5}, {"corruption.seed": 1}, {"corruption.epsilon": 0.05}]
    for change in changes:
        watch = Watch()
        corrupted_set(configure({"corruption.data": "up", "corruption.steps": 4} | change), Store(tmp_path), watch)
        assert watch.told[0] == 1, "from its beginning"
    assert len(workspaces(tmp_path)) == 1, "and this one's is still there"
