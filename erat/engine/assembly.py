"""A run's networks and its defense, put together as the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from erat.config import RunConfig
from erat.defenses.base import Defense, Task
from erat.engine.recompute import checkpoint_activations
from erat.models import build_model
from erat.registry import DEFENSES
from erat.seeding import derive, seeded

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


def rebuild_defense(
    config: RunConfig, num_classes: int, image_shape: Sequence[int], weights: Mapping[str, Tensor]
) -> Defense:
    """Return the configured defense with these weights of its networks, on the CPU, to predict with.

    What a training remembers of each image, such as its last labelled set, is not among them.

    Args:
        weights: state of `defense.networks`.

    Raises:
        RuntimeError: the weights are those of other networks.
    """
    half = [0.5] * image_shape[0]  # the weights bring their own mean and deviation
    with seeded(0):  # torch's global generator, which some parts draw from, stays where it is
        build = network_builder(config, num_classes, image_shape, half, half)
        defense = make_defense(config, 1, num_classes, image_shape, build)
    defense.networks.load_state_dict(dict(weights))
    return defense.eval()
