"""The selector of a defense: whose labels are believed in the coming epoch, and how much.

Four papers, one interface: class probabilities in, a labelled set and a trust in each label out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erat.defenses.base import Task
from erat.defenses.options import SelectorOptions
from erat.selection import class_scores, divergence, divergence_cutoff, quotas, scores, select, smallest_per_class


@dataclass(frozen=True)
class Split:
    """What a selector decided.

    Attributes:
        mask: bool (N,), the labelled set.
        trust: float32 (N,) in [0, 1], how much of a given label co-refinement keeps.
        repeats: how many more times sample 0 stands in the labelled set.
    """

    mask: Tensor
    trust: Tensor
    repeats: int = 0

    def indices(self) -> tuple[Tensor, Tensor]:
        """(labelled, unlabelled), int64 on the CPU."""
        everything, mask = torch.arange(len(self.mask)), self.mask.cpu()
        labelled, rest = everything[mask], everything[~mask]
        if self.repeats:
            labelled = torch.cat([labelled, torch.zeros(self.repeats, dtype=torch.int64)])
            rest = rest[rest != 0]
        return labelled, rest


class Selector(nn.Module):
    """The configured rule, with what it remembers.

    State: `labelled`, bool (N,): the previous labelled set, D'_l of Eq. 3.
    """

    labelled: Tensor

    def __init__(self, options: SelectorOptions, task: Task) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("labelled", torch.ones(task.num_samples, dtype=torch.bool))

    def forward(self, probs: Sequence[Tensor], labels: Tensor) -> Split:
        """This epoch's split. Asked a second time in an epoch, `rebalance` takes the first answer for the last epoch's.

        Args:
            probs: of each network that has a say, softmax outputs of shape (N, K).
            labels: given, int64 (N,).
        """
        mean = torch.stack(list(probs)).mean(0) if len(probs) > 1 else probs[0]
        split: Split = getattr(self, f"_{self.options.selector}")(mean, labels)
        self.labelled = split.mask
        return split

    def _rebalance(self, probs: Tensor, labels: Tensor) -> Split:
        """ERAT, Eqs. 1-5."""
        values = scores(probs, labels, self.options.score)
        # Cross-entropy has no bound of its own: its largest value present takes the place of 2.
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
        """DivideMix: the posterior of the Gaussian with the smaller mean, fitted to the losses."""
        posterior = clean_posterior(scores(probs, labels, "ce"))
        mask = _at_least(posterior > self.options.threshold, -posterior, probs.shape[1])
        return Split(mask, posterior)

    def _jsd(self, probs: Tensor, labels: Tensor) -> Split:
        """UNICON: the same number of least divergence from every class."""
        count, classes = len(labels), probs.shape[1]
        values = divergence(probs, labels, base=self.options.jsd_log)
        below = values < divergence_cutoff(values, self.options.jsd_high, self.options.jsd_filter)
        wanted = int(_at_least(below, values, classes).sum())
        sizes = torch.bincount(labels, minlength=classes)
        equal = torch.full((classes,), 1 / classes, dtype=torch.float64, device=probs.device)
        mask = smallest_per_class(values, labels, quotas(wanted, equal, sizes))
        # A label that diverges by less than half is kept whole.
        trust = torch.where(values < 0.5, 1.0, 1 - values).clamp(0, 1)
        repeats = min(wanted, count) - int(mask.sum()) if self.options.quota == "published" else 0
        return Split(mask, trust.float(), repeats)

    def _errors(self, probs: Tensor, labels: Tensor) -> Split:
        """MSPL (reconstructed): an error below the mean of all, or below the mean of its class."""
        values, classes = scores(probs, labels, "ce"), probs.shape[1]
        of_class = class_scores(values, labels, torch.ones_like(labels, dtype=torch.bool), classes)[labels]
        below = (values < values.mean()) | (values < of_class)
        return Split(_at_least(below, values, classes), probs.gather(1, labels[:, None]).squeeze(1))


def clean_posterior(losses_N: Tensor) -> Tensor:
    """The probability that each label is right, float32, shape (N,): DivideMix's co-divide.

    The losses, scaled to [0, 1], are taken for draws from two Gaussians, of which the one with the smaller mean is that
    of the right labels. Equal losses tell nothing, and all labels are believed.

    Source: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020.
    """
    # Here, for its seconds of loading: most defenses have no use for it.
    from sklearn.mixture import GaussianMixture  # type: ignore[import-untyped,unused-ignore]

    values = losses_N.double().cpu()
    span = values.max() - values.min()
    if not span > 0:
        return torch.ones_like(losses_N, dtype=torch.float32)
    scaled = ((values - values.min()) / span).numpy()[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ten iterations do not converge is meant so
        mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    posterior = mixture.predict_proba(scaled)[:, mixture.means_.argmin()]
    return torch.from_numpy(posterior).float().to(losses_N.device)


def _at_least(mask: Tensor, values: Tensor, count: int) -> Tensor:
    """`mask`, or the `count` smallest values where it has fewer: there is always something to learn from."""
    if int(mask.sum()) >= min(count, len(mask)):
        return mask
    fallback = torch.zeros_like(mask)
    fallback[values.argsort(stable=True)[:count]] = True
    return fallback
