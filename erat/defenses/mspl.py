"""Reconstructs MSPL: prototypes over a Siamese pair, and selection by global and class-wise error.

Only the abstract of the paper is public. This reconstruction takes from it two projection heads over a pair of views
(weak and adversarial), class prototypes, an adversarial contrastive term, selection by the distribution of the error
over all samples and over each class, pseudo-labels, and the assumption that the kind of corruption is known (the attack
uses the norm of the poison). Everything else is our choice; tables call it a reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from erat.attacks.freezing import frozen
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData
from erat.defenses.options import MSPLOptions
from erat.defenses.perturbation import Perturber
from erat.defenses.selector import Selector
from erat.defenses.viewing import Views
from erat.losses import contrastive, cross_entropy, ramp, sharpen, soft_cross_entropy
from erat.models.heads import Projecting

HEADS = 2


class MSPL(Defense):
    """A defense with one network and two projection heads.

    State: `prototypes`, float32 (H, K, D), 0 for a class of which no sample has been seen.
    """

    Options = MSPLOptions
    prototypes: Tensor

    def __init__(self, options: MSPLOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        network = Projecting(task.build(0), heads=HEADS)
        self.networks = nn.ModuleDict({"main": network})
        self.selector = Selector(options, task)
        self.perturber = Perturber(options, task)
        self.views = Views(options, task)
        width: int = network.projectors[0][-1].out_features  # type: ignore[index]
        self.register_buffer("prototypes", torch.zeros(HEADS, task.num_classes, width))

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        """Select by the answer of network and prototypes together, once the warm-up is over."""
        everything = torch.arange(len(data))
        if clock.epoch < self.options.warmup_epochs:
            return EpochPlan((Phase(everything, name="warmup"),))
        probs = data.map(self._answer)
        split = self.selector([probs], data.labels)
        mask, predicted = split.mask.cpu(), probs.argmax(1).cpu()
        return EpochPlan((Phase(*split.indices()),), selected=mask, predicted=predicted, numbers=split.numbers())

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return the loss on a pair of views of each sample, and move the prototypes towards the labelled ones."""
        network, labelled = self.networks["main"], len(batch.labels)
        random = batch.random.grouped(labelled, len(batch.unlabelled))
        images = self.views.weak(torch.cat([batch.images, batch.unlabelled]), random)
        guessed = images.new_zeros(0, self.task.num_classes)
        if len(batch.unlabelled):
            with frozen(network), torch.no_grad():
                guessed = sharpen(self._answer(images[labelled:]), self.options.temperature)
        hard = torch.cat([batch.labels, guessed.argmax(1)])
        logits, projected = network(torch.cat([images, self._second_view(batch, images, hard)]), project=True)
        self._move_prototypes([z[:labelled].detach() for z in projected], batch.labels)
        agreed = [self._similarity(z, head) for head, z in enumerate(projected)]

        terms, rows, given = LossTerms(), len(images), batch.labels.repeat(2)
        logits_mine, logits_rest = _of_both_views(logits, labelled)
        terms.add("labelled", cross_entropy(logits_mine, given))
        by_head = [cross_entropy(_of_both_views(similarity, labelled)[0], given) for similarity in agreed]
        terms.add("prototypes", torch.stack(by_head).mean())
        pairs = [contrastive(z[:rows], z[rows:], self.options.contrastive_temperature) for z in projected]
        terms.add("contrastive", torch.stack(pairs).mean(), self.options.contrastive_weight)
        first, second = (s.softmax(1) for s in agreed)
        terms.add("agreement", (first - second).square().sum(1).mean())
        if len(guessed):
            weight = ramp(self.options.lambda_u, clock.time - self.options.warmup_epochs, self.options.ramp_epochs)
            terms.add("unlabelled", soft_cross_entropy(logits_rest, guessed.repeat(2, 1)), weight)
            terms.note("lambda_u", weight)
        return terms

    def _second_view(self, batch: Batch, images: Tensor, labels: Tensor) -> Tensor:
        random = batch.random.grouped(len(batch.labels), len(batch.unlabelled))
        plain = torch.cat([batch.images, batch.unlabelled])
        if not self.options.adversarial:
            return self.views.strong(plain, random, self.networks["main"], labels)
        indices = torch.cat([batch.indices, batch.unlabelled_indices])
        # One attack per image is used: with both norms and without uniform sampling, the first one.
        moved: Tensor = self.perturber(self.networks["main"], images, labels, random, indices)
        return moved[: len(images)]

    def _answer(self, images: Tensor) -> Tensor:
        """Return the mean of the probabilities of the classifier and of the prototypes of each head, (B, K)."""
        logits, projected = self.networks["main"](images, project=True)
        by_prototype = [self._similarity(z, head).softmax(1) for head, z in enumerate(projected)]
        answer: Tensor = torch.stack([logits.float().softmax(1), *by_prototype]).mean(0)
        return answer

    def _similarity(self, projected: Tensor, head: int) -> Tensor:
        """Return the logits of the prototypes, (B, K)."""
        # Normalised, because several workers average their prototypes after an epoch, and a mean of unit vectors is
        # shorter than they are.
        logits: Tensor = projected @ normalize(self.prototypes[head], dim=1).T / self.options.prototype_temperature
        return logits

    @torch.no_grad()
    def _move_prototypes(self, projected: list[Tensor], labels: Tensor) -> None:
        for head, z in enumerate(projected):
            onehot = nn.functional.one_hot(labels, self.task.num_classes).to(z.dtype)
            counts = onehot.sum(0)[:, None]
            means = onehot.T @ z / counts.clamp_min(1)
            old = self.prototypes[head]
            met = old.square().sum(1, keepdim=True) > 0
            moved = torch.where(met, self.options.momentum * old + (1 - self.options.momentum) * means, means)
            self.prototypes[head] = torch.where(counts > 0, normalize(moved, dim=1), old)


def _of_both_views(rows: Tensor, labelled: int) -> tuple[Tensor, Tensor]:
    """Return the (labelled, unlabelled) rows of two stacked views of a batch, each with its labelled rows first."""
    by_view = rows.view(2, len(rows) // 2, rows.shape[1])
    return by_view[:, :labelled].flatten(0, 1), by_view[:, labelled:].flatten(0, 1)
