"""Perturbs a batch by an attack on the network that learns from it.

With `norms=both`, l_inf and l_2, and the consistency term this is ERAT's surrogate poison (Eqs. 6, 7, 10); with one
norm, a random start and cross-entropy only it is adversarial training (Madry et al., "Towards Deep Learning Models
Resistant to Adversarial Attacks", ICLR 2018). Sets with l_1 and l_0 are beyond the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.pgd import Budget, frozen, pgd
from erat.attacks.threats import Mixture
from erat.data.random import BatchRandom
from erat.defenses.base import Task
from erat.defenses.options import PerturbationOptions
from erat.errors import UserError
from erat.losses import label_loss, perturbation_objective
from erat.options import norms_in


class Perturber(nn.Module):
    """A module that attacks a whole batch by one PGD run, each image in its own norm.

    State, with `warm_start` only: `last_delta`, float16 (N, C, H, W), the last perturbation of each training image.
    """

    last_delta: Tensor

    def __init__(self, options: PerturbationOptions, task: Task) -> None:
        super().__init__()
        self.options = options
        if options.adversarial and options.epsilon_l0 is not None:
            pixels = task.image_shape[1] * task.image_shape[2]
            if options.epsilon_l0 > pixels:
                raise UserError(
                    f"defense.epsilon_l0 must be at most the {pixels} pixels of an image, got {options.epsilon_l0}"
                )
        if options.warm_start:
            self.register_buffer("last_delta", torch.zeros(task.num_samples, *task.image_shape, dtype=torch.float16))

    def forward(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        random: BatchRandom,
        indices: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Return adversarial images, shape (B, C, H, W); with `uniform=false` (norms * B, C, H, W), norm by norm.

        Args:
            network: the network to attack, in eval mode with its weights frozen.
            images: float (B, C, H, W) in [0, 1].
            labels: int64 (B,), given labels or hard pseudo-labels.
            random: source of the draws of norms and starts.
            indices: int64 (B,), the rows of the images in the training set; needed by `warm_start`.
            strength: the share of the budget that the attack has, in (0, 1].
        """
        with record_function("perturb"):
            return self._perturb(network, images, labels, random, indices, strength)

    def _perturb(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        random: BatchRandom,
        indices: Tensor | None,
        strength: float,
    ) -> Tensor:
        options = self.options
        assert options.norms is not None, "filled by the config"
        norms = norms_in(options.norms)
        if not set(norms) <= {"linf", "l2"}:
            return self._perturb_mixed(network, images, labels, random, indices, strength, norms)
        if len(norms) == 2 and not options.uniform:
            images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
            linf: Tensor | bool = torch.arange(len(images), device=images.device) < len(images) // 2
        elif len(norms) == 2:
            linf = random.randint(2, len(images), device=images.device) == 0
        else:
            linf = norms[0] == "linf"
        budget = self._budget(linf, images)
        if strength < 1:
            budget = Budget(budget.epsilon * strength, budget.linf)
        start = budget.draw(images, random) if options.random_start else None
        if options.warm_start:
            start = self.last_delta[indices].float()
        attack = self._attack if options.pgd_scale == 1 else self._attack_shrunk
        with frozen(network), self._autocast(images.device):
            moved = attack(network, images, labels, budget, start)
        if options.warm_start:
            self.last_delta[indices] = (moved - images).half()
        return moved

    def _perturb_mixed(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        random: BatchRandom,
        indices: Tensor | None,
        strength: float,
        norms: Sequence[str],
    ) -> Tensor:
        """Perturb as `_perturb` does, under any set of norms: by one PGD run, the images of one norm together."""
        options, count = self.options, len(norms)
        if options.uniform:
            # Drawn on the CPU, because the host has to know how many images each norm has.
            which = random.randint(count, len(images)) if count > 1 else torch.zeros(len(images), dtype=torch.int64)
        else:
            which = torch.arange(count).repeat_interleave(len(images))
            images, labels = images.repeat(count, 1, 1, 1), labels.repeat(count)
        budgets = [options.budget(norm) * strength for norm in norms]
        # The paper's Eq. 10 as written treats l_2 like l_inf.
        models = ["linf" if norm == "l2" and options.l2_update == "literal" else norm for norm in norms]
        mixture = Mixture.of(models, budgets, which, images.device)
        start = mixture.draw(images, random) if options.random_start else None
        if options.warm_start:
            start = self.last_delta[indices].float()
        start = None if start is None else start[mixture.order]
        with frozen(network), self._autocast(images.device):
            moved = self._attack(network, images[mixture.order], labels[mixture.order], mixture, start)[mixture.back]
        if options.warm_start:
            self.last_delta[indices] = (moved - images).half()
        return moved

    def _attack(
        self, network: nn.Module, images: Tensor, labels: Tensor, budget: Budget | Mixture, start: Tensor | None
    ) -> Tensor:
        clean: list[Tensor] = []
        if start is not None and self.options.consistency:
            with torch.no_grad():
                clean.append(network(images).float().softmax(1))

        def objective(logits: Tensor) -> Tensor:
            logits = logits.float()
            if not self.options.consistency:
                return label_loss(labels, logits)
            # delta starts at 0, so the first forward pass gives the clean prediction, which need not be computed apart.
            if not clean:
                clean.append(logits.detach().softmax(1))
            return perturbation_objective(logits, clean[0], labels)

        size = budget.epsilon * self.options.step_ratio
        return pgd(network, images, objective, budget, steps=self.options.steps, step_size=size, start_NCHW=start)

    def _attack_shrunk(
        self, network: nn.Module, images: Tensor, labels: Tensor, budget: Budget, start: Tensor | None
    ) -> Tensor:
        """Attack shrunk images (beyond the paper); each pixel's perturbation goes to all pixels that it stands for."""
        side = images.shape[-1]
        small_side = max(1, round(side * self.options.pgd_scale))
        # A pixel that is copied to n x n pixels has n times the l_2 norm there, and the same l_inf norm.
        ratio = small_side / side
        if isinstance(budget.linf, bool):
            small_epsilon = budget.epsilon if budget.linf else budget.epsilon * ratio
        else:
            small_epsilon = torch.where(budget.linf, budget.epsilon, budget.epsilon * ratio)
        small_budget = Budget(small_epsilon, budget.linf)
        small = F.adaptive_avg_pool2d(images, small_side)
        small_start = None if start is None else F.adaptive_avg_pool2d(start, small_side)
        moved = self._attack(network, small, labels, small_budget, small_start)
        delta = F.interpolate(moved - small, images.shape[-2:], mode="nearest")
        return (images + budget.project(delta)).clamp(0, 1)

    def _budget(self, linf: Tensor | bool, images: Tensor) -> Budget:
        options = self.options
        assert options.epsilon_inf is not None and options.epsilon_2 is not None, "filled by the config"
        if isinstance(linf, bool):
            budget = Budget.of("linf" if linf else "l2", options.epsilon_inf if linf else options.epsilon_2, images)
        else:
            # From plain numbers, because tensors made of them would have to be copied to a GPU, which waits.
            epsilon = torch.where(linf, options.epsilon_inf, options.epsilon_2).to(images.dtype)
            budget = Budget(epsilon, linf)
        # The paper's Eq. 10 as written treats l_2 like l_inf: sign step, then clip to +-epsilon_2.
        return Budget(budget.epsilon, True) if options.l2_update == "literal" else budget

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        low = self.options.pgd_precision == "bf16"
        return torch.autocast(device.type, torch.bfloat16) if low else nullcontext()
