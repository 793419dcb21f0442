"""Measures selection: scoring all images, compared with the raw evaluation passes; rebalancing, in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from erat.attacks.freezing import frozen
from erat.config import build
from erat.data.types import CorruptedSet, ImageSet, to_float
from erat.engine.evaluation import BATCH
from erat.engine.trainer import Trainer
from erat.selection import scores, select
from tests.benchmarks.augment import cifar_shaped
from tests.benchmarks.harness import Comparison, Work

SIZES = {"small": 4000, "resnet18": 200}  # number of images; real runs use networks such as ResNet-18
SAMPLES, LIMIT_MS = 50_000, 20.0


def comparisons() -> Iterator[Comparison]:
    """Yield comparisons for scoring by two networks and for rebalancing of two numbers of classes."""
    for network, count in SIZES.items():
        yield Comparison(
            f"scoring pass, {network}",
            "its raw passes",
            1.03,
            partial(_scoring, network, count),
            note=f"{count} images of 32 px, from 8 bit to scores; raw: float batches of at most {BATCH}",
            repeats=11,
        )
    for classes in (10, 100):
        yield Comparison(
            f"selection of {SAMPLES} samples, {classes} classes",
            "one stable sort of the scores",
            None,
            partial(_rebalancing, classes),
            repeats=21,
            limit_ms=LIMIT_MS,
        )


def _scoring(network: str, count: int) -> tuple[Work, Work]:
    images, labels = cifar_shaped(count), torch.arange(count) % 10
    clean = {"corruption.data": "none", "corruption.labels": "none", "model.name": network}
    data = ImageSet(images, labels, tuple("0123456789"))
    few = data.take(torch.arange(10))
    made = Trainer(build("paper", clean), CorruptedSet(data, labels, few, few))
    model, batches = made.defense.networks["main"], to_float(images).split(BATCH)

    def scoring() -> None:
        scores(made._train.map(lambda part: model(part).softmax(1)), made._train.labels)

    def raw() -> None:
        with frozen(model), torch.no_grad():
            for part in batches:
                model(part)

    return scoring, raw


def _rebalancing(classes: int) -> tuple[Work, Work]:
    draw = torch.Generator().manual_seed(0)
    values = 2 * torch.rand(SAMPLES, generator=draw)
    labels = torch.randint(classes, (SAMPLES,), generator=draw)
    before = torch.rand(SAMPLES, generator=draw) < 0.5
    return lambda: select(values, labels, before, classes, eta=0.1), lambda: values.argsort(stable=True)
