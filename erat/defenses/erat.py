"""Defines ERAT: hybrid adversarial training with class-rebalancing selection (Algorithm 1 of the paper).

The ablations of Table VI are one-field overrides of its options:

| Table VI | override                      | Table VI | override                    |
|----------|-------------------------------|----------|-----------------------------|
| ERAT_inf | `defense.norms=linf`          | w/o Uni  | `defense.uniform=false`     |
| ERAT_2   | `defense.norms=l2`            | w/o Aug  | `defense.strong=false`      |
| w/ CE    | `defense.score=ce`            | w/o AT   | `defense.adversarial=false` |
| w/o RB   | `defense.rebalance=false`     | w/o SS   | `defense.selection=false`   |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.freezing import frozen
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData
from erat.defenses.clusters import SIZES, graph_clusters, image_clusters, named, thumbnails
from erat.defenses.options import ERATOptions
from erat.defenses.perturbation import Perturber
from erat.defenses.selector import Selector
from erat.defenses.teacher import Teacher
from erat.defenses.viewing import Views
from erat.losses import consistency, cross_entropy, ramp
from erat.selection import balanced


class ERAT(Defense):
    """A defense with one network, which trains on the labels that it believes and on images that it perturbs itself.

    It selects the labels to believe in each epoch, and perturbs the images by attacking itself in each step.

    State of the options beyond the paper: `balance`, float32 (K,), the last weights of the classes (`align`);
    `clusters`, int64 (N,) or, by neighbours, (SIZES, N), the clusters of each image, -1 before the first selection
    (`cluster_epochs`); and the teacher's weights.
    """

    Options = ERATOptions
    balance: Tensor
    clusters: Tensor

    def __init__(self, options: ERATOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        self.networks = nn.ModuleDict({"main": task.build(0)})
        self.perturber = Perturber(options, task)
        self.selector = Selector(options, task)
        self.views = Views(options, task, crop=bool(options.strong_crop))
        self.teacher = Teacher(self.networks["main"], options.teacher) if options.teacher else None
        if options.align:
            self.register_buffer("balance", torch.ones(task.num_classes))
        if options.cluster_epochs:
            sizes = (SIZES,) if options.cluster_by == "neighbours" else ()
            self.register_buffer("clusters", torch.full((*sizes, task.num_samples), -1))

    @property
    def judge(self) -> nn.Module:
        """Return the network that scores labels and guesses those of unlabelled samples."""
        return self.networks["main"] if self.teacher is None else self.teacher

    def updated(self) -> None:
        """Let the teacher, if there is one, follow the network."""
        if self.teacher is not None:
            self.teacher.follow(self.networks["main"])

    # -- Algorithm 1, once per epoch ------------------------------------------------------------------------------

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        """Select the samples that keep their labels, in every `select_every`-th epoch after the warm-up."""
        everything = torch.arange(len(data))
        if clock.epoch < self.options.warmup_epochs:
            return EpochPlan((Phase(everything, name="warmup"),))
        if not self.options.selection:
            return EpochPlan((Phase(everything),))
        mask, predicted, numbers = self.selector.labelled.cpu(), None, dict[str, float]()
        if (clock.epoch - self.options.warmup_epochs) % self.options.select_every == 0:
            # The scores come from un-augmented images and a network in eval mode.
            probs = data.map(lambda images: self.judge(images).softmax(1))
            split = self.selector([self._evidence(probs, clock, data)], data.labels)
            mask, predicted, numbers = split.mask.cpu(), probs.argmax(1).cpu(), split.numbers()
        phases = (Phase(everything[mask], everything[~mask]),)
        return EpochPlan(phases, selected=mask, predicted=predicted, numbers=numbers)

    def _evidence(self, probs: Tensor, clock: Clock, data: TrainingData) -> Tensor:
        """Return the class probabilities by which labels are judged, shape (N, K): in the paper the network's."""
        if self.options.align:
            probs, balance = balanced(probs)
            self.balance.copy_(balance)
        if clock.epoch - self.options.warmup_epochs >= self.options.cluster_epochs:
            return probs
        if int(self.clusters.flatten()[0]) < 0:
            rows, each, classes = data.map(thumbnails), self.options.clusters, data.num_classes
            by_graph = self.options.cluster_by == "neighbours"
            found = graph_clusters(rows, classes, each) if by_graph else image_clusters(rows, each * classes)
            self.clusters.copy_(found)
        return named(self.clusters, data.labels, data.num_classes)

    # -- Algorithm 1, once per step -------------------------------------------------------------------------------

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return the loss of Eq. 9 in the warm-up, and after it that of Eq. 8 with its growing weight lambda_u."""
        if batch.phase == "warmup":
            return self._warmup_loss(batch)
        weight = ramp(self.options.lambda_u, clock.time - self.options.warmup_epochs, self.options.ramp_epochs)
        terms = self._semi_supervised_loss(batch, weight)
        terms.note("lambda_u", weight)
        return terms

    def _warmup_loss(self, batch: Batch) -> LossTerms:
        """Return the loss of Eq. 9: cross-entropy of the given labels on strong(x) and strong(x_adv), for all data."""
        network, images, copies = self.networks["main"], batch.images, 1
        random = batch.random.grouped(len(images))
        if self.options.adversarial:
            adversarial = self.perturber(network, batch.images, batch.labels, random, batch.indices)
            images, copies = torch.cat([images, adversarial]), 1 + len(adversarial) // len(images)
        labels = batch.labels.repeat(copies)
        views = self.views.strong(images, random, network, labels)
        with record_function("student"):
            logits = network(views)
        terms, count = LossTerms(), len(batch.labels)
        terms.add("warmup_strong", cross_entropy(logits[:count], labels[:count]))
        if self.options.adversarial:
            terms.add("warmup_strong_adversarial", cross_entropy(logits[count:], labels[count:]))
        return terms

    def _semi_supervised_loss(self, batch: Batch, lambda_u: float) -> LossTerms:
        """Return the loss of Eq. 8: three cross-entropies on labelled samples, three squared errors on the others."""
        network, labelled, unlabelled = self.networks["main"], len(batch.images), len(batch.unlabelled)
        random = batch.random.grouped(labelled, unlabelled)
        pseudo = self._pseudo_labels(batch)
        images = torch.cat([batch.images, batch.unlabelled])
        # An unlabelled sample needs a hard label here: at delta = 0 the consistency term of Eq. 6 has no gradient.
        labels = torch.cat([batch.labels, pseudo.argmax(1)])
        adversarial = images[:0]
        if self.options.adversarial:
            indices = torch.cat([batch.indices, batch.unlabelled_indices])
            adversarial = self.perturber(network, images, labels, random, indices)
        plain = torch.cat([images, adversarial])
        strong = self.views.strong(plain, random, network, labels.repeat(len(plain) // len(images)))
        with record_function("student"):
            logits = network(torch.cat([strong, adversarial]))
        kept = pseudo.amax(1) >= self.options.confidence if self.options.confidence else None
        terms = LossTerms()
        names = {"strong": len(images), "strong_adversarial": len(adversarial), "adversarial": len(adversarial)}
        for name, part in zip(names, logits.split(list(names.values())), strict=True):
            if len(part) == 0:
                continue
            # The rows of a view are (labelled, unlabelled), once for each norm in which the images were attacked.
            by_group = part.view(-1, labelled + unlabelled, part.shape[1])
            copies = len(by_group)
            terms.add(
                f"labelled_{name}",
                cross_entropy(by_group[:, :labelled].flatten(0, 1), batch.labels.repeat(copies)),
            )
            if unlabelled:
                error = consistency(
                    by_group[:, labelled:].flatten(0, 1),
                    pseudo.repeat(copies, 1),
                    self.options.reduction,
                    None if kept is None else kept.repeat(copies),
                )
                terms.add(f"unlabelled_{name}", error, weight=lambda_u)
        return terms

    @torch.no_grad()
    def _pseudo_labels(self, batch: Batch) -> Tensor:
        """Return p(weak(x_u)) of the current network: soft, not sharpened, without gradient; shape (U, K).

        Beyond the paper: of the teacher instead, and as if all classes were equally frequent.
        """
        if len(batch.unlabelled) == 0:
            return batch.images.new_zeros(0, self.task.num_classes)
        with frozen(self.judge) as network, record_function("pseudo-labels"):
            probs: Tensor = network(self.views.weak(batch.unlabelled, batch.random)).softmax(1)
        if self.options.align:
            probs = probs * self.balance
            probs = probs / probs.sum(1, keepdim=True)
        return probs
