"""Compares an epoch of batches from the trainer with a DataLoader over PIL images, on CIFAR-shaped images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from erat.config import build
from erat.data.augment.views import weak_view
from erat.data.types import CorruptedSet, ImageSet
from erat.defenses.base import Clock, Phase
from erat.engine.trainer import Trainer
from tests.benchmarks.augment import cifar_shaped
from tests.benchmarks.harness import Comparison, Work

SET, BATCH = 5000, 128


def comparisons() -> Iterator[Comparison]:
    """Yield the comparisons; both sides shuffle, crop and flip, and return float batches of 128 images with labels."""
    name, note = "epoch of batches", f"{SET} images, batches of {BATCH}, crop and flip"
    yield Comparison(name, "DataLoader over PIL images", None, partial(_pair, 0), note)
    wall = f"{note}; by wall clock"
    yield Comparison(name, "the same with 2 workers", None, partial(_pair, 2), wall, wall=True)


class PilSet(Dataset[tuple[Tensor, int]]):
    """A data set like torchvision's CIFAR10: an array whose images become PIL images and are transformed one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.arrays, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def _pair(workers: int) -> tuple[Work, Work]:
    images, labels = cifar_shaped(SET), torch.arange(SET) % 10
    loader = DataLoader(
        PilSet(images, labels),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return _ours(images, labels), lambda: [batch for batch, _ in loader]


def _ours(images: Tensor, labels: Tensor) -> Work:
    clean = {"defense.name": "ce", "corruption.data": "none", "corruption.labels": "none"}
    config = build("paper", clean | {"model.name": "small", "train.batch_size": BATCH})
    data = ImageSet(images, labels, tuple("0123456789"))
    few = data.take(torch.arange(10))
    made = Trainer(config, CorruptedSet(data, labels, few, few))

    def work() -> None:
        for batch, _ in made._batches.of(Phase(torch.arange(SET)), Clock(0)):
            weak_view(batch.images, batch.random, kind="crop", flip=True)

    return work
