"""Compares batched views with torchvision's, image by image, on CIFAR-shaped images; measures their share of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor

from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.data.types import to_float
from tests.benchmarks.harness import Comparison, Work
from tests.benchmarks.step import LARGE, step, trainer

SET, BATCH = 2000, 128
BOTH_FLOAT = "both from 8 bit to a float batch"


def comparisons() -> Iterator[Comparison]:
    """Yield the comparisons for strong views, weak views, and the share of strong views in a step of ResNet-18."""
    yield Comparison("strong views, batched", "torchvision v2, per tensor", 0.25, _strong_tensors, BOTH_FLOAT)
    yield Comparison("strong views, batched", "torchvision v1, per PIL image", 0.12, _strong_pil, BOTH_FLOAT)
    yield Comparison("crop and flip, batched", "torchvision v2, per tensor", None, _weak_tensors, BOTH_FLOAT)
    yield Comparison(
        "strong views of a step", "ERAT step, ResNet-18", 0.05, _share, note="4 + 4 images of 32 px: 16 strong views"
    )


def cifar_shaped(count: int) -> Tensor:
    """Make images, uint8, (count, 3, 32, 32), as smooth as photographs, so that no operation gets a blank image."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bilinear")
    return (smooth * 230 + 25 * torch.rand(count, 3, 32, 32, generator=draw)).to(torch.uint8)


def _batches() -> Callable[[], Tensor]:
    """Return a function that returns the next batch of the shuffled set, uint8, at each call."""
    images, draw = cifar_shaped(SET), torch.Generator().manual_seed(0)
    return lambda: images.index_select(0, torch.randint(SET, (BATCH,), generator=draw))


def _batched(view: Callable[[Tensor, BatchRandom], Tensor]) -> Work:
    batch, random = _batches(), BatchRandom(torch.Generator().manual_seed(0))
    return lambda: view(to_float(batch()), random)


def _per_tensor(transform: Callable[[Tensor], Tensor]) -> Work:
    batch = _batches()
    return lambda: to_float(torch.stack([transform(image) for image in batch()]))


def _strong(images: Tensor, random: BatchRandom) -> Tensor:
    return strong_view(images, random, policy="cifar10")


def _strong_tensors() -> tuple[Work, Work]:
    return _batched(_strong), _per_tensor(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))


def _strong_pil() -> tuple[Work, Work]:
    batch, transform = _batches(), transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)

    def theirs() -> Tensor:
        arrays = batch().permute(0, 2, 3, 1).numpy()
        return torch.stack([to_tensor(transform(Image.fromarray(array))) for array in arrays])

    return _batched(_strong), theirs


def _weak_tensors() -> tuple[Work, Work]:
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    return _batched(partial(weak_view, kind="crop", flip=True)), _per_tensor(transform)


def _share() -> tuple[Work, Work]:
    made, batch = trainer(LARGE)
    images = torch.cat([batch.images, batch.unlabelled])
    images = torch.cat([images, images])  # unchanged and perturbed images
    policy = made.config.flat()["defense.policy"]
    return lambda: strong_view(images, batch.random, policy=policy), step(LARGE)
