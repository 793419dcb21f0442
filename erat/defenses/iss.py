"""Defines ISS, image shortcut squeezing: cross-entropy on images that were compressed once, before training.

Source: Liu, Zhao, Larson, "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with Compression",
ICML 2023. Test images are not compressed.
"""

from __future__ import annotations

from typing import Literal

from erat.defenses.ce import CrossEntropy, CrossEntropyOptions


class SqueezingOptions(CrossEntropyOptions):
    """Keys under `defense.` for `defense.name=iss`."""

    name: Literal["iss"] = "iss"  # type: ignore[assignment]
    squeeze: Literal["none", "jpeg", "grayscale", "bits"] = "jpeg"


class ImageShortcutSqueezing(CrossEntropy):
    """Plain training whose images are squeezed by default."""

    Options = SqueezingOptions
