"""Build the networks and the defense of a run from its configuration."""

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
    """Return the function for `Task.build`, which makes the configured network for a seed offset.

    Each call returns a newly initialised network that first normalises its input by `mean` and `std`.

    Args:
        num_classes: the number of classes K.
        image_shape: (C, H, W).
        mean, std: C values each, in pixel units of 1.0.
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
    """Return the configured defense for `num_samples` training images of shape `image_shape` (C, H, W), on the CPU.

    Random values that a defense draws for its own parts, such as heads, come from torch's global generator.
    """
    task = Task(num_samples, num_classes, bool(config.data.flip), build, tuple(image_shape), config.model.name)
    defense = DEFENSES[config.defense.name](config.defense, task)
    if config.train.checkpoint_activations:
        checkpoint_activations(defense.networks)
    return defense


def rebuild_defense(
    config: RunConfig, num_classes: int, image_shape: Sequence[int], weights: Mapping[str, Tensor]
) -> Defense:
    """Return the configured defense with these weights in its networks, on the CPU and in eval mode, for prediction.

    The state that a training keeps for each image, such as its last labelled set, is not restored.

    Args:
        num_classes: the number of classes K.
        image_shape: (C, H, W).
        weights: the state dictionary of `defense.networks`.

    Raises:
        RuntimeError: the weights belong to other networks.
    """
    half = [0.5] * image_shape[0]  # placeholders: the weights contain the mean and the standard deviation
    with seeded(0):  # leaves torch's global generator, from which some parts draw, unchanged
        build = network_builder(config, num_classes, image_shape, half, half)
        defense = make_defense(config, 1, num_classes, image_shape, build)
    defense.networks.load_state_dict(dict(weights))
    return defense.eval()
