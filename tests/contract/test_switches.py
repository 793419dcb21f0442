"""Tests mixed precision, memory format and compilation: trainer switches that every registered defense honours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erat.config import RunConfig
from erat.data.types import CorruptedSet
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer
from erat.registry import DEFENSES

Config = Callable[..., RunConfig]
QUICK = {"train.lr": 0.01, "train.epochs": 2}  # an epoch of warm-up and one of what the defense does

NAMES = DEFENSES.names()
TRACED = ("ce", "erat")  # also where slow tests are left out: tracing takes seconds
each_defense = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def data(make_data: Callable[..., CorruptedSet]) -> CorruptedSet:
    return make_data(48)


@pytest.fixture(scope="module")
def plain(data: CorruptedSet, make_config: Config) -> Callable[[str], float]:
    """Return the loss of a defense's first epoch without any switch."""

    @cache
    def of(name: str) -> float:
        return trained(make_config(QUICK | {"defense.name": name}), data)[0].train_loss

    return of


def trained(config: RunConfig, data: CorruptedSet, look: Callable[..., None] | None = None) -> list[EpochReport]:
    trainer = Trainer(config, data)
    if look is not None:
        for module in trainer.defense.networks.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(look)
    reports = list(trainer.run())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.defense.parameters())
    return reports


@each_defense
def test_bf16_is_what_convolutions_compute_in(
    make_config: Config, data: CorruptedSet, plain: Callable[[str], float], name: str
) -> None:
    seen: set[torch.dtype] = set()

    def look(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.add(output.dtype)

    half = trained(make_config(QUICK | {"defense.name": name, "train.precision": "bf16"}), data, look)
    assert seen == {torch.bfloat16}, "in training, attacks, scoring and tests alike"
    assert half[0].train_loss == pytest.approx(plain(name), rel=0.05)


@each_defense
def test_channels_last_is_how_convolutions_see_their_images(
    make_config: Config, data: CorruptedSet, plain: Callable[[str], float], name: str
) -> None:
    wrong: list[str] = []

    def look(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if output.shape[1] > 1 and not output.is_contiguous(memory_format=torch.channels_last):
            wrong.append(f"{tuple(inputs[0].shape)}, {inputs[0].stride()}")

    other = trained(make_config(QUICK | {"defense.name": name, "train.channels_last": True}), data, look)
    assert not wrong
    assert other[0].train_loss == pytest.approx(plain(name), rel=0.01)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in TRACED)) for name in NAMES]
)
def test_compiled_networks_learn_the_same(
    make_config: Config, data: CorruptedSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks are really traced, but run without generated code, which takes minutes to make."""
    original = nn.Module.compile
    compiled: list[nn.Module] = []

    def traced(network: nn.Module, **options: Any) -> None:
        compiled.append(network)
        original(network, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    options = {"defense.name": name, "train.epochs": 2, "data.limit": 32}
    plain = trained(make_config(options), data)
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    other = trained(make_config(options | {"train.compile": True}), data)
    assert len(compiled) == len(Trainer(make_config(options), data).defense.networks)
    assert frames["ok"] >= len(compiled)
    assert [report.train_loss for report in other] == pytest.approx([report.train_loss for report in plain], rel=1e-3)
