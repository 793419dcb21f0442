"""DivideMix: a mixture of two Gaussians splits the data, two networks learn from each other's split by MixMatch.

Source: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020. As in the
published code both splits are made before either network trains; `splits=in_turn` makes the second one after.
"""

from __future__ import annotations

from erat.defenses.mixmatch import MixMatch
from erat.defenses.options import DivideMixOptions


class DivideMix(MixMatch):
    """MixMatch over the split of a mixture model."""

    Options = DivideMixOptions
