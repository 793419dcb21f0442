"""ISS: image shortcut squeezing. Cross-entropy on images that were compressed once, before training.

Source: Liu, Zhao, Larson, "Image Shortcut Squeezing: Countering Perturbative Availability Poisons with Compression",
ICML 2023. Test images stay as they are.
"""

from __future__ import annotations

from erat.defenses.ce import CrossEntropy
from erat.defenses.options import SqueezingOptions


class ImageShortcutSqueezing(CrossEntropy):
    """Plain training whose images are squeezed by default."""

    Options = SqueezingOptions
