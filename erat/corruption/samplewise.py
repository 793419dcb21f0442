"""Craft one perturbation per image in batches that do not depend on each other, and go on after an interruption."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erat.corruption.base import Craft

BATCH = 250


def in_batches(craft: Craft, what: str, attack: Callable[[Tensor, Tensor], Tensor], size: int = BATCH) -> Tensor:
    """Return the perturbation of every image, float (N, C, H, W).

    Args:
        craft: the request.
        what: the name of the work in progress reports.
        attack: returns the perturbed images of a batch (images, labels).
        size: the number of images in a batch.
    """

    def moved(part: slice) -> Tensor:
        return attack(craft.images[part], craft.labels[part]) - craft.images[part]

    return by_part(craft, what, moved, size)


def by_part(craft: Craft, what: str, make: Callable[[slice], Tensor], size: int = BATCH) -> Tensor:
    """Return the perturbation of every image, float (N, C, H, W).

    Args:
        craft: the request; what `make` draws from its generator is drawn in the order of the images, and after an
            interruption from where it was.
        what: the name of the work in progress reports.
        make: returns the perturbations of the images in a slice.
        size: the number of images in a slice.
    """
    delta = torch.zeros_like(craft.images)
    state, done = craft.resume(), 0
    if state is not None:
        delta, done = state["delta"], state["done"]
    total = len(craft.images)
    for start in range(done, total, size):
        part = slice(start, min(start + size, total))
        delta[part] = make(part).to(delta)
        craft.keep(delta=delta, done=part.stop)
        craft.progress(what, part.stop, total)
    return delta
