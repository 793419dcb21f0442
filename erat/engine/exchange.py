"""Average the gradients of an update over the workers, in buckets that are on their way while backward still runs.

Torch's DistributedDataParallel does the same around one forward pass of one module. Here an update runs attacks and
several passes through the same networks, so the hooks are on the weights, and only during the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20  # as in DistributedDataParallel; a network's last bucket is usually smaller

Finish = Callable[[nn.Parameter, Tensor], Tensor]


class Exchange:
    """The exchange of one update.

    Buckets are filled from the last parameter to the first, the order in which backward makes gradients, and leave in
    this order on every worker. One that lacks a gradient leaves, as do those behind it, when backward has ended.

    Args:
        workers: the number of workers.
        parameters: the weights of the update; the same ones get a gradient on every worker.
        others: further tensors to average, in place; they leave at once.
    """

    def __init__(self, workers: int, parameters: Sequence[nn.Parameter], others: Sequence[Tensor] = ()) -> None:
        self._workers = workers
        self._buckets = _buckets(parameters)
        self._left = 0  # buckets that have left
        self._others = [(other, dist.all_reduce(other, async_op=True)) for other in others]

    @contextmanager
    def during(self, finish: Finish) -> Iterator[bool]:
        """Take gradients as backward makes them, within a `with` block; yield whether there are any to take.

        `torch.autograd.grad` then returns them as parts of the buckets, whose content is not final before `end`.

        Args:
            finish: called with a parameter and the gradient that backward made; returns what is to be averaged.
        """
        hooks = [
            parameter.register_hook(partial(self._take, bucket, place, finish))
            for bucket in self._buckets
            for place, parameter in enumerate(bucket.parameters)
        ]
        try:
            yield bool(hooks)
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, bucket: _Bucket, place: int, finish: Finish, grad: Tensor | None) -> Tensor | None:
        if grad is None:  # of a parameter that the loss does not depend on after all
            return None
        part = bucket.put(place, finish(bucket.parameters[place], grad))
        while self._left < len(self._buckets) and self._buckets[self._left].full:
            self._buckets[self._left].leave()
            self._left += 1
        return part

    def end(self) -> None:
        """Wait until all have arrived, and make each gradient, and each of the others, its mean over the workers."""
        for bucket in self._buckets[self._left :]:
            for place, parameter in enumerate(bucket.parameters):
                if bucket.parts[place] is None and parameter.grad is not None:
                    bucket.put(place, parameter.grad)
            bucket.leave()
        for other, journey in self._others:
            _arrived(journey)
            other /= self._workers
        for bucket in self._buckets:
            bucket.arrive(self._workers)


class _Bucket:
    """Gradients of some parameters, of one type and device, in one tensor.

    Attributes:
        parameters: the parameters.
        parts: the place of each one's gradient in the tensor, None until it is there.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.parts: list[Tensor | None] = [None] * len(parameters)
        self._flat: Tensor | None = None
        self._journey: Any = None

    @property
    def full(self) -> bool:
        """Return whether every gradient is there."""
        return all(part is not None for part in self.parts)

    def put(self, place: int, grad: Tensor) -> Tensor:
        """Copy a gradient to its place, and return it there, in the memory format of its parameter."""
        if self._flat is None:
            self._flat = grad.new_zeros(sum(parameter.numel() for parameter in self.parameters))
        start = sum(parameter.numel() for parameter in self.parameters[:place])
        parameter = self.parameters[place]
        part = self._flat[start : start + parameter.numel()]
        # A dense parameter's strides cover just its own numbers, in whatever order (channels last).
        dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=_format(parameter))
        part = part.as_strided(parameter.shape, parameter.stride(), start) if dense else part.view(parameter.shape)
        self.parts[place] = part.copy_(grad)
        return part

    def leave(self) -> None:
        """Start the sum over the workers, if there is a gradient at all."""
        if self._flat is not None:
            self._journey = dist.all_reduce(self._flat, async_op=True)

    def arrive(self, workers: int) -> None:
        """Wait for the sum, and give each parameter its mean."""
        if self._flat is None:
            return
        _arrived(self._journey)
        self._flat /= workers
        for parameter, part in zip(self.parameters, self.parts, strict=True):
            if part is not None:
                parameter.grad = part


def _format(parameter: nn.Parameter) -> torch.memory_format:
    return torch.channels_last if parameter.ndim == 4 else torch.contiguous_format


def _arrived(journey: Any) -> None:
    if journey is not None:  # None where the group has no such worker
        journey.wait()


def _buckets(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """Return the parameters, from the last to the first, in buckets of at most `BUCKET_BYTES` or one parameter."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        same = bool(groups) and (groups[-1][0].dtype, groups[-1][0].device) == (parameter.dtype, parameter.device)
        if not same or size + parameter.nbytes > BUCKET_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    return [_Bucket(group) for group in groups]
