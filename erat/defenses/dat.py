"""Defines DAT: two classifiers learn to disagree as much as they can, and the features learn to make them agree.

Source: Qu, Mo, Niu, "DAT: Training Deep Networks Robust to Label-Noise by Matching the Feature Distributions",
CVPR 2021. In spite of its name, it is not adversarial training on images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData, Update
from erat.defenses.options import DATOptions
from erat.defenses.perturbation import Perturber
from erat.defenses.viewing import Views
from erat.losses import cross_entropy
from erat.models.heads import cut_head

# Every other step fits all three parts to the given labels. The steps between make three updates, each of different
# weights: they fit the head alone, then move the rival away from it, then let the features bring both together again.
FIT = Update("fit", ("features", "head", "rival"))
HEAD, RIVAL, FEATURES = Update("head", ("head",)), Update("rival", ("rival",)), Update("features", ("features",))


class DAT(Defense):
    """A defense with one feature network and two heads, of which the first one predicts."""

    Options = DATOptions

    def __init__(self, options: DATOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        features, head = cut_head(task.build(0))
        parts: dict[str, nn.Module] = {"features": nn.Sequential(features, nn.Linear(head.in_features, 128))}
        parts |= {name: _head(task.num_classes) for name in ("head", "rival")}
        self.networks = nn.ModuleDict(parts)
        self.perturber = Perturber(options, task)
        self.views = Views(options, task)

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of the first head."""
        logits: Tensor = self.networks["head"](self.networks["features"](images))
        return logits

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        """Plan one phase over all samples, whose steps fit both heads, and move head, rival and features, in turn."""
        return EpochPlan((Phase(torch.arange(len(data)), turns=((FIT,), (HEAD, RIVAL, FEATURES))),))

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return what the update lowers: cross-entropies of the heads, or their discrepancy with either sign."""
        network = _Answer(self.networks["features"], self.networks["head"])
        images, labels = self.views.strong(batch.images, batch.random, network, batch.labels), batch.labels
        if self.options.adversarial:
            images = self.perturber(network, images, labels, batch.random, batch.indices)
            labels = labels.repeat(len(images) // len(labels))
        with torch.set_grad_enabled(batch.update in ("fit", "features")):
            features = self.networks["features"](images)
        terms = LossTerms()
        if batch.update in ("fit", "head"):
            terms.add("head", cross_entropy(self.networks["head"](features), labels))
        if batch.update == "fit":
            terms.add("rival", cross_entropy(self.networks["rival"](features), labels))
        if batch.update in ("rival", "features"):
            weight = -self.options.alpha if batch.update == "rival" else self.options.beta
            logits = self.networks["head"](features), self.networks["rival"](features)
            # One name for both updates, because they move the same quantity in opposite directions.
            terms.add("discrepancy", discrepancy(*logits, published=self.options.discrepancy == "published"), weight)
        return terms


class _Answer(nn.Module):
    """The features and the head as one network, which can be attacked."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def _head(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, num_classes))


def discrepancy(first_NK: Tensor, second_NK: Tensor, *, published: bool = False) -> Tensor:
    """Return the symmetric relative entropy of two predictions plus their entropies, from logits.

    It is least if both predictions agree and are certain.

    Args:
        published: compute it as the published code does, which takes a softmax over the batch and of that one over the
            classes, sums the divergence over the batch and averages the entropies over batch and classes.
    """
    p, q = first_NK.float().softmax(1), second_NK.float().softmax(1)
    if published:
        entropies = -(p * (p + 1e-6).log()).mean() - (q * (q + 1e-6).log()).mean()
        p, q = (logits.float().softmax(0).softmax(1) for logits in (first_NK, second_NK))
        return ((p - q) * (p.log() - q.log())).sum() + entropies
    # KL(p|q) + KL(q|p) + H(p) + H(q) is the sum of both cross-entropies.
    log_p, log_q = first_NK.float().log_softmax(1), second_NK.float().log_softmax(1)
    return -(p * log_q + q * log_p).sum(1).mean()
