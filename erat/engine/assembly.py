"""A run's networks and its defense, put together as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from erat.config import RunConfig
from erat.defenses.base import Defense, Task
from erat.engine.recompute import checkpoint_activations
from erat.engine.seeding import derive
from erat.models import build_model
from erat.registry import DEFENSES

Build = Callable[[int], nn.Module]


def network_builder(
    config: RunConfig,
    num_classes: int,
    image_shape: Sequence[int],
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
) -> Build:
    """`Task.build`: the configured network, freshly initialised, with normalisation by `mean` and `std` in front.

    Args:
        image_shape: (C, H, W).
        mean, std: C values each, in [0, 1] units.
    """
    channels, size, _ = image_shape

    def build(offset: int) -> nn.Module:
        network = build_model(
            config.model.name,
            num_classes=num_classes,
            channels=channels,
            image_size=size,
            mean=mean,
            std=std,
            seed=derive(config.train.seed, "weights", offset),
        )
        return network.to(memory_format=torch.channels_last) if config.train.channels_last else network

    return build


def make_defense(
    config: RunConfig, num_samples: int, num_classes: int, image_shape: Sequence[int], build: Build
) -> Defense:
    """The configured defense for `num_samples` training images of `image_shape`, on the CPU.

    What a defense draws for parts of its own, such as heads, comes from torch's global generator.
    """
    task = Task(num_samples, num_classes, bool(config.data.flip), build, tuple(image_shape), config.model.name)
    defense = DEFENSES[config.defense.name](config.defense, task)
    if config.train.checkpoint_activations:
        checkpoint_activations(defense.networks)
    return defense
