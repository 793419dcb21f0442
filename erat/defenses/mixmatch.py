"""Defines what DivideMix and UNICON share: two networks that select for each other and learn by MixMatch.

Sources: Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019; Li, Socher, Hoi,
"DivideMix", ICLR 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erat.attacks.freezing import frozen
from erat.data.random import BatchRandom
from erat.defenses.base import Batch, Clock, Defense, EpochPlan, LossTerms, Phase, Task, TrainingData, Update
from erat.defenses.options import MixMatchOptions
from erat.defenses.perturbation import Perturber
from erat.defenses.selector import Selector, Split
from erat.defenses.viewing import Views
from erat.devices import CPU
from erat.losses import cross_entropy, prior_penalty, ramp, sharpen, soft_cross_entropy, squared_error

NETWORKS = ("main", "peer")
# Partners of mixup are drawn within blocks of this many samples, not in the whole batch. They are then the same for
# every number of data-parallel workers whose shares of a full batch are multiples of it.
MIX_BLOCK = 8


class MixMatch(Defense):
    """Base of DivideMix and UNICON.

    State that is not part of a checkpoint: `trust`, float32 (2, N), in [0, 1], how far each network trusts each label.
    """

    trust: Tensor

    def __init__(self, options: MixMatchOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        self.networks = nn.ModuleDict({name: self.build(task, place) for place, name in enumerate(NETWORKS)})
        self.selectors = nn.ModuleList(Selector(options, task) for _ in NETWORKS)
        self.perturbers = nn.ModuleDict({name: Perturber(options, task) for name in NETWORKS})
        self.views = Views(options, task)
        self.register_buffer("trust", torch.ones(len(NETWORKS), task.num_samples), persistent=False)

    def build(self, task: Task, place: int) -> nn.Module:
        """Build network number `place`."""
        return task.build(place)

    def predict(self, images: Tensor) -> Tensor:
        """Return the sum of the logits of both networks, (B, K)."""
        return sum((network(images) for network in self.networks.values()), start=images.new_zeros(()))

    # -- once per epoch -------------------------------------------------------------------------------------------

    def plan_epoch(self, clock: Clock, data: TrainingData) -> EpochPlan:
        """Plan a phase for each network: all samples in the warm-up, later those of its split."""
        if clock.epoch < self.options.warmup_epochs:
            everything = torch.arange(len(data))
            return EpochPlan(tuple(Phase(everything, name="warmup", turns=_turns(name)) for name in NETWORKS))
        probs = self._probabilities(data)
        first, second = self._split(0, probs, data.labels), self._split(1, probs, data.labels)
        phases = (self._phase(0, first), self._phase(1, second, late=self.options.splits == "in_turn"))
        mask, predicted = first.mask.cpu(), probs.mean(1).argmax(1).cpu()
        return EpochPlan(phases, selected=mask, predicted=predicted, numbers=first.numbers())

    def _probabilities(self, data: TrainingData) -> Tensor:
        """Return the probabilities of both networks for un-augmented images, shape (N, 2, K)."""
        return data.map(lambda images: torch.stack([self.networks[name](images).softmax(1) for name in NETWORKS], 1))

    def _split(self, place: int, probs: Tensor, labels: Tensor) -> Split:
        """Make the split from which network number `place` learns."""
        judge = 1 - place if self.options.exchange == "crossed" else place
        voices = [probs[:, judge]] if self.options.exchange == "crossed" else [*probs.unbind(1)]
        split: Split = self.selectors[judge](voices, labels)
        return split

    def late_phase(self, data: TrainingData) -> Phase:
        """Return the second network's phase, from a split made after the first has trained."""
        return self._phase(1, self._split(1, self._probabilities(data), data.labels))

    def _phase(self, place: int, split: Split, late: bool = False) -> Phase:
        self.trust[place] = split.trust
        labelled, rest = split.indices()
        ratio = self.unlabelled_ratio(split)
        return Phase(labelled, rest, turns=_turns(NETWORKS[place]), late=late, unlabelled_ratio=ratio)

    def unlabelled_ratio(self, split: Split) -> float:
        """Return how many unlabelled images a step has for each labelled one."""
        return 1.0

    # -- once per step --------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return the loss of the network whose turn it is: that of the warm-up, or that of MixMatch."""
        place = NETWORKS.index(batch.update)
        if batch.phase == "warmup":
            return self._warmup_loss(batch)
        assert self.options.lambda_u is not None, "filled by the config"
        weight = ramp(self.options.lambda_u, clock.time - self.options.warmup_epochs, self.options.ramp_epochs)
        terms = self._mixed_loss(batch, place, weight)
        terms.note("lambda_u", weight)
        return terms

    def _warmup_loss(self, batch: Batch) -> LossTerms:
        """Return the cross-entropy of the given labels on weak views and, if set, a penalty for being confident."""
        network = self.networks[batch.update]
        images = self.views.weak(batch.images, batch.random)
        if self.options.adversarial:
            images = self.perturbers[batch.update](network, images, batch.labels, batch.random, batch.indices)
        logits = network(images)
        terms = LossTerms()
        terms.add("warmup", cross_entropy(logits, batch.labels.repeat(len(images) // len(batch.labels))))
        if self.options.confidence_penalty:
            probs = logits.float().softmax(1)
            terms.add("negative_entropy", (probs * probs.clamp_min(1e-12).log()).sum(1).mean())
        return terms

    def _mixed_loss(self, batch: Batch, place: int, lambda_u: float) -> LossTerms:
        """Return the loss of MixMatch on two views of each sample.

        The rows of a batch are: labelled, labelled again, unlabelled, unlabelled again.
        """
        network, labelled, unlabelled = self.networks[batch.update], len(batch.images), len(batch.unlabelled)
        sizes = (labelled, labelled, unlabelled, unlabelled)
        random = batch.random.grouped(*sizes)
        images = torch.cat([batch.images, batch.images, batch.unlabelled, batch.unlabelled])
        guessing = self.views.weak(images, random)
        targets = self._targets(batch, place, guessing)
        views, hard = guessing, targets.argmax(1)
        if self.options.strong:
            views = self.views.strong(self.views.weak(images, random), random, network, hard)
        if self.options.adversarial:
            indices = torch.cat([batch.indices.repeat(2), batch.unlabelled_indices.repeat(2)])
            perturbed = self.perturbers[batch.update](network, views, hard, random, indices)
            targets, views = targets.repeat(len(perturbed) // len(views), 1), perturbed
        mixed, mixed_targets = self._mixup(views, targets, random, sizes * (len(views) // sum(sizes)))
        logits = network(mixed)
        terms = LossTerms()
        # Groups are found by position, not by a mask, because the host would have to wait for the size of a mask.
        by_group, by_target = (rows.view(-1, sum(sizes), rows.shape[1]) for rows in (logits, mixed_targets))
        first = 2 * labelled
        terms.add(
            "labelled",
            soft_cross_entropy(by_group[:, :first].flatten(0, 1), by_target[:, :first].flatten(0, 1)),
        )
        if unlabelled:
            error = squared_error(by_group[:, first:].flatten(0, 1), by_target[:, first:].flatten(0, 1))
            terms.add("unlabelled", error, weight=lambda_u)
        terms.add("prior", prior_penalty(logits))
        self._add_terms(terms, network, views[first : sum(sizes)])
        return terms

    def _add_terms(self, terms: LossTerms, network: nn.Module, unlabelled_views: Tensor) -> None:
        """Add the terms of a subclass. `unlabelled_views` are both views of the unlabelled samples, (2U, C, H, W)."""

    @torch.no_grad()
    def _targets(self, batch: Batch, place: int, views: Tensor) -> Tensor:
        """Return sharpened soft labels for all rows: refined ones for labelled samples, guessed ones for the others.

        The network that learns makes its guesses in training mode, as in the published code, so that the running
        statistics of its batch norm include images that are not mixed, on which it is scored and tested.
        """
        labelled = len(batch.images)
        own, other = (self.networks[name] for name in (NETWORKS[place], NETWORKS[1 - place]))
        mine = own(views).float().softmax(1)
        with frozen(other):
            theirs = other(views[2 * labelled :]).float().softmax(1) if len(batch.unlabelled) else mine[:0]
        refined = mine[: 2 * labelled].view(2, labelled, -1).mean(0)
        trust = self.trust[place][batch.indices][:, None]
        onehot = torch.zeros_like(refined).scatter_(1, batch.labels[:, None], 1.0)
        refined = sharpen(trust * onehot + (1 - trust) * refined, self.options.temperature)
        guessed = torch.stack([mine[2 * labelled :], theirs]).view(2, 2, -1, mine.shape[1]).mean((0, 1))
        guessed = sharpen(guessed, self.options.temperature)
        return torch.cat([refined.repeat(2, 1), guessed.repeat(2, 1)])

    def _mixup(
        self, images: Tensor, targets: Tensor, random: BatchRandom, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Mix each row with another row of its block; each row keeps the larger share of itself."""
        from scipy.special import betaincinv  # imported here, because it takes half a second to load

        alpha = self.options.mixup_alpha
        share = float(betaincinv(alpha, alpha, float(random.shared())))
        share = max(share, 1 - share)
        partner = _partners(random, sizes, images.device)
        mixed = torch.lerp(images[partner], images, share)
        return mixed, torch.lerp(targets[partner], targets, share)


def _turns(name: str) -> tuple[tuple[Update, ...], ...]:
    return ((Update(name, (name,)),),)


def _partners(random: BatchRandom, sizes: tuple[int, ...], device: torch.device = CPU) -> Tensor:
    """Draw a permutation of the rows of groups of `sizes` that moves rows only within blocks of MIX_BLOCK, int64."""
    block = torch.cat([torch.arange(size, device=device) // MIX_BLOCK for size in sizes])
    in_order = block.argsort(stable=True)
    partner = torch.empty_like(in_order)
    partner[in_order] = (block + random.rand(len(block), device=device).double()).argsort()
    return partner
