"""URP, universal random perturbations: all images of a class get one random pattern (Tao et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from erat.attacks.norms import l2_step
from erat.corruption import kinds
from erat.corruption.base import Craft, DataCorruption
from erat.corruption.classwise import SharedBudget
from erat.data.random import BatchRandom


class UniversalRandom(kinds.URP, DataCorruption):
    """Universal random perturbations.

    Under l_2 a Gaussian direction of norm exactly epsilon, under l_1 a Laplacian one; under l_inf uniform values in
    [-epsilon, epsilon]; under l_0 uniform values in [-1, 1] at `epsilon` random pixels.
    """

    def perturb(self, craft: Craft) -> Tensor:
        """Draw a perturbation for each class, and give every image that of its label."""
        shape = (craft.num_classes, *craft.images.shape[1:])
        if craft.norm in ("l1", "l0"):
            blank = torch.zeros(shape)
            per_class = SharedBudget(craft.norm, craft.epsilon, blank).draw(BatchRandom(craft.generator))
        elif craft.norm == "l2":
            per_class = l2_step(torch.randn(shape, generator=craft.generator)) * craft.epsilon
        else:
            per_class = (2 * torch.rand(shape, generator=craft.generator) - 1) * craft.epsilon
        return per_class.to(craft.images.device)[craft.labels]


URP = UniversalRandom()
