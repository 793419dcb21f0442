"""Makes random draws for the global batch, whatever the number of data-parallel workers.

A batch of W*n images on one worker and W batches of n images on W workers must get the same flips, crops and
policies; otherwise a run could not be compared with the same run on more devices. Every worker therefore draws for all
W*n images from an identically seeded generator and keeps the rows of its own n images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erat.devices import CPU, to_device

ON_DEVICE = ("cuda",)  # the types of devices that make their own draws; all others get those of the CPU
KEYS = 2**63 - 1


class BatchRandom:
    """A random source whose rows are split over the workers.

    Draws are made on the CPU unless a GPU is named as their `device`, which then makes them itself, from a key that the
    CPU draws. Only the keys come from the generator, so a checkpoint need not hold the state of a GPU's, and no worker
    draws the rows of all of them on its CPU. What is drawn on the CPU the host knows, so that images can be grouped by
    operation without waiting for a device.

    Args:
        generator: a CPU generator with the same seed on all workers; its state stays the same on all as long as all
            workers make the same calls with the same n.
        rank: this worker's number, 0..workers-1.
        workers: the number of workers that share the global batch in equal parts.
        groups: sizes of the groups that make up a batch of this worker, see `grouped`.
    """

    def __init__(
        self, generator: torch.Generator, rank: int = 0, workers: int = 1, groups: tuple[int, ...] = ()
    ) -> None:
        assert generator.device.type == "cpu", f"draws are made on the CPU, got a generator on {generator.device}"
        assert 0 <= rank < workers, f"rank must be in 0..{workers - 1}, got {rank}"
        self._generator = generator
        self._rank = rank
        self._workers = workers
        self._groups = groups

    def grouped(self, *sizes: int) -> BatchRandom:
        """Return the same source for batches that stack groups: `sizes[0]` labelled rows, `sizes[1]` unlabelled, ...

        The batch of a single worker has all labelled rows first. The draws of W workers together must have the same
        order, or one row would belong to a labelled image on one worker and to an unlabelled one on W workers. A draw
        of a multiple of the sum of `sizes` repeats the groups.
        """
        return BatchRandom(self._generator, self._rank, self._workers, sizes)

    def rand(self, n: int, *shape: int, device: torch.device = CPU) -> Tensor:
        """Draw uniformly from [0, 1): float32, shape (n, *shape), on `device`."""
        rows = self._workers * n, *shape
        return self._drawn(n, device, lambda on, by: torch.rand(rows, device=on, generator=by))

    def randn(self, n: int, *shape: int, device: torch.device = CPU) -> Tensor:
        """Draw from the standard normal distribution: float32, shape (n, *shape), on `device`."""
        rows = self._workers * n, *shape
        return self._drawn(n, device, lambda on, by: torch.randn(rows, device=on, generator=by))

    def randint(self, high: int, n: int, *shape: int, device: torch.device = CPU) -> Tensor:
        """Draw uniformly from 0..high-1: int64, shape (n, *shape), on `device`."""
        rows = self._workers * n, *shape
        return self._drawn(n, device, lambda on, by: torch.randint(high, rows, device=on, generator=by))

    def bernoulli(self, p: float, n: int, device: torch.device = CPU) -> Tensor:
        """Draw true with probability p, never for p = 0 and always for p = 1: bool, shape (n,), on `device`."""
        return self.rand(n, device=device) < p

    def shared(self, *shape: int) -> Tensor:
        """Draw uniformly from [0, 1), the same on every worker: float32, shape `shape`, on the CPU."""
        return torch.rand(shape, generator=self._generator)

    def _drawn(self, n: int, device: torch.device, draw: Callable[[torch.device, torch.Generator], Tensor]) -> Tensor:
        """Return the n rows of this worker of what `draw(device, generator)` draws for all workers."""
        if device.type not in ON_DEVICE:
            return to_device(self._own_rows(n, draw(CPU, self._generator)), device)
        key = int(torch.randint(KEYS, (), generator=self._generator))
        return self._own_rows(n, draw(device, torch.Generator(device).manual_seed(key)))

    def _own_rows(self, n: int, global_rows: Tensor) -> Tensor:
        if self._workers == 1:
            return global_rows
        groups = self._groups or (n,)
        repeats, rest = divmod(n, sum(groups)) if sum(groups) else (0, n)
        assert rest == 0, f"a draw of {n} rows does not repeat the groups {groups}"
        parts, start = [], 0
        for size in groups * repeats:
            parts.append(global_rows[start + self._rank * size : start + (self._rank + 1) * size])
            start += self._workers * size
        return torch.cat(parts) if parts else global_rows[:0]
