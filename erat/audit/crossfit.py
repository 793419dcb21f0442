"""Makes out-of-fold predictions: each image is judged by a network trained without it, averaged over epochs.

A network that is trained on a wrong label comes to agree with that label; a network that has not seen the image cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erat.attacks.freezing import frozen
from erat.config import RunConfig
from erat.data.types import CorruptedSet, ImageSet
from erat.defenses.base import Defense
from erat.engine.evaluation import map_images
from erat.engine.report import EpochReport
from erat.engine.trainer import Trainer

JUDGED = 0.5  # predictions are averaged over this last share of the epochs: earlier networks have learnt too little

OnEpoch = Callable[[EpochReport], None]


def train_on(
    config: RunConfig, images: ImageSet, on_epoch: OnEpoch = lambda report: None, folder: Path | None = None
) -> Trainer:
    """Train a defense on all of `images` with their given labels; no images are left for validation.

    Args:
        on_epoch: called with the report of each epoch.
        folder: the folder of its checkpoint, from which training resumes; none: no checkpoints.
    """
    trainer = _trainer(config, images, images.take(torch.arange(1)), folder)
    for report in trainer.run():
        on_epoch(report)
    return trainer


def judge(
    config: RunConfig, images: ImageSet, held_out: Tensor, on_epoch: OnEpoch = lambda report: None
) -> tuple[Tensor, Defense]:
    """Train a defense without the held-out images and predict their classes.

    Args:
        images: all images with their given labels.
        held_out: bool (N,), true for the M images that training does not see.
        on_epoch: called with the report of each epoch.

    Returns:
        (softmax outputs for the held-out images in each of the E judged epochs, float32 (E, M, K); the trained
        defense).
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
    """Build the defense that was trained on `images` and load its weights."""
    defense = _trainer(config, images, images.take(torch.arange(1))).defense
    defense.load_state_dict(dict(state))
    return defense


def probabilities(defense: Defense, images: Tensor) -> Tensor:
    """Return the softmax outputs, float32 (N, K), for uint8 NCHW images."""
    with frozen(defense), torch.no_grad():
        return map_images(images, lambda batch: defense.predict(batch).float().softmax(1))


def _trainer(config: RunConfig, train: ImageSet, val: ImageSet, folder: Path | None = None) -> Trainer:
    """Build a trainer that takes the given labels for the true ones.

    The true labels are not known here, so what the trainer reports about them has no meaning.
    """
    return Trainer(config, CorruptedSet(train, train.labels, val, val), folder=folder)


@dataclass(frozen=True)
class Judgement:
    """The out-of-fold predictions of one way of training for all images.

    Attributes:
        probs: softmax outputs in the judged epochs, float32 (E, N, K).
    """

    probs: Tensor

    @property
    def mean(self) -> Tensor:
        """Return the predictions averaged over epochs, float64 (N, K)."""
        return self.probs.double().mean(0)


def merge(parts: Mapping[int, Tensor], fold: Tensor) -> Judgement:
    """Put the predictions of all folds, (E, M, K) for each, back into the order of the images."""
    first = next(iter(parts.values()))
    probs = first.new_empty(first.shape[0], len(fold), first.shape[2])
    for number, part in parts.items():
        probs[:, fold == number] = part
    return Judgement(probs)
