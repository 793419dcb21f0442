"""Selects for a defense which labels are believed in the coming epoch, and how far.

The rules of four papers share one interface: class probabilities go in, a labelled set and a trust in each label come
out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erat.defenses.base import Task
from erat.defenses.shared_options import SelectorOptions
from erat.devices import in_fixed_order
from erat.selection import class_scores, divergence, divergence_cutoff, quotas, scores, select, smallest_per_class


@dataclass(frozen=True)
class Split:
    """The decision of a selector.

    Attributes:
        mask: bool (N,), the labelled set.
        trust: float32 (N,) in [0, 1], the share of a given label that co-refinement keeps.
        repeats: how many additional times sample 0 is in the labelled set.
    """

    mask: Tensor
    trust: Tensor
    repeats: int = 0

    def numbers(self) -> dict[str, float]:
        """Return what an epoch's plan reports of it: the mean trust in a given label, in [0, 1]."""
        return {"label_trust": float(self.trust.mean())}

    def indices(self) -> tuple[Tensor, Tensor]:
        """Return the indices of (labelled, unlabelled) samples, int64 on the CPU."""
        everything, mask = torch.arange(len(self.mask)), self.mask.cpu()
        labelled, rest = everything[mask], everything[~mask]
        if self.repeats:
            labelled = torch.cat([labelled, torch.zeros(self.repeats, dtype=torch.int64)])
            rest = rest[rest != 0]
        return labelled, rest


class Selector(nn.Module):
    """The configured rule and its state.

    State: `labelled`, bool (N,), the previous labelled set, D'_l of Eq. 3.
    """

    labelled: Tensor

    def __init__(self, options: SelectorOptions, task: Task) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("labelled", torch.ones(task.num_samples, dtype=torch.bool))

    def forward(self, probs: Sequence[Tensor], labels: Tensor) -> Split:
        """Make the split of this epoch.

        A second call in an epoch makes `rebalance` take the result of the first for that of the previous epoch.

        Args:
            probs: softmax outputs, shape (N, K), of each network that takes part in the decision.
            labels: the given labels, int64 (N,).
        """
        mean = torch.stack(list(probs)).mean(0) if len(probs) > 1 else probs[0]
        with in_fixed_order(labels.device):  # scores near a tie must not fall on another side after a resume
            split: Split = getattr(self, f"_{self.options.selector}")(mean, labels)
        self.labelled = split.mask
        return split

    def _rebalance(self, probs: Tensor, labels: Tensor) -> Split:
        """Select by ERAT's rule, Eqs. 1-5."""
        values = scores(probs, labels, self.options.score)
        # Cross-entropy has no upper bound, so its largest present value is used in place of 2.
        largest = 2.0 if self.options.score == "l2" else float(values.max().clamp_min(1e-12))
        mask = select(
            values,
            labels,
            self.labelled,
            probs.shape[1],
            eta=self.options.eta,
            rebalance=self.options.rebalance,
            largest=largest,
            literal_rate=self.options.rate == "literal",
        )
        return Split(mask, (1 - values / largest).clamp(0, 1).float())

    def _mixture(self, probs: Tensor, labels: Tensor) -> Split:
        """Select by DivideMix's rule: the posterior of the Gaussian with the smaller mean, fitted to the losses."""
        posterior = clean_posterior(scores(probs, labels, "ce"))
        mask = _at_least(posterior > self.options.threshold, -posterior, probs.shape[1])
        return Split(mask, posterior)

    def _class_mixture(self, probs: Tensor, labels: Tensor) -> Split:
        """Select as `_mixture` does, with a mixture for each class, so that each has its own share of right labels."""
        values, posterior = scores(probs, labels, "ce"), torch.zeros(len(labels), device=probs.device)
        for k in range(probs.shape[1]):
            mine = labels == k
            if bool(mine.any()):
                posterior[mine] = clean_posterior(values[mine])
        mask = _at_least(posterior > self.options.threshold, -posterior, probs.shape[1])
        return Split(mask, posterior)

    def _jsd(self, probs: Tensor, labels: Tensor) -> Split:
        """Select by UNICON's rule: from every class the same number of samples, those of least divergence."""
        count, classes = len(labels), probs.shape[1]
        values = divergence(probs, labels, base=self.options.jsd_log)
        below = values < divergence_cutoff(values, self.options.jsd_high, self.options.jsd_filter)
        wanted = int(_at_least(below, values, classes).sum())
        sizes = torch.bincount(labels, minlength=classes)
        equal = torch.full((classes,), 1 / classes, dtype=torch.float64, device=probs.device)
        mask = smallest_per_class(values, labels, quotas(wanted, equal, sizes))
        # A label with a divergence below one half is kept in full.
        trust = torch.where(values < 0.5, 1.0, 1 - values).clamp(0, 1)
        repeats = min(wanted, count) - int(mask.sum()) if self.options.quota == "published" else 0
        return Split(mask, trust.float(), repeats)

    def _errors(self, probs: Tensor, labels: Tensor) -> Split:
        """Select by MSPL's rule (reconstructed): errors below the mean of all samples or of their class."""
        values, classes = scores(probs, labels, "ce"), probs.shape[1]
        of_class = class_scores(values, labels, torch.ones_like(labels, dtype=torch.bool), classes)[labels]
        below = (values < values.mean()) | (values < of_class)
        return Split(_at_least(below, values, classes), probs.gather(1, labels[:, None]).squeeze(1))


def clean_posterior(losses_N: Tensor) -> Tensor:
    """Return the probability that each label is right, float32, shape (N,) (the co-divide of DivideMix).

    The losses, scaled to [0, 1], are modelled as draws from two Gaussians, of which the one with the smaller mean
    belongs to the right labels. If all losses are equal, all labels are believed.

    Source: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020.
    """
    # Imported here, because it takes seconds to load and most defenses do not use it.
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped,unused-ignore]

    values = losses_N.double().cpu()
    span = values.max() - values.min()
    if not span > 0:
        return torch.ones_like(losses_N, dtype=torch.float32)
    scaled = ((values - values.min()) / span).numpy()[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations are not meant to converge
        mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    posterior = mixture.predict_proba(scaled)[:, mixture.means_.argmin()]
    return torch.from_numpy(posterior).float().to(losses_N.device)


def _at_least(mask: Tensor, values: Tensor, count: int) -> Tensor:
    """Return `mask`, or the `count` smallest values if it has fewer, so that the labelled set is never too small."""
    if int(mask.sum()) >= min(count, len(mask)):
        return mask
    fallback = torch.zeros_like(mask)
    fallback[values.argsort(stable=True)[:count]] = True
    return fallback
