"""Derives seeds from one seed, so that no two uses share a random stream and no library code seeds globally."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose ("views", "order", ...), independent of the seeds for other purposes."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator for one purpose; see `derive`."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global generator inside the block, for torch's own initialisations, and restore it afterwards.

    The CPU is made the default device inside, because another default device of the caller's would draw from another
    generator.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would reseed the accelerators' generators too, and fork_rng here saves only the CPU's.
        torch.default_generator.manual_seed(seed)
        yield
