"""Craft perturbations that a network cannot learn from even as it defends itself: the loop that REM and its like share.

The defense is a function that turns images into what the defended network trains on. A surrogate trains by it on
perturbed images, whose perturbations descend on the same loss. At the end every image gets one against the last
weights. Source: Fu et al., "Robust Unlearnable Examples" (ICLR 2022), with the settings of its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.pgd import Budget
from erat.corruption.base import Craft, DataCorruption, ShuffledBatches
from erat.corruption.surrogate import Surrogate
from erat.data.random import BatchRandom

# (network, images (B, C, H, W), labels (B,), random) -> (what is trained on, (V * B, C, H, W), its labels), with the
# gradient that leads back to the images.
Defended = Callable[[nn.Module, Tensor, Tensor, BatchRandom], tuple[Tensor, Tensor]]

BATCH = 128
RATE, DECAY, MILESTONES = 0.1, 0.1, (0.4, 0.8)  # of the surrogate: the rate falls after these shares of its steps
STEP_RATIO = 0.2  # step size as a share of the budget, of the perturbations


class RobustlyMinimised(DataCorruption):
    """The base of perturbations that minimise the loss of a network which defends itself."""

    def defended(self, craft: Craft) -> Defended:
        """Return the defense that is expected."""
        raise NotImplementedError

    def perturb(self, craft: Craft) -> Tensor:
        """Train the surrogate on perturbed images, then perturb every image against it."""
        defended, surrogate = self.defended(craft), Surrogate(craft.build().to(craft.images.device), lr=RATE)
        random, total = BatchRandom(craft.generator), len(craft.images)
        state, trained, done = craft.resume(), 0, 0
        batches = ShuffledBatches(craft, BATCH, state and state["batches"])
        delta = torch.zeros_like(craft.images)
        if state is not None:
            surrogate.restore(state)
            trained, done = state["trained"], state["done"]
            delta = state["delta"] if done else delta
        for step in range(trained + 1, craft.steps + 1):
            chosen = next(batches)
            images, labels = craft.images.index_select(0, chosen), craft.labels[chosen]
            noise = minimised(surrogate.network, craft, defended, images, labels, random)
            views, targets = defended(surrogate.network, (images + noise).clamp(0, 1), labels, random)
            passed = sum((step - 1) / craft.steps >= share for share in MILESTONES)
            surrogate.learn(views, targets, lr=RATE * DECAY**passed)
            craft.keep(**surrogate.state(), batches=batches.state(), trained=step, done=0)
            craft.progress("training against", step, craft.steps)
        for start in range(done, total, BATCH):
            part = slice(start, min(start + BATCH, total))
            images, labels = craft.images[part], craft.labels[part]
            delta[part] = minimised(surrogate.network, craft, defended, images, labels, random)
            craft.keep(**surrogate.state(), batches=batches.state(), trained=craft.steps, done=part.stop, delta=delta)
            craft.progress("images", part.stop, total)
        return delta


def minimised(
    network: nn.Module, craft: Craft, defended: Defended, images: Tensor, labels: Tensor, random: BatchRandom
) -> Tensor:
    """Return perturbations of images that lower the cross-entropy of the defended network, (B, C, H, W), detached.

    They start at a random point of the budget and descend in `descents` steps, each along the mean gradient over
    `draws` draws of the defense.
    """
    budget = Budget.of(craft.norm, craft.epsilon, images)
    delta, length = budget.draw(images, random), (budget.epsilon * STEP_RATIO)[:, None, None, None]
    with frozen(network):
        for _ in range(craft.options["descents"]):
            delta.requires_grad_(True)
            slope = torch.zeros_like(images)
            for _ in range(craft.options["draws"]):
                views, targets = defended(network, (images + delta).clamp(0, 1), labels, random)
                loss = F.cross_entropy(network(views), targets, reduction="sum")
                slope += torch.autograd.grad(loss, delta)[0]
            delta = budget.project(delta.detach() - length * budget.direction(slope))
    return delta
