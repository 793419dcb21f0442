"""TUE, transferable unlearnable examples (Ren et al., "Transferable Unlearnable Examples", ICLR 2023).

The noise is optimised by itself, without a network or the images: its classes are to lie far apart by the authors'
measure, the class-wise separability discriminant. Their code can add a contrastive loss; the commands that they give
for SimCLR and SimSiam weigh it with 0, as here, and leave 20 steps of a tenth of the budget a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from erat.attacks.norms import per_image
from erat.attacks.pgd import Budget
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.data.random import BatchRandom

BATCH = 512
BATCH_STEPS = 20  # descent steps on each batch of a pass
STEP_RATIO = 0.1  # step size as a share of the budget
LEAST = 1e-5  # added to scatters and distances, against a division by zero


class TransferableNoise(kinds.TUE, DataCorruption):
    """Noise whose classes are linearly separable: it starts uniform and descends batch by batch."""

    def perturb(self, craft: Craft) -> Tensor:
        """Pull the classes of the noise apart, in `steps` passes over all of it, each in a new order."""
        images, everything = craft.images, Budget.of(craft.norm, craft.epsilon, craft.images)
        state, done = craft.resume(), 0
        if state is None:
            delta = _inside(everything.draw(images, BatchRandom(craft.generator)), images)
        else:
            delta, done = state["delta"], state["done"]
        for passes in range(done + 1, craft.steps + 1):
            order = torch.randperm(len(images), generator=craft.generator).to(images.device)
            for chosen in order.split(BATCH):
                noise, labels = delta[chosen], craft.labels[chosen]
                budget = Budget(everything.epsilon[chosen], everything.linf)
                for _ in range(BATCH_STEPS):
                    direction = budget.direction(_slope(noise, labels, craft.num_classes))
                    noise = budget.project(noise - per_image(budget.epsilon * STEP_RATIO) * direction)
                    noise = _inside(noise, images[chosen])
                delta[chosen] = noise
            craft.keep(delta=delta, done=passes)
            craft.progress("passes", passes, craft.steps)
        return delta


def _inside(delta: Tensor, images: Tensor) -> Tensor:
    """Return perturbations cut so that they keep the images in [0, 1]."""
    return delta.clamp(-images, 1 - images)


def _slope(noise: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the gradient of the discriminant by the noise, (B, C, H, W), with the scatters held constant.

    All images of a class have the same: that of their mean over their number.
    """
    member_BK = F.one_hot(labels, num_classes).to(noise.dtype)
    counts_K = member_BK.sum(0)
    means_KD = (member_BK.T @ noise.flatten(1)) / counts_K.clamp_min(1)[:, None]
    apart_B = (noise.flatten(1) - means_KD[labels]).norm(dim=1)
    scatters_K = (member_BK.T @ apart_B) / counts_K.clamp_min(1)
    present = counts_K > 0
    with torch.enable_grad():
        means = means_KD.detach().requires_grad_(True)
        (slope_KD,) = torch.autograd.grad(discriminant(means[present], scatters_K[present].detach()), means)
    return (slope_KD / counts_K.clamp_min(1)[:, None])[labels].view_as(noise)


def discriminant(means_KD: Tensor, scatters_K: Tensor) -> Tensor:
    """Return the mean over all pairs of classes of their scatters, added, over the distance of their means (Eq. 5).

    Args:
        means_KD: the mean noise of each class.
        scatters_K: the mean distance of a class's noise from its mean.

    Returns:
        One number: small if the classes are tight and far apart; 0 for fewer than two classes.
    """
    if len(means_KD) < 2:
        return means_KD.sum() * 0
    first, second = torch.triu_indices(len(means_KD), len(means_KD), offset=1, device=means_KD.device)
    distances = (means_KD[first] - means_KD[second]).norm(dim=1)
    ratios: Tensor = (scatters_K[first] + scatters_K[second] + LEAST) / (distances + LEAST)
    return ratios.mean()


TUE = TransferableNoise()
