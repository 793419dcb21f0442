"""Out-of-fold predictions: each image is judged by a network trained without it, averaged over epochs.

A network that has been trained on a wrong label comes to agree with it; one that has not seen the image cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erat.attacks.pgd import frozen
from erat.config import RunConfig
from erat.data.types import CorruptedSet, ImageSet
from erat.defenses.base import Defense
from erat.engine.evaluation import map_images
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer

JUDGED = 0.5  # the last share of the epochs, over which predictions are averaged: early ones know too little

OnEpoch = Callable[[EpochReport], None]


def train_on(
    config: RunConfig, images: ImageSet, on_epoch: OnEpoch = lambda report: None, folder: Path | None = None
) -> Trainer:
    """Train a defense on all of `images`, given labels; there is nothing to validate it on.

    Args:
        folder: where its checkpoint lies, from which it goes on; none: no checkpoints.
    """
    trainer = _trainer(config, images, images.take(torch.arange(1)), folder)
    for report in trainer.run():
        on_epoch(report)
    return trainer


def judge(
    config: RunConfig, images: ImageSet, held_out: Tensor, on_epoch: OnEpoch = lambda report: None
) -> tuple[Tensor, Defense]:
    """(softmax outputs float32 (E, M, K) of the judged epochs, the trained defense) for the images held out.

    Args:
        images: all images with their given labels.
        held_out: bool (N,), of which M are true: those that training does not see.
    """
    outside = images.take(held_out.nonzero().squeeze(1))
    trainer = _trainer(config, images.take((~held_out).nonzero().squeeze(1)), outside)
    first = config.train.epochs - math.ceil(JUDGED * config.train.epochs)
    probs = []
    for report in trainer.run():
        if report.epoch > first:
            probs.append(probabilities(trainer.defense, outside.images.to(trainer.device)).cpu())
        on_epoch(report)
    return torch.stack(probs), trainer.defense


def rebuild(config: RunConfig, images: ImageSet, state: Mapping[str, Tensor]) -> Defense:
    """The defense that was trained on `images`, from its weights."""
    defense = _trainer(config, images, images.take(torch.arange(1))).defense
    defense.load_state_dict(dict(state))
    return defense


def probabilities(defense: Defense, images: Tensor) -> Tensor:
    """Softmax outputs, float32 (N, K), of uint8 NCHW images."""
    with frozen(defense), torch.no_grad():
        return map_images(images, lambda batch: defense.predict(batch).float().softmax(1))


def _trainer(config: RunConfig, train: ImageSet, val: ImageSet, folder: Path | None = None) -> Trainer:
    """The true labels are not known: what the trainer reports of them is of no use here."""
    return Trainer(config, CorruptedSet(train, train.labels, val, val), folder=folder)


@dataclass(frozen=True)
class Judgement:
    """What one way of training says of all images, each from outside its fold.

    Attributes:
        probs: float32 (E, N, K), of the judged epochs.
    """

    probs: Tensor

    @property
    def mean(self) -> Tensor:
        """Averaged over epochs, float64 (N, K)."""
        return self.probs.double().mean(0)


def merge(parts: Mapping[int, Tensor], fold: Tensor) -> Judgement:
    """The folds' predictions (E, M, K), put back into the order of the images."""
    first = next(iter(parts.values()))
    probs = first.new_empty(first.shape[0], len(fold), first.shape[2])
    for number, part in parts.items():
        probs[:, fold == number] = part
    return Judgement(probs)
