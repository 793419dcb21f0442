"""UP, unlearnable (error-minimising) perturbations (Huang et al., 2021): images that leave nothing to learn."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.attacks.pgd import budget_of, pgd
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption, ShuffledBatches
from erat.corruption.classwise import descend, shared_budget
from erat.corruption.surrogate import Surrogate
from erat.losses import label_gain

TRAIN_STEPS = 10  # M, the training steps of the network between two passes over the perturbations
BATCH = 128
STEP_RATIO = 0.1
SAMPLE_STEPS = 20  # descent steps per image and pass, for sample-wise perturbations
STOP_ERROR = 0.01


class Unlearnable(kinds.UP, DataCorruption):
    """Unlearnable perturbations.

    Training on x + delta alternates with descent of delta on the same loss, until the training error is at most 1 %.
    """

    def perturb(self, craft: Craft) -> Tensor:
        """Train a network and the perturbations in turn, per class or per image as the order says."""
        surrogate = Surrogate(craft.build().to(craft.images.device))
        network = surrogate.network
        rows = craft.num_classes if craft.granularity == "class" else len(craft.images)
        delta = craft.images.new_zeros(rows, *craft.images.shape[1:])
        wearer = craft.labels if craft.granularity == "class" else torch.arange(rows, device=delta.device)
        state, done = craft.resume(), 0
        training = ShuffledBatches(craft, BATCH, state and state["training"])
        if state is not None:
            surrogate.restore(state)
            delta, done = state["delta"], state["done"]
        for rounds in range(done + 1, craft.steps + 1):
            for _ in range(TRAIN_STEPS):
                chosen = next(training)
                poisoned = (craft.images.index_select(0, chosen) + delta[wearer[chosen]]).clamp(0, 1)
                surrogate.learn(poisoned, craft.labels[chosen])
            delta = self._pass(network, craft, delta)
            error = _error(network, craft, delta, wearer)
            craft.progress(f"train error {error:.1%}, stops at {STOP_ERROR:.0%}; round", rounds, craft.steps)
            if error <= STOP_ERROR:
                break
            craft.keep(**surrogate.state(), delta=delta, done=rounds, training=training.state())
        return delta[wearer]

    def _pass(self, network: nn.Module, craft: Craft, delta: Tensor) -> Tensor:
        """Descend with every perturbation once, batch after batch over all images; return the perturbations."""
        shared = shared_budget(craft.norm, craft.epsilon, delta)
        with frozen(network):
            for chosen in torch.arange(len(craft.images), device=delta.device).split(BATCH):
                images, labels = craft.images.index_select(0, chosen), craft.labels[chosen]
                if craft.granularity == "class":
                    delta = descend(network, images, labels, delta, shared, shared.epsilon * STEP_RATIO)
                    continue
                mine = budget_of(craft.norm, craft.epsilon, images)
                moved = pgd(
                    network,
                    images,
                    partial(label_gain, labels),
                    mine,
                    steps=SAMPLE_STEPS,
                    step_size=mine.epsilon * STEP_RATIO,
                    start_NCHW=delta[chosen],
                )
                delta[chosen] = moved - images
        return delta


@torch.no_grad()
def _error(network: nn.Module, craft: Craft, delta: Tensor, wearer: Tensor) -> float:
    """Return the share of poisoned training images that the network misclassifies, in [0, 1]."""
    wrong = 0
    with frozen(network):
        for chosen in torch.arange(len(craft.images), device=delta.device).split(1000):
            poisoned = (craft.images.index_select(0, chosen) + delta[wearer[chosen]]).clamp(0, 1)
            wrong += int((network(poisoned).argmax(1) != craft.labels[chosen]).sum())
    return wrong / len(craft.images)


UP = Unlearnable()
