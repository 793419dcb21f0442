"""One perturbation per image, crafted in batches that do not depend on each other: what AP and AA share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erat.corruption.base import Craft

BATCH = 250


def in_batches(craft: Craft, what: str, attack: Callable[[Tensor, Tensor], Tensor], size: int = BATCH) -> Tensor:
    """The perturbation of every image, (N, C, H, W), from `attack(images, labels)`, which returns moved images."""
    delta = torch.zeros_like(craft.images)
    state, done = craft.resume(), 0
    if state is not None:
        delta, done = state["delta"], state["done"]
    total = len(craft.images)
    for start in range(done, total, size):
        part = slice(start, min(start + size, total))
        delta[part] = attack(craft.images[part], craft.labels[part]) - craft.images[part]
        craft.keep(delta=delta, done=part.stop)
        craft.progress(what, part.stop, total)
    return delta
