"""Makes the views of images on which a defense trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from erat.attacks.freezing import frozen
from erat.data.augment.views import strong_view, weak_view
from erat.data.random import BatchRandom
from erat.defenses.base import Task
from erat.defenses.shared_options import ViewOptions
from erat.losses import label_loss


class Views:
    """Makes the two views of a batch. Every image has its own draw; no gradient flows through a view."""

    def __init__(self, options: ViewOptions, task: Task, *, crop: bool = False) -> None:
        """Make views for a defense; with `crop`, strong ones are flipped and cropped before the policy."""
        self._options, self._flip, self._crop = options, task.flip, crop

    def weak(self, images: Tensor, random: BatchRandom) -> Tensor:
        """Return weak views (flip plus crop or erasing) of images (B, C, H, W), same shape."""
        if self._options.weak == "none":
            return images
        return weak_view(images, random, kind=self._options.weak, flip=self._flip)

    def strong(self, images: Tensor, random: BatchRandom, network: nn.Module, labels: Tensor) -> Tensor:
        """Return strong views (AutoAugment) of images (B, C, H, W), or weak ones if the options have no strong views.

        Flip and crop, where strong views have them, are all that is left of these without the policy, so that a
        comparison of both is one of the policy alone.

        With `worst_of` above 1, each image gets the one of several draws on which the cross-entropy of `network` for
        `labels` (int64, (B,)) is highest. Source: Qin et al., "Learning the Unlearnable: Adversarial Augmentations
        Suppress Unlearnable Example Attacks" (2023), with AutoAugment in place of its augmentations.
        """
        options = self._options
        if not options.strong:
            return self._beneath(images, random) if self._crop else self.weak(images, random)
        assert options.policy is not None, "filled by the config"
        with record_function("strong views"):
            view = strong_view(self._beneath(images, random), random, policy=options.policy)
            if options.worst_of == 1:
                return view
            with frozen(network), torch.no_grad():
                loss = label_loss(labels, network(view).float())
                for _ in range(options.worst_of - 1):
                    other = strong_view(self._beneath(images, random), random, policy=options.policy)
                    other_loss = label_loss(labels, network(other).float())
                    worse = other_loss > loss
                    view = torch.where(worse[:, None, None, None], other, view)
                    loss = torch.where(worse, other_loss, loss)
            return view

    def _beneath(self, images: Tensor, random: BatchRandom) -> Tensor:
        return weak_view(images, random, kind="crop", flip=self._flip) if self._crop else images
