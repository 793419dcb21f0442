"""Defines UNICON: the same share of every class is selected, and samples without labels have a contrastive loss.

Source: Karim et al., "UNICON: Combating Label Noise Through Uniform Selection and Contrastive Learning", CVPR 2022.
It departs from the published code in five points; the option in brackets restores the code's behaviour. The logarithm
of the divergence has base 2, as the cut-off of 0.7 supposes (`jsd_log=e`); a class smaller than its quota gives all
that it has (`quota=published`); the splits of both networks are made before either trains (`splits=in_turn`);
the contrastive loss has a head of two layers, as SimCLR has (`projection=linear`); a step has as many unlabelled as
labelled images (`unlabelled_batch=published`).
"""

from __future__ import annotations

from torch import Tensor, nn

from erat.defenses.base import LossTerms, Task
from erat.defenses.mixmatch import MixMatch
from erat.defenses.options import UniconOptions
from erat.defenses.selector import Split
from erat.losses import contrastive
from erat.models.heads import Projecting


class Unicon(MixMatch):
    """MixMatch with a uniform selection, and with SimCLR on the unlabelled samples."""

    Options = UniconOptions
    options: UniconOptions

    def __init__(self, options: UniconOptions, task: Task) -> None:
        super().__init__(options, task)

    def build(self, task: Task, place: int) -> nn.Module:
        """Build network number `place`, with a projection for the contrastive term."""
        return Projecting(task.build(place), heads=1, linear=self.options.projection == "linear")

    def unlabelled_ratio(self, split: Split) -> float:
        """Return 1 or, as published, 1 / (2 S), where S is the share of the samples that are selected."""
        if self.options.unlabelled_batch == "equal":
            return 1.0
        return 1 / (2 * float(split.mask.double().mean()))

    def _add_terms(self, terms: LossTerms, network: nn.Module, unlabelled_views: Tensor) -> None:
        if len(unlabelled_views) == 0 or self.options.contrastive_weight == 0:
            return
        _, (projected,) = network(unlabelled_views, project=True)
        first, second = projected.chunk(2)
        value = contrastive(first, second, self.options.contrastive_temperature)
        terms.add("contrastive", value, weight=self.options.contrastive_weight)
