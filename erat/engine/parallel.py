"""Data-parallel workers: the rank of this process, and the few collectives that training needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from erat.engine.exchange import Exchange


@dataclass(frozen=True)
class Ranks:
    """The place of this worker among `workers`. With a single worker, collectives do nothing."""

    rank: int = 0
    workers: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return this process's place in torch.distributed, or that of a single worker if there is no process group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Return whether this is the first worker, which writes checkpoints and logs."""
        return self.rank == 0

    def exchange(self, parameters: Sequence[nn.Parameter], *others: Tensor) -> Exchange:
        """Begin to average the gradients of an update, and `others` in place; a single worker has nothing to exchange.

        The means are there after `Exchange.end`.
        """
        return Exchange(self.workers, parameters, others) if self.workers > 1 else Exchange(1, ())

    def average_buffers(self, module: nn.Module) -> None:
        """Average floating-point buffers (BatchNorm statistics), so that all workers predict with the same values."""
        if self.workers == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.workers

    def shard(self, count: int) -> range:
        """Return this worker's part of the rows 0..count-1, a contiguous range.

        All shards but the last ones have equal size; the last ones may be smaller or empty.
        """
        size = -(-count // self.workers)
        return range(min(self.rank * size, count), min((self.rank + 1) * size, count))

    def gather_rows(self, rows: Tensor, count: int) -> Tensor:
        """Return the shards of all workers put together: `count` rows, in order, on every worker."""
        if self.workers == 1:
            return rows
        size = -(-count // self.workers)
        padded = rows.new_zeros(size, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.workers)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:count]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all workers; `value` itself is overwritten with it."""
        if self.workers > 1:
            dist.all_reduce(value)
        return value

    def agree(self, flag: bool) -> bool:
        """Return the first worker's `flag` on every worker."""
        if self.workers == 1:
            return flag
        # NCCL can only transfer tensors that are on a GPU.
        decision = torch.tensor([int(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(decision, src=0)
        return bool(decision.item())
