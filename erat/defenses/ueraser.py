"""Defines UEraser-max: of several strong views of each image, the one of largest loss is trained on.

All views go through the network in one pass, in training mode, as in the authors' code, so that batch statistics are of
all of them, and the gradient is that of the worst ones alone. `defense.worst_of=1` is UEraser-lite; `worst_epochs` is
the published form between them, which takes the worst only in its first epochs. With `view_jpeg` the views are
compressed, which is the authors' `UEraserJPEG`, and with one view a sibling of ISS that compresses after augmenting.

Source: Qin et al., "Learning the Unlearnable: Adversarial Augmentations Suppress Unlearnable Example Attacks" (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from erat.data.augment.views import strong_view
from erat.data.jpeg import jpeg
from erat.data.random import BatchRandom
from erat.defenses.base import Batch, Clock, Defense, LossTerms, Task
from erat.defenses.options import UEraserOptions
from erat.defenses.viewing import Views
from erat.losses import label_loss


class UEraser(Defense):
    """Training with the given labels on the worst of several augmentations of a weak view."""

    Options = UEraserOptions

    def __init__(self, options: UEraserOptions, task: Task) -> None:
        super().__init__(options, task)
        self.options = options
        self.networks = nn.ModuleDict({"main": task.build(0)})
        self.views = Views(options, task)

    def loss(self, batch: Batch, clock: Clock) -> LossTerms:
        """Return the mean over the images of the largest cross-entropy among their views."""
        count = self.count(clock)
        views = self.several(batch.images, batch.random, count)
        losses_VN = label_loss(batch.labels.repeat(count), self.networks["main"](views)).view(count, -1)
        terms = LossTerms()
        # `max` and not `amax`, which would divide the gradient among views of equal loss.
        terms.add("ce", losses_VN.max(0).values.mean())
        return terms

    def count(self, clock: Clock) -> int:
        """Return the number of views of each image in this epoch."""
        over = self.options.worst_epochs is not None and clock.epoch >= self.options.worst_epochs
        return 1 if over else self.options.worst_of

    def several(self, images: Tensor, random: BatchRandom, count: int) -> Tensor:
        """Return `count` views of each image, (count * N, C, H, W): view v of image i is row v * N + i.

        As in the authors' code, all views of an image are made from the same crop and flip.
        """
        options = self.options
        with record_function("strong views"), torch.no_grad():
            views = self.views.weak(images, random).repeat(count, 1, 1, 1)
            if options.strong:
                assert options.policy is not None, "filled by the config"
                views = strong_view(views, random.grouped(len(images)), policy=options.policy)
            return jpeg(views, options.view_jpeg) if options.view_jpeg else views
