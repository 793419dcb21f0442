"""Perturbs a batch by an attack on the network that learns from it.

With `norms=both`, l_inf and l_2, and the consistency term this is ERAT's surrogate poison (Eqs. 6, 7, 10); with one
norm, a random start and cross-entropy only it is adversarial training (Madry et al., "Towards Deep Learning Models
Resistant to Adversarial Attacks", ICLR 2018). Sets with other norms, and weighted draws, are beyond the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.freezing import frozen
from erat.attacks.lpips import has_feature_maps, no_feature_maps
from erat.attacks.pgd import Budget, pgd
from erat.attacks.threats import Mixture
from erat.data.random import BatchRandom
from erat.defenses.base import Clock, Defense, Predicting, Task, TrainingData
from erat.defenses.shared_options import PerturbationOptions
from erat.devices import CPU
from erat.losses import label_loss, perturbation_objective
from erat.options import norms_in

MEASURED = 128  # images on which an epoch measures how often each norm fools the network


def measure_norms(defense: Defense, clock: Clock, data: TrainingData) -> dict[str, float]:
    """Weigh the norms of a defense by how often each fools it; called once per epoch, on every worker.

    A norm's weight is 1 - robust accuracy, after Croce, Hein, "Adversarial Robustness against Multiple and Single l_p
    Threat Models via Quick Fine-Tuning of Robust Classifiers" (ICML 2022). One image more counts as fooled under each,
    so that no norm is left out for good.

    Args:
        defense: the defense; one that draws its norms uniformly is left as it is.
        clock: the epoch, which decides on which training images it is measured.
        data: the training images, of which every worker takes its share.

    Returns:
        The share of images that will be attacked under each norm, for the epoch's report: "drawn_linf", ...
    """
    weighted = [
        part for part in defense.modules() if isinstance(part, Perturber) and part.options.norm_draw != "uniform"
    ]
    if not weighted:
        return {}
    few = min(MEASURED, len(data))
    rows = (torch.arange(few) * len(data) // few + clock.epoch) % len(data)
    network = Predicting(defense)
    fooled = data.map(partial(weighted[0].fooled, network), rows).sum(0) + 1
    for part in weighted:
        part.weigh(fooled)
    norms = norms_in(weighted[0].options.norms or "")
    return {f"drawn_{norm}": share for norm, share in zip(norms, (fooled / fooled.sum()).tolist(), strict=True)}


def _loaded(perturber: nn.Module, _keys: object) -> None:
    """Draw by the weights that a checkpoint has brought."""
    assert isinstance(perturber, Perturber), "the hook is that of a perturber"
    perturber.weigh(perturber.weights)


class Perturber(nn.Module):
    """A module that attacks a whole batch by one PGD run, each image in its own norm.

    State: with `warm_start` only, `last_delta`, float16 (N, C, H, W), the last perturbation of each training image;
    with `norm_draw=weighted` only, `weights`, float32, in proportion to which the norms are drawn.
    """

    last_delta: Tensor
    weights: Tensor
    _bounds: list[float]  # of a uniform number: the norm is the number of those below it

    def __init__(self, options: PerturbationOptions, task: Task) -> None:
        super().__init__()
        self.options = options
        options.check_image(math.prod(task.image_shape[1:]))
        if options.warm_start:
            self.register_buffer("last_delta", torch.zeros(task.num_samples, *task.image_shape, dtype=torch.float16))
        norms = norms_in(options.norms or "")
        if options.norm_draw == "weighted":
            self.register_buffer("weights", torch.ones(len(norms)))
            self._bounds = [number / len(norms) for number in range(1, len(norms))]
            self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
        if options.adversarial and "lpips" in norms and not has_feature_maps(task.build(0), task.image_shape):
            raise no_feature_maps("defense.norms", task.backbone)

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
        options = self.options
        assert options.norms is not None, "filled by the config"
        norms = norms_in(options.norms)
        with record_function("perturb"):
            if not options.uniform:
                images, labels = images.repeat(len(norms), 1, 1, 1), labels.repeat(len(norms))
            budget: Budget | Mixture
            if set(norms) <= {"linf", "l2"}:
                budget = self._budget(norms, images, random, strength)
            else:
                budget = self._mixture(network, norms, images, random, strength)
            start = budget.draw(images, random) if options.random_start else None
            if options.warm_start:
                start = self.last_delta[indices].float()
            with frozen(network), self._autocast(images.device):
                if isinstance(budget, Mixture):
                    moved = self._attack_grouped(network, images, labels, budget, start)
                elif options.pgd_scale < 1:
                    moved = self._attack_shrunk(network, images, labels, budget, start)
                else:
                    moved = self._attack(network, images, labels, budget, start)
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

    def _attack_grouped(
        self, network: nn.Module, images: Tensor, labels: Tensor, mixture: Mixture, start: Tensor | None
    ) -> Tensor:
        """Attack the images of one norm together, in one run."""
        start = None if start is None else start[mixture.order]
        return self._attack(network, images[mixture.order], labels[mixture.order], mixture, start)[mixture.back]

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

    def _budget(self, norms: Sequence[str], images: Tensor, random: BatchRandom, strength: float) -> Budget:
        """Return the budgets of images under l_inf, l_2 or both; without `uniform`, images come norm by norm."""
        options = self.options
        assert options.epsilon_inf is not None and options.epsilon_2 is not None, "filled by the config"
        linf: Tensor | bool = norms[0] == "linf"
        if len(norms) == 2 and not options.uniform:
            linf = torch.arange(len(images), device=images.device) < len(images) // 2
        elif len(norms) == 2:
            linf = self._drawn(2, len(images), random, images.device) == 0
        if isinstance(linf, bool):
            budget = Budget.of("linf" if linf else "l2", options.epsilon_inf if linf else options.epsilon_2, images)
        else:
            # From plain numbers, because tensors made of them would have to be copied to a GPU, which waits.
            epsilon = torch.where(linf, options.epsilon_inf, options.epsilon_2).to(images.dtype)
            budget = Budget(epsilon, linf)
        epsilon = budget.epsilon if strength == 1 else budget.epsilon * strength
        # The paper's Eq. 10 as written treats l_2 like l_inf: sign step, then clip to +-epsilon_2.
        return Budget(epsilon, True if options.l2_update == "literal" else budget.linf)

    def _mixture(
        self, network: nn.Module, norms: Sequence[str], images: Tensor, random: BatchRandom, strength: float
    ) -> Mixture:
        """Return the budgets of images under any set of norms; without `uniform`, images come norm by norm."""
        options, count = self.options, len(norms)
        if not options.uniform:
            which = torch.arange(count).repeat_interleave(len(images) // count)
        elif count == 1:
            which = torch.zeros(len(images), dtype=torch.int64)
        else:  # drawn on the CPU, because the host has to know how many images each norm has
            which = self._drawn(count, len(images), random, CPU)
        models = ["linf" if norm == "l2" and options.l2_update == "literal" else norm for norm in norms]
        budgets = [options.budget(norm) * strength for norm in norms]
        return Mixture.of(models, budgets, which, images.device, network)

    def _drawn(self, count: int, images: int, random: BatchRandom, device: torch.device) -> Tensor:
        """Draw the number of each image's norm, int64 (images,) on the device: uniformly, or by the weights."""
        if self.options.norm_draw == "uniform":
            return random.randint(count, images, device=device)
        drawn = random.rand(images, device=device)
        # By plain numbers, which need not be copied to a GPU.
        return torch.stack([drawn >= bound for bound in self._bounds]).sum(0)

    def weigh(self, weights: Tensor) -> None:
        """Draw norms in proportion to these weights, float (norms,), from now on."""
        self.weights.copy_(weights)
        # Read once an epoch, and not in every step, because that waits for the device.
        self._bounds = (weights / weights.sum()).cumsum(0)[:-1].tolist()

    def fooled(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return whether an attack under each norm changes what the network says of each image, float (B, norms).

        Attacks begin at the image. The network's own word is the measure, as the given labels may be wrong.
        """
        options = self.options
        assert options.norms is not None, "filled by the config"
        norms, found = norms_in(options.norms), []
        with frozen(network), torch.enable_grad():
            said = network(images).argmax(1)
            for norm in norms:
                budget = Mixture.alone(norm, options.budget(norm), images, network)
                size = budget.epsilon * options.step_ratio
                moved = pgd(network, images, partial(label_loss, said), budget, steps=options.steps, step_size=size)
                found.append(network(moved).argmax(1) != said)
        return torch.stack(found, 1).float()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        low = self.options.pgd_precision == "bf16"
        return torch.autocast(device.type, torch.bfloat16) if low else nullcontext()
