"""Measures accuracy against budget: which images an attack fools, for several threat models, budgets and attacks.

An image that is fooled within a budget is fooled within every larger one, and by every attack that includes the one
that fooled it. So the curves fall with the budget and with the strength of the attack by construction, and what has
been fooled need not be attacked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from erat.attacks.apgd import apgd
from erat.attacks.ensemble import NORMS, standard_ensemble
from erat.attacks.freezing import frozen
from erat.attacks.pgd import pgd
from erat.attacks.threats import Mixture, threat_models
from erat.data.random import BatchRandom
from erat.data.types import ImageSet, to_float
from erat.defenses.base import Defense, Predicting
from erat.engine.evaluation import ATTACK_BATCH, ATTACK_STEP_RATIO, ATTACK_STEPS
from erat.losses import label_loss, label_margin
from erat.robustness.common import parts
from erat.seeding import derive, generator

SHARES = (0.25, 0.5, 1.0, 2.0)  # budgets, as shares of the customary budget
APGD_STEPS = 30
ENSEMBLE_BATCH = 100  # images between two signs of life; an image takes thousands of passes
# From the weakest to the strongest. Each includes those before it, of those that are asked for.
ATTACKS = ("pgd", "apgd", "standard")
# What an image costs about, in forward passes: a gradient counts as two more, APGD runs on two losses, and of the
# ensemble the four attacks on an image that withstands them all take 100 steps, twice 9 x 100, and 5,000 queries.
COST = {"pgd": 3 * ATTACK_STEPS, "apgd": 6 * (APGD_STEPS + 1), "standard": 3 * 1000 + 4 * 900 + 5000}
TOLERANCE = 1e-4  # by which rounding may let a perturbation exceed its budget, as a share of it


@dataclass(frozen=True)
class Condition:
    """What images are attacked with.

    Attributes:
        threat: one of `erat.options.NORMS`.
        budget: in the unit of the threat model.
        attack: one of `ATTACKS`.
    """

    threat: str
    budget: float
    attack: str

    def __str__(self) -> str:
        return f"{self.attack} {self.threat} {self.budget:.4g}"


@dataclass(frozen=True)
class Protocol:
    """What an evaluation consists of.

    Attributes:
        budgets: threat model -> its budgets, ascending.
        attacks: some of `ATTACKS`, in their order.
        seed: the seed of the random starts.
    """

    budgets: Mapping[str, tuple[float, ...]]
    attacks: tuple[str, ...]
    seed: int = 0

    def of(self, threat: str) -> tuple[str, ...]:
        """Return the attacks that there are for a threat model: the ensemble has no l_0, for example."""
        return tuple(attack for attack in self.attacks if attack != "standard" or threat in NORMS)

    def conditions(self, threat: str) -> list[Condition]:
        """Return the conditions of a threat model in the order in which they are met."""
        return [Condition(threat, budget, attack) for budget in self.budgets[threat] for attack in self.of(threat)]


@dataclass
class Work:
    """How far an evaluation is.

    Attributes:
        done, total: batches attacked, and in all.
        what: what is done at the moment.
        spent, ahead: the cost of what was done here, and an upper bound on what is left, both in passes of an image.
    """

    done: int = 0
    total: int = 0
    what: str = ""
    spent: float = 0.0
    ahead: float = 0.0


@dataclass
class Evaluation:
    """An evaluation under way: its defense, images and protocol, and what is known already.

    Attributes:
        defense: the trained defense, on the device of the images.
        images: the images to attack.
        protocol: what to do.
        known: conditions met before -> which images are fooled, bool (N,); such a condition is not met again.
        keep: called when a condition was met.
        tell: called after each batch.
    """

    defense: Defense
    images: ImageSet
    protocol: Protocol
    known: Mapping[str, Tensor] = field(default_factory=dict)
    keep: Callable[[Condition, Tensor], None] = lambda condition, fooled: None
    tell: Callable[[Work], None] = lambda work: None

    def fooled(self, wrong_N: Tensor) -> dict[Condition, Tensor]:
        """Return for every condition which images are misclassified under it, bool (N,), on the CPU.

        Args:
            wrong_N: which images are misclassified as they are, bool (N,).
        """
        protocol, found = self.protocol, dict[Condition, Tensor]()
        left = [condition for threat in protocol.budgets for condition in protocol.conditions(threat)]
        work = Work(total=sum(len(self._parts(condition.attack)) for condition in left))
        logits = Predicting(self.defense)
        with frozen(logits):
            for threat, budgets in protocol.budgets.items():
                fooled = dict.fromkeys(protocol.of(threat), wrong_N.cpu())
                for budget in budgets:
                    before = wrong_N.cpu()
                    for attack in protocol.of(threat):
                        condition, already = Condition(threat, budget, attack), fooled[attack] | before
                        left.remove(condition)
                        later = sum(
                            COST[each.attack] * int((~(already if each.threat == threat else wrong_N)).sum())
                            for each in left
                        )
                        now = self._met(logits, condition, already, work, later)
                        found[condition] = fooled[attack] = before = now
        return found

    def _met(self, logits: nn.Module, condition: Condition, already: Tensor, work: Work, later: float) -> Tensor:
        """Return which images are fooled under a condition: `already`, or by the attack on the others."""
        stored, every = self.known.get(str(condition)), self._parts(condition.attack)
        if stored is not None:
            work.done += len(every)
            return stored | already
        fooled, work.what = already.clone(), str(condition)
        for part, rows in zip(every, self._rows(every, already), strict=True):
            if len(rows):
                fooled[rows] = self._attacked(logits, condition, part, rows)
            work.done += 1
            work.spent += COST[condition.attack] * len(rows)
            work.ahead = later + COST[condition.attack] * int((~already[part.stop :]).sum())
            self.tell(work)
        self.keep(condition, fooled)
        return fooled

    def _parts(self, attack: str) -> list[slice]:
        return list(parts(len(self.images), ENSEMBLE_BATCH if attack == "standard" else ATTACK_BATCH))

    def _rows(self, every: list[slice], already: Tensor) -> Iterator[Tensor]:
        for part in every:
            yield (~already[part]).nonzero().squeeze(1) + part.start

    def _attacked(self, logits: nn.Module, condition: Condition, part: slice, rows: Tensor) -> Tensor:
        """Return which of the images at these rows of a batch the attack fools, bool (B,), on the CPU.

        The draws are made for the whole batch, so that they do not depend on which images are left.
        """
        device, threat = self.images.labels.device, threat_models(logits)[condition.threat]
        here = rows.to(device)
        clean, labels = to_float(self.images.images[here]), self.images.labels[here]
        purpose = (condition.attack, condition.threat, f"{condition.budget:.6g}", part.start)
        random = BatchRandom(generator(self.protocol.seed, "evaluate", *purpose))
        start = threat.draw(to_float(self.images.images[part]), condition.budget, random)[here - part.start]
        seed = derive(self.protocol.seed, "ensemble", *purpose) % 2**31
        fooled = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for moved, of in self._moved(logits, condition, clean, labels, start, seed):
            # Whatever an attack returns counts only if it is an image, and within the budget.
            moved = moved.clamp(0, 1)
            within = threat.size(moved - clean[of], clean[of]) <= condition.budget * (1 + TOLERANCE)
            with torch.no_grad():
                fooled[of] |= (logits(moved).argmax(1) != labels[of]) & within
        return fooled.cpu()

    def _moved(
        self, logits: nn.Module, condition: Condition, clean: Tensor, labels: Tensor, start: Tensor, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (perturbed images, their rows) of each run that the attack consists of.

        PGD climbs cross-entropy from a random start. APGD climbs cross-entropy from the image itself, and then, where
        that fails, the margin from a random start.
        """
        everything = torch.arange(len(clean), device=clean.device)
        if condition.attack == "standard":
            norm, budget, classes = condition.threat, condition.budget, self.images.num_classes
            yield (
                standard_ensemble(logits, clean, labels, norm=norm, epsilon=budget, num_classes=classes, seed=seed),
                everything,
            )
            return
        budgets = _budgets(logits, condition, clean)
        loss = partial(label_loss, labels)
        if condition.attack == "pgd":
            size = budgets.epsilon * ATTACK_STEP_RATIO
            yield (
                pgd(logits, clean, loss, budgets, steps=ATTACK_STEPS, step_size=size, start_NCHW=start),
                everything,
            )
            return
        moved, _ = apgd(logits, clean, loss, budgets, steps=APGD_STEPS)
        yield moved, everything
        with torch.no_grad():
            rest = (logits(moved).argmax(1) == labels).nonzero().squeeze(1)
        if len(rest):
            margin, few = partial(label_margin, labels[rest]), _budgets(logits, condition, clean[rest])
            moved, _ = apgd(logits, clean[rest], margin, few, steps=APGD_STEPS, start_NCHW=start[rest])
            yield moved, rest


def evenly_spaced(images: ImageSet, most: int) -> ImageSet:
    """Take at most `most` images at even distances, because the files of a folder come class by class."""
    few = min(len(images), most)
    return images.take(torch.arange(few, device=images.labels.device) * len(images) // few)


def _budgets(network: nn.Module, condition: Condition, images: Tensor) -> Mixture:
    return Mixture.alone(condition.threat, condition.budget, images, network)
