"""Defines CE, plain cross-entropy on weak views: the baseline that both corruptions break.

Options change its parts: adversarial images (see `at`), squeezed images (see `iss`), the worst of several strong views
(UEraser), and the loss of ELR.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from erat.defenses.base import Batch, Clock, Defense, LossTerms, Task
from erat.defenses.options import CrossEntropyOptions
from erat.defenses.perturbation import Perturber
from erat.defenses.viewing import Views
from erat.losses import cross_entropy
from erat.options import DefenseOptions


class CrossEntropy(Defense):
    """Plain training, in which every sample keeps its given label.

    State, with ELR only: `targets`, float32 (N, K), the running average of the predictions for each sample.
    """

    Options: ClassVar[type[DefenseOptions]] = CrossEntropyOptions
    targets: Tensor

    def __init__(self, options: CrossEntropyOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        self.networks = nn.ModuleDict({"main": task.build(0)})
        self.perturber = Perturber(options, task)
        self.views = Views(options, task)
        if options.criterion == "elr":
            self.register_buffer("targets", torch.zeros(task.num_samples, task.num_classes))

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return cross-entropy on strong, and if set perturbed, views; with ELR its regularisation as well."""
        network, labels = self.networks["main"], batch.labels
        images = self.views.strong(batch.images, batch.random, network, labels)
        strength = self.strength(clock)
        if self.options.adversarial and strength > 0:
            images = self.perturber(network, images, labels, batch.random, batch.indices, strength)
        logits = network(images)
        terms = LossTerms()
        terms.add("ce", cross_entropy(logits, labels.repeat(len(images) // len(labels))))
        if self.options.criterion == "elr":
            terms.add("elr", self._early_learning(logits[: len(labels)], batch.indices), self.options.elr_weight)
        return terms

    def strength(self, clock: Clock) -> float:
        """Return the share, in [0, 1], of its budget that the attack has at this time."""
        return 1.0

    def _early_learning(self, logits: Tensor, indices: Tensor) -> Tensor:
        """Return the mean of log(1 - <p, t>), which grows as the predictions p depart from earlier predictions t.

        Source: Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020.
        """
        probs = logits.float().softmax(1).clamp(1e-4, 1 - 1e-4)
        said = probs.detach() / probs.detach().sum(1, keepdim=True)
        target = self.options.elr_momentum * self.targets[indices] + (1 - self.options.elr_momentum) * said
        self.targets[indices] = target
        return (1 - (target * probs).sum(1)).clamp_min(1e-4).log().mean()
