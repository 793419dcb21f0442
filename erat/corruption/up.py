"""UP, unlearnable (error-minimising) perturbations (Huang et al., 2021): images that leave nothing to learn."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.pgd import Budget, frozen, pgd
from erat.corruption.base import Craft, DataCorruption, shuffled_batches
from erat.corruption.classwise import descend

TRAIN_STEPS = 10  # M, between two passes over the perturbations
BATCH = 128
STEP_RATIO = 0.1
SAMPLE_STEPS = 20  # sample-wise: descent steps per image and pass
STOP_ERROR = 0.01
MAX_ROUNDS = 100


class Unlearnable(DataCorruption):
    """Alternates training on x + delta with descent of delta on the same loss, until the train error is 1 %."""

    kind = "up"
    norm = "linf"
    uses = "architecture"
    granularities = ("class", "sample")

    def perturb(self, craft: Craft) -> Tensor:
        network = craft.build().to(craft.images.device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        rows = craft.num_classes if craft.granularity == "class" else len(craft.images)
        delta = craft.images.new_zeros(rows, *craft.images.shape[1:])
        wearer = craft.labels if craft.granularity == "class" else torch.arange(rows, device=delta.device)
        training = shuffled_batches(craft, BATCH)
        for done in range(MAX_ROUNDS):
            for _ in range(TRAIN_STEPS):
                _train_step(network, optimizer, craft, delta, wearer, next(training))
            delta = self._pass(network, craft, delta)
            error = _error(network, craft, delta, wearer)
            craft.progress(f"train error {error:.1%}, stops at {STOP_ERROR:.0%}; round", done + 1, MAX_ROUNDS)
            if error <= STOP_ERROR:
                break
        return delta[wearer]

    def _pass(self, network: nn.Module, craft: Craft, delta: Tensor) -> Tensor:
        """Every perturbation once downhill, batch after batch over all images."""
        budget = Budget.of(craft.norm, craft.epsilon, delta)
        with frozen(network):
            for chosen in torch.arange(len(craft.images), device=delta.device).split(BATCH):
                images, labels = craft.images[chosen], craft.labels[chosen]
                if craft.granularity == "class":
                    delta = descend(network, images, labels, delta, budget, budget.epsilon * STEP_RATIO)
                    continue
                mine = Budget(budget.epsilon[chosen], budget.linf)
                moved = pgd(
                    network,
                    images,
                    partial(_agreement, labels),
                    mine,
                    steps=SAMPLE_STEPS,
                    step_size=mine.epsilon * STEP_RATIO,
                    start_NCHW=delta[chosen],
                )
                delta[chosen] = moved - images
        return delta


def _train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    craft: Craft,
    delta: Tensor,
    wearer: Tensor,
    chosen: Tensor,
) -> None:
    network.train()
    poisoned = (craft.images[chosen] + delta[wearer[chosen]]).clamp(0, 1)
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(network(poisoned), craft.labels[chosen]).backward()
    optimizer.step()


def _agreement(labels: Tensor, logits: Tensor) -> Tensor:
    """What error-minimising perturbations raise: the negative cross-entropy, per image."""
    return -F.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def _error(network: nn.Module, craft: Craft, delta: Tensor, wearer: Tensor) -> float:
    """Share of poisoned training images that the network gets wrong."""
    wrong = 0
    with frozen(network):
        for chosen in torch.arange(len(craft.images), device=delta.device).split(1000):
            poisoned = (craft.images[chosen] + delta[wearer[chosen]]).clamp(0, 1)
            wrong += int((network(poisoned).argmax(1) != craft.labels[chosen]).sum())
    return wrong / len(craft.images)


UP = Unlearnable()
