"""Makes batches for tests of defenses."""

from __future__ import annotations

import torch

from erat.data.random import BatchRandom
from erat.defenses.base import Batch


def batch(labelled: int = 8, unlabelled: int = 6, phase: str = "train", seed: int = 0) -> Batch:
    """Return 8x8 images of four classes in turn, the same for every seed, and a BatchRandom with this seed."""
    draw = torch.Generator().manual_seed(3)
    return Batch(
        images=torch.rand(labelled, 1, 8, 8, generator=draw),
        labels=torch.arange(labelled) % 4,
        indices=torch.arange(labelled),
        unlabelled=torch.rand(unlabelled, 1, 8, 8, generator=draw),
        unlabelled_indices=torch.arange(unlabelled),
        random=BatchRandom(torch.Generator().manual_seed(seed)),
        phase=phase,
    )
