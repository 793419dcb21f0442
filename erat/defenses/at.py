"""AT: adversarial training. Cross-entropy on perturbed images alone, attacked in the norm of the poison.

Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018; as a defense against
poisons, Tao et al., "Better Safe Than Sorry: Preventing Delusive Adversaries with Adversarial Training", NeurIPS 2021.
"""

from __future__ import annotations

from erat.defenses.ce import CrossEntropy
from erat.defenses.options import AdversarialTrainingOptions


class AdversarialTraining(CrossEntropy):
    """Plain training whose images are perturbed by default."""

    Options = AdversarialTrainingOptions
