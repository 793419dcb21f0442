"""ERAT: hybrid adversarial training with class-rebalancing selection (Algorithm 1 of the paper).

The ablations of Table VI are one-field overrides of its options:

| Table VI | override                      | Table VI | override                    |
|----------|-------------------------------|----------|-----------------------------|
| ERAT_inf | `defense.norms=linf`          | w/o Uni  | `defense.uniform=false`     |
| ERAT_2   | `defense.norms=l2`            | w/o Aug  | `defense.strong=false`      |
| w/ CE    | `defense.score=ce`            | w/o AT   | `defense.adversarial=false` |
| w/o RB   | `defense.rebalance=false`     | w/o SS   | `defense.selection=false`   |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.pgd import frozen
from erat.config import DefenseOptions, Number
from erat.data.random import BatchRandom
from erat.data.views import strong_view, weak_view
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData
from erat.defenses.perturbation import SurrogatePoison
from erat.errors import UserError
from erat.losses import consistency, cross_entropy, ramp
from erat.selection import scores, select


class ERATOptions(DefenseOptions):
    """Keys under `defense.` for `defense.name=erat`; budgets in pixel units of 1.0."""

    name: Literal["erat"] = "erat"
    # Selection, Eqs. 1-5
    selection: bool = Field(True, description="false: all data stay labelled (w/o SS)")
    score: Literal["l2", "ce"] = Field("l2", description="Eq. 1, or cross-entropy (w/ CE)")
    eta: Number = Field(0.1, ge=0, le=1, description="rebalancing: 0 gives all classes equal shares")
    rebalance: bool = Field(True, description="false: every score at or below the mean is kept (w/o RB)")
    rate: Literal["shifted", "literal"] = Field("shifted", description="Eq. 4 with 1 - S/2, or with the paper's 1 - S")
    # Perturbation, Eqs. 6, 7, 10
    adversarial: bool = Field(True, description="false: no perturbed views (w/o AT)")
    norms: Literal["both", "linf", "l2"] = Field("both", description="the set that each image draws its norm from")
    uniform: bool = Field(True, description="false: every image is attacked under every norm (w/o Uni)")
    epsilon_inf: Number | None = Field(None, ge=0, le=1, description="l_inf budget; none: customary for the data set")
    epsilon_2: Number | None = Field(None, ge=0, description="l_2 budget; none: customary for the data set")
    steps: int = Field(7, ge=1, description="T")
    step_ratio: Number = Field(0.2, gt=0, description="step size as a share of the budget")
    random_start: bool = False
    l2_update: Literal["ball", "literal"] = Field(
        "ball", description="l_2: normalised step, projection on the ball; literal: the paper's sign and clip"
    )
    # Beyond the paper: cheaper perturbations and selections, each with its price in docs/speed.md
    warm_start: bool = Field(False, description="beyond the paper: PGD goes on from the image's last perturbation")
    consistency: bool = Field(True, description="beyond the paper: false leaves out Eq. 6's distance from p(x)")
    pgd_precision: Literal["fp32", "bf16"] = Field("fp32", description="beyond the paper: precision of PGD's passes")
    pgd_scale: Number = Field(1.0, gt=0, le=1, description="beyond the paper: PGD on images shrunk to this share")
    select_every: int = Field(1, ge=1, description="beyond the paper: epochs that a labelled set is kept for")
    # Views
    weak: Literal["erase", "crop", "none"] = "erase"
    strong: bool = Field(True, description="false: weak views where the paper has strong ones (w/o Aug)")
    policy: Literal["cifar10", "svhn", "imagenet", "digits"] | None = Field(
        None, description="AutoAugment policy; none: the one that suits the data set"
    )
    # Loss, Eqs. 8-9
    lambda_u: Number = Field(25.0, ge=0)
    ramp_epochs: Number = Field(16.0, ge=0)
    reduction: Literal["mean", "sum"] = Field("mean", description="squared errors over classes: mean, or Eq. 8's sum")
    warmup_epochs: int = Field(10, ge=0)

    def fill(self, epsilon: Mapping[str, float], policy: str) -> dict[str, Any]:
        open_keys = {"epsilon_inf": epsilon["linf"], "epsilon_2": epsilon["l2"], "policy": policy}
        return {key: value for key, value in open_keys.items() if getattr(self, key) is None}

    def check(self, workers: int) -> None:
        if self.warm_start and workers > 1:
            raise UserError(f"defense.warm_start=true needs train.workers=1, got {workers}: each has seen other images")
        if self.warm_start and self.random_start:
            raise UserError("defense.warm_start=true needs defense.random_start=false, got true")
        if self.warm_start and not self.uniform:
            raise UserError("defense.warm_start=true needs defense.uniform=true, got false")


class ERAT(Defense):
    """One network; each epoch it selects whose labels to believe, each step it attacks itself and learns from it."""

    Options = ERATOptions
    labelled: Tensor  # bool (N,): the previous epoch's labelled set, D'_l of Eq. 3

    def __init__(self, options: ERATOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        self.networks = nn.ModuleDict({"main": task.build(0)})
        self.poison = SurrogatePoison(options, task)
        self.register_buffer("labelled", torch.ones(task.num_samples, dtype=torch.bool))

    # -- Algorithm 1, once per epoch ------------------------------------------------------------------------------

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        everything = torch.arange(len(data))
        if clock.epoch < self.options.warmup_epochs:
            return EpochPlan((Phase(everything, name="warmup"),))
        if not self.options.selection:
            return EpochPlan((Phase(everything),))
        since = clock.epoch - self.options.warmup_epochs
        mask = (self.labelled if since % self.options.select_every else self.select(data)).cpu()
        return EpochPlan((Phase(everything[mask], everything[~mask]),), selected=mask)

    def select(self, data: TrainingData) -> Tensor:
        """This epoch's labelled set, bool (N,), from un-augmented images and an eval-mode network (Eqs. 1-5)."""
        probs = data.map(lambda images: self.networks["main"](images).softmax(1))
        values = scores(probs, data.labels, self.options.score)
        self.labelled = select(
            values,
            data.labels,
            self.labelled,
            data.num_classes,
            eta=self.options.eta,
            rebalance=self.options.rebalance,
            # Cross-entropy has no bound of its own: its largest value present takes the place of 2.
            largest=2.0 if self.options.score == "l2" else float(values.max().clamp_min(1e-12)),
            literal_rate=self.options.rate == "literal",
        )
        return self.labelled

    # -- Algorithm 1, once per step -------------------------------------------------------------------------------

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        if batch.phase == "warmup":
            return self._warmup_loss(batch)
        weight = ramp(self.options.lambda_u, clock.time - self.options.warmup_epochs, self.options.ramp_epochs)
        return self._semi_supervised_loss(batch, weight)

    def _warmup_loss(self, batch: Batch) -> LossTerms:
        """Eq. 9: cross-entropy of the given labels on strong(x) and strong(x_adv), all data."""
        images, copies = batch.images, 1
        random = batch.random.grouped(len(images))
        if self.options.adversarial:
            adversarial = self.perturb(batch.images, batch.labels, random, batch.indices)
            images, copies = torch.cat([images, adversarial]), 1 + len(adversarial) // len(images)
        views = self._strong(images, random)
        with record_function("student"):
            logits = self.networks["main"](views)
        labels = batch.labels.repeat(copies)
        terms, count = LossTerms(), len(batch.labels)
        terms.add("warmup_strong", cross_entropy(logits[:count], labels[:count]))
        if self.options.adversarial:
            terms.add("warmup_strong_adversarial", cross_entropy(logits[count:], labels[count:]))
        return terms

    def _semi_supervised_loss(self, batch: Batch, lambda_u: float) -> LossTerms:
        """Eq. 8: three cross-entropies on labelled samples, three squared errors on unlabelled ones."""
        labelled, unlabelled = len(batch.images), len(batch.unlabelled)
        random = batch.random.grouped(labelled, unlabelled)
        pseudo = self._pseudo_labels(batch)
        images = torch.cat([batch.images, batch.unlabelled])
        adversarial = images[:0]
        if self.options.adversarial:
            # An unlabelled sample needs a hard label here: at delta = 0 the consistency term of Eq. 6 has no gradient.
            labels = torch.cat([batch.labels, pseudo.argmax(1)])
            indices = torch.cat([batch.indices, batch.unlabelled_indices])
            adversarial = self.perturb(images, labels, random, indices)
        strong = self._strong(torch.cat([images, adversarial]), random)
        with record_function("student"):
            logits = self.networks["main"](torch.cat([strong, adversarial]))
        terms = LossTerms()
        names = {"strong": len(images), "strong_adversarial": len(adversarial), "adversarial": len(adversarial)}
        for name, part in zip(names, logits.split(list(names.values())), strict=True):
            if len(part) == 0:
                continue
            # Rows of a view: (labelled, unlabelled), once per norm that the images were attacked under.
            by_group = part.view(-1, labelled + unlabelled, part.shape[1])
            copies = len(by_group)
            terms.add(
                f"labelled_{name}",
                cross_entropy(by_group[:, :labelled].flatten(0, 1), batch.labels.repeat(copies)),
            )
            if unlabelled:
                error = consistency(
                    by_group[:, labelled:].flatten(0, 1), pseudo.repeat(copies, 1), self.options.reduction
                )
                terms.add(f"unlabelled_{name}", error, weight=lambda_u)
        return terms

    def perturb(self, images: Tensor, labels: Tensor, random: BatchRandom, indices: Tensor | None = None) -> Tensor:
        """Surrogate poison (Eqs. 6, 7, 10) of the current network, see `SurrogatePoison`."""
        with record_function("perturb"):
            moved: Tensor = self.poison(self.networks["main"], images, labels, random, indices)
        return moved

    @torch.no_grad()
    def _pseudo_labels(self, batch: Batch) -> Tensor:
        """p(weak(x_u)) of the current network: soft, unsharpened, no gradient; shape (U, K)."""
        if len(batch.unlabelled) == 0:
            return batch.images.new_zeros(0, self.task.num_classes)
        with frozen(self.networks["main"]) as network, record_function("pseudo-labels"):
            probs: Tensor = network(self._weak(batch.unlabelled, batch.random)).softmax(1)
        return probs

    def _weak(self, images: Tensor, random: BatchRandom) -> Tensor:
        if self.options.weak == "none":
            return images
        return weak_view(images, random, kind=self.options.weak, flip=self.task.flip)

    def _strong(self, images: Tensor, random: BatchRandom) -> Tensor:
        assert self.options.policy is not None, "filled by the config"
        with record_function("strong views"):
            return (
                strong_view(images, random, policy=self.options.policy)
                if self.options.strong
                else self._weak(images, random)
            )
