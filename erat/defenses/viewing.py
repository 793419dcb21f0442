"""Which views of its images a defense trains on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.pgd import frozen
from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.defenses.base import Task
from erat.defenses.options import ViewOptions
from erat.losses import label_loss


class Views:
    """The two views of a batch. Every image has its own draw; no gradient flows through a view."""

    def __init__(self, options: ViewOptions, task: Task) -> None:
        self._options, self._flip = options, task.flip

    def weak(self, images: Tensor, random: BatchRandom) -> Tensor:
        """Flip plus crop or erasing, shape as `images` (B, C, H, W)."""
        if self._options.weak == "none":
            return images
        return weak_view(images, random, kind=self._options.weak, flip=self._flip)

    def strong(self, images: Tensor, random: BatchRandom, network: nn.Module, labels: Tensor) -> Tensor:
        """AutoAugment, or a weak view where the options have no strong ones.

        With `worst_of` above 1, of several draws the one on which `network`'s cross-entropy for `labels` (int64, (B,))
        is highest. Source: Qin et al., "Learning the Unlearnable: Adversarial Augmentations Suppress Unlearnable
        Example Attacks" (2023), with AutoAugment in the place of its augmentations.
        """
        options = self._options
        if not options.strong:
            return self.weak(images, random)
        assert options.policy is not None, "filled by the config"
        with record_function("strong views"):
            view = strong_view(images, random, policy=options.policy)
            if options.worst_of == 1:
                return view
            with frozen(network), torch.no_grad():
                loss = label_loss(labels, network(view).float())
                for _ in range(options.worst_of - 1):
                    other = strong_view(images, random, policy=options.policy)
                    other_loss = label_loss(labels, network(other).float())
                    worse = other_loss > loss
                    view = torch.where(worse[:, None, None, None], other, view)
                    loss = torch.where(worse, other_loss, loss)
            return view
