"""Defines AT, adversarial training: cross-entropy on perturbed images only, attacked in the norm of the poison.

With noisy labels and few steps the attack can keep the network from learning at all. Epochs on clean images and a
budget that grows slowly, both options, let it begin.

Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018; as a defense against
poisons, Tao et al., "Better Safe Than Sorry: Preventing Delusive Adversaries with Adversarial Training", NeurIPS 2021.
"""

from __future__ import annotations

from erat.defenses.base import Clock
from erat.defenses.ce import CrossEntropy
from erat.defenses.options import AdversarialTrainingOptions
from erat.losses import ramp


class AdversarialTraining(CrossEntropy):
    """Plain training whose images are perturbed by default."""

    Options = AdversarialTrainingOptions
    options: AdversarialTrainingOptions

    def strength(self, clock: Clock) -> float:
        """Return 0 in the warm-up, and after it a share that grows to 1 in `epsilon_ramp` epochs."""
        since = clock.time - self.options.warmup_epochs
        return 0.0 if since < 0 else ramp(1.0, since, self.options.epsilon_ramp)
