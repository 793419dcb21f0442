"""Defines DivideMix: a mixture of two Gaussians splits the data, and two networks swap splits and learn by MixMatch.

Source: Li, Socher, Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020. As in the
published code, both splits are made before either network trains; `splits=in_turn` makes the second split after the
first network has trained.
"""

from __future__ import annotations

from typing import Literal

from erat.defenses.mixmatch import MixMatch, MixMatchOptions
from erat.options import Setting


class DivideMixOptions(MixMatchOptions):
    """Keys under `defense.` for `defense.name=dividemix`."""

    name: Literal["dividemix"] = "dividemix"
    selector: Literal["rebalance", "mixture", "jsd", "errors"] = "mixture"
    exchange: Literal["crossed", "joint"] = "crossed"

    def default_lambda_u(self, setting: Setting) -> float:
        if setting.data in ("cifar100", "tiny-imagenet"):
            return 150.0
        return 0.0 if setting.labels == "asymmetric" else 25.0


class DivideMix(MixMatch):
    """MixMatch with the split of a mixture model."""

    Options = DivideMixOptions
