"""Build the networks and the defense of a run from its configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from erat.config import RunConfig
from erat.data.types import ImageSet
from erat.defenses.base import Defense, Task
from erat.engine.parallel import Ranks
from erat.engine.recompute import checkpoint_activations
from erat.errors import UserError
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


def choose_device(config: RunConfig) -> torch.device:
    """Return the device that `resources.device` asks for.

    Raises:
        UserError: CUDA is requested but not available.
    """
    wanted = config.resources.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("resources.device=cuda, but torch sees no CUDA device here; allowed: cpu, auto")
    use_cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def defense_for_training(config: RunConfig, train: ImageSet, ranks: Ranks, device: torch.device) -> Defense:
    """Return the configured defense for training on these images, on the device.

    Batch statistics are those of all workers, and networks are compiled, where the configuration says so.
    """
    shape = train.images.shape[1:]
    build = network_builder(config, train.num_classes, shape, *channel_statistics(train.images))
    with seeded(derive(config.train.seed, "parts")):
        defense = make_defense(config, len(train), train.num_classes, shape, build).to(device)
    if ranks.workers > 1 and config.train.sync_batchnorm:
        from erat.engine.synchronised import synchronise  # here: its torch.compiler loads slowly

        synchronise(defense, device)
    if device.type != "cuda":
        for key, used in (
            ("cuda_graphs", config.train.cuda_graphs),
            ("precision=tf32", config.train.precision == "tf32"),
        ):
            if used:
                warnings.warn(f"train.{key} has no use on the CPU", stacklevel=2)
    if config.train.compile:
        from erat.engine.compiling import compile_network  # here: it loads the compiler

        for name, network in defense.networks.items():
            compile_network(network, name, cuda_graphs=config.train.cuda_graphs)
    return defense


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


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation per channel, float32 (C,) each, in pixel units of 1.0.

    Both are computed from the histogram of grey levels, which is exact and needs no float copy of the whole set.

    Args:
        images: uint8 (N, C, H, W).
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten().cpu(), minlength=256) for channel in images.unbind(1)])
    shares, pixels = counts.double() / counts.sum(1, keepdim=True), images[:, 0].numel()
    mean = shares @ levels
    variance = (shares @ levels.square() - mean.square()) * pixels / max(pixels - 1, 1)
    return mean.float(), variance.clamp_min(0).sqrt().float().clamp_min(1e-3)
