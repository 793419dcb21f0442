"""Provides what tests of the crafting share: a trained source network, and orders and configurations that are quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erat.config import RunConfig
from erat.corruption.base import Craft
from erat.corruption.kinds import AdaptiveOptions, CUDAOptions, L2COptions, LSPOptions, PILOptions, UniversalOptions
from erat.data.fingerprint import Fingerprints
from erat.data.types import ImageSet
from erat.models import build_model
from erat.registry import CORRUPTIONS

# A brief defense that REM and the adaptive poisoner expect.
ROBUST: dict[str, Any] = {
    "descents": 2,
    "draws": 1,
    "attack_steps": 1,
    "attack_share": 0.5,
    "flip": True,
    "policy": "cifar10",
    "epsilon_inf": 0.05,
    "epsilon_2": 0.5,
    "linear_epochs": 2,
}
# Far shorter than a real crafting.
BRIEF: dict[str, dict[str, Any]] = {
    "up": {"corruption.steps": 2},
    "uhp": {"corruption.steps": 10},
    "uap": {"corruption.steps": 10},
    "ap": {"corruption.steps": 5},
    "aa": {"corruption.steps": 5},
    "l2c": {"corruption.steps": 2, "corruption.width": 4, "corruption.lr": 1e-3},
    "tue": {"corruption.steps": 2},
    "pil": {"corruption.steps": 5, "corruption.linear_epochs": 2},
    "rem": {"corruption.steps": 2, "corruption.descents": 3, "corruption.draws": 1, "corruption.attack_steps": 1},
    "adaptive": {"corruption.steps": 2, "corruption.descents": 3, "corruption.draws": 1, "corruption.attack_steps": 1},
}


def network(seed: int = 0) -> nn.Module:
    return build_model("small", 4, 1, 8, [0.5], [0.25], seed)


@pytest.fixture(scope="session")
def trained_source(make_images: Callable[..., ImageSet]) -> nn.Module:
    """Train a network that knows the clean images after a few steps."""
    images = make_images(200, seed=5)
    pixels, trained = images.images.float() / 255, network()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(trained(pixels), images.labels).backward()
        optimizer.step()
    assert (trained.eval()(pixels).argmax(1) == images.labels).float().mean() > 0.9
    optimizer.zero_grad(set_to_none=True)
    return trained


@pytest.fixture
def source(trained_source: nn.Module) -> nn.Module:
    return deepcopy(trained_source)


@pytest.fixture
def order(make_images: Callable[..., ImageSet], source: nn.Module) -> Craft:
    """Make an order for 60 images of four classes, with an l_2 budget of 1 and options for any kind."""
    images = make_images(60, seed=1)
    return Craft(
        images=images.images.float() / 255,
        labels=images.labels,
        num_classes=4,
        norm="l2",
        epsilon=1.0,
        granularity="class",
        generator=torch.Generator().manual_seed(0),
        build=network,
        source=lambda: source,
        options={
            **UniversalOptions().own(),
            **L2COptions().own(),
            **LSPOptions().own(),
            **CUDAOptions().own(),
            **PILOptions().own(),
            **AdaptiveOptions().own(),
            **ROBUST,
            **{"steps": 6, "attack": "apgd-ce", "width": 4, "lr": 1e-3},
        },
    )


@pytest.fixture
def configure(toy: object, make_config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Return `configure({"corruption.data": "up"})`, which configures a brief crafting of the toy set.

    The defaults are UHP and half of the labels wrong.
    """

    def make(overrides: Mapping[str, Any] | None = None) -> RunConfig:
        given = {"corruption.data": "uhp", "corruption.labels": "symmetric"} | dict(overrides or {})
        kind = given["corruption.data"]
        base = {
            "data.name": "toy",
            "corruption.epsilon": None,
            "corruption.norm": None,
            "val.fraction": 0.2,
            **BRIEF.get(kind, {}),
        }
        if kind != "none" and CORRUPTIONS[kind].uses == "trained network" and "corruption.source_weights" not in given:
            base["corruption.source_epochs"] = 1
        if given["corruption.labels"] == "symmetric":
            base["corruption.rate"] = 0.5
        return Fingerprints()(make_config(base | given))

    return make
