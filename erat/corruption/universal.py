"""UHP and UAP, universal hypocritical and adversarial perturbations (Tao et al., 2021).

One optimisation yields both: for each class c, a perturbation that makes the source network predict c. UHP adds to the
images of class c their own perturbation (a shortcut to the right label); UAP adds that of class c + 1 (a shortcut to a
wrong label). It looks at no label, so that sets that differ in their labels share it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erat.attacks.freezing import frozen
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption, ShuffledBatches
from erat.corruption.classwise import descend, shared_budget

STEP_RATIO = 0.2  # step size as a share of the budget, the same for every perturbation of the paper


def class_vectors(craft: Craft) -> Tensor:
    """Return for each class c the delta_c that lowers CE(clip(x + delta_c), c); shape (K, C, H, W).

    The optimisation starts from 0 and uses shuffled batches of images of all classes; the perturbations of all classes
    are updated at once.
    """
    delta = craft.images.new_zeros(craft.num_classes, *craft.images.shape[1:])
    budget = shared_budget(craft.norm, craft.epsilon, delta)
    step_size = budget.epsilon * STEP_RATIO
    targets = torch.arange(craft.num_classes, device=delta.device).repeat(craft.options["images_per_class"])
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
    """Universal hypocritical perturbations: images of class c get the perturbation of class c."""

    def perturb(self, craft: Craft) -> Tensor:
        """Give every image the perturbation of its own class."""
        return craft.shared("vectors", class_vectors)[craft.labels]


class UniversalAdversarial(kinds.UAP, DataCorruption):
    """Universal adversarial perturbations: images of class c get the perturbation of class (c + 1) mod K."""

    def perturb(self, craft: Craft) -> Tensor:
        """Give every image the perturbation of the class after its own."""
        return craft.shared("vectors", class_vectors)[(craft.labels + 1) % craft.num_classes]


UHP = UniversalHypocritical()
UAP = UniversalAdversarial()
