"""UHP and UAP, universal hypocritical and adversarial perturbations (Tao et al., 2021).

One optimisation yields both: per class c a vector that makes the source network answer c. UHP gives class c its own
vector (a shortcut to the right label); UAP gives it the vector of class c + 1 (a shortcut to a wrong one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from erat.attacks.pgd import Budget, frozen
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption, ShuffledBatches
from erat.corruption.classwise import descend

IMAGES_PER_CLASS = 16  # that each class's vector sees in a step; all classes step at once
STEP_RATIO = 0.2  # of the budget, the ratio that every perturbation of the paper uses


def class_vectors(craft: Craft) -> Tensor:
    """Per class c the delta_c, from 0, that lowers CE(clip(x + delta_c), c) on batches of all images; (K, C, H, W)."""
    delta = craft.images.new_zeros(craft.num_classes, *craft.images.shape[1:])
    budget = Budget.of(craft.norm, craft.epsilon, delta)
    step_size = budget.epsilon * STEP_RATIO
    targets = torch.arange(craft.num_classes, device=delta.device).repeat(IMAGES_PER_CLASS)
    state = craft.resume()
    batches = ShuffledBatches(craft, len(targets), state and state["batches"])
    done = 0
    if state is not None:
        delta, done = state["delta"], state["done"]
    with frozen(craft.source()) as network:
        for step in range(done + 1, craft.steps + 1):
            images = craft.images.index_select(0, next(batches))
            delta = descend(network, images, targets[: len(images)], delta, budget, step_size)
            craft.keep(delta=delta, done=step, batches=batches.state())
            craft.progress("class vectors", step, craft.steps)
    return delta


class UniversalHypocritical(kinds.UHP, DataCorruption):
    """Class c wears the vector of class c."""

    def perturb(self, craft: Craft) -> Tensor:
        return class_vectors(craft)[craft.labels]


class UniversalAdversarial(kinds.UAP, DataCorruption):
    """Class c wears the vector of class (c + 1) mod K."""

    def perturb(self, craft: Craft) -> Tensor:
        return class_vectors(craft)[(craft.labels + 1) % craft.num_classes]


UHP = UniversalHypocritical()
UAP = UniversalAdversarial()
