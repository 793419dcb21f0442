"""Seeds derived from one seed, so that no two uses share a stream and no library code seeds globally."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose ("views", "order", ...), independent of the others."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The CPU's global generator seeded inside, for torch's own initialisations; as it was, afterwards.

    A default device set by the caller would draw from another generator, hence the explicit CPU.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would reseed the accelerators' generators too, and fork_rng here saves only the CPU's.
        torch.default_generator.manual_seed(seed)
        yield
