"""PIL, perturbation-induced linearisation (Liu, Chen, Zhang, "Perturbation-Induced Linearization", ICLR 2026).

A linear rule without a constant is trained on the clean images. Each perturbation is then such that the rule reads the
class from the perturbation alone and nothing from the image less the perturbation, which is what is published.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.norms import per_image
from erat.attacks.pgd import Budget
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.samplewise import by_part
from erat.corruption.surrogate import Surrogate
from erat.data.random import BatchRandom

RATE = 0.003  # of the linear rule, as published
MOMENTUM = 0.9  # this project's choice
BATCH = 128
SHORTCUT = 0.9  # weight of the class in the perturbation; the rest is that of its absence in the image
STEP_RATIO = 0.1  # step size as a share of the budget


class LinearisingPerturbation(kinds.PIL, DataCorruption):
    """Perturbations from a linear surrogate."""

    def perturb(self, craft: Craft) -> Tensor:
        """Train the linear rule on the clean images, then perturb each image by itself."""
        rule = _rule(craft)  # before anything is resumed: from the same draws each time

        def less(part: slice) -> Tensor:
            return -_read(rule, craft, craft.images[part], craft.labels[part])

        return by_part(craft, "linearised images", less)


def _rule(craft: Craft) -> Tensor:
    """Return the weights of a linear rule that is trained on the clean images, (K, C * H * W)."""
    values = craft.images[0].numel()
    rule = nn.Linear(values, craft.num_classes, bias=False, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        bound = 1 / math.sqrt(values)
        rule.weight.copy_((2 * torch.rand(rule.weight.shape, generator=craft.generator) - 1) * bound)
    surrogate = Surrogate(rule.to(craft.images.device), lr=RATE, momentum=MOMENTUM, weight_decay=0.0)
    for _ in range(craft.options["linear_epochs"]):
        order = torch.randperm(len(craft.images), generator=craft.generator).to(craft.images.device)
        for chosen in order.split(BATCH):
            surrogate.learn(craft.images[chosen].flatten(1), craft.labels[chosen])
    return rule.weight.detach()


def _read(rule_KD: Tensor, craft: Craft, images: Tensor, labels: Tensor) -> Tensor:
    """Return the perturbations that are taken off the images, (B, C, H, W), within the budget and the range."""
    budget = Budget.of(craft.norm, craft.epsilon, images)
    length = per_image(budget.epsilon * STEP_RATIO)
    delta = budget.draw(images, BatchRandom(craft.generator))
    for _ in range(craft.steps):
        delta = budget.project(delta - length * budget.direction(_slope(rule_KD, delta, images, labels)))
        delta = delta.clamp(images - 1, images)
    return delta


def _slope(rule_KD: Tensor, delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        point = delta.detach().requires_grad_(True)
        read = point.flatten(1) @ rule_KD.T
        left = (images - point).flatten(1) @ rule_KD.T
        # The relative entropy of the uniform distribution to the rule's, but for a constant.
        loss = (
            SHORTCUT * F.cross_entropy(read, labels, reduction="sum")
            - (1 - SHORTCUT) * left.log_softmax(1).mean(1).sum()
        )
        (slope,) = torch.autograd.grad(loss, point)
    return slope


PIL = LinearisingPerturbation()
