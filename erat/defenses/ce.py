"""CE: plain cross-entropy on weak views. The baseline that both corruptions break."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from erat.config import DefenseOptions
from erat.data.views import weak_view
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData
from erat.losses import cross_entropy


class CrossEntropyOptions(DefenseOptions):
    """Keys under `defense.` for `defense.name=ce`."""

    name: Literal["ce"] = "ce"
    weak: Literal["crop", "erase", "none"] = "crop"


class CrossEntropy(Defense):
    """Every sample keeps its given label."""

    Options = CrossEntropyOptions

    def __init__(self, options: CrossEntropyOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        self.networks = nn.ModuleDict({"main": task.build(0)})

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        return EpochPlan((Phase(torch.arange(len(data))),))

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        images = batch.images
        if self.options.weak != "none":
            images = weak_view(images, batch.random, kind=self.options.weak, flip=self.task.flip)
        terms = LossTerms()
        terms.add("ce", cross_entropy(self.networks["main"](images), batch.labels))
        return terms
