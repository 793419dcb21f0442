"""Activation checkpointing: blocks that keep only their input for backward and are computed twice.

Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost" (2016).
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(networks: nn.Module) -> None:
    """Make each residual or transformer block keep only its input; backward computes the rest of the block again.

    Only training passes become slower, since attacks and scores run in eval mode. The names of weights, the results and
    the statistics do not change; on the CPU they are bit-equal.
    """
    # Imported here so that training another network does not load torchvision's.
    from torchvision.models.resnet import BasicBlock, Bottleneck  # type: ignore[import-untyped,unused-ignore]
    from torchvision.models.vision_transformer import EncoderBlock  # type: ignore[import-untyped,unused-ignore]

    from erat.models.wideresnet import WideBlock

    kinds: tuple[type[nn.Module], ...] = (BasicBlock, Bottleneck, WideBlock, EncoderBlock)
    blocks = [module for module in networks.modules() if isinstance(module, kinds)]
    if not blocks:
        warnings.warn("train.checkpoint_activations has no use here: the network has no blocks", stacklevel=2)
    plain = [block for block in blocks if not hasattr(block, "computes_twice")]
    twice = {kind: _twice(kind) for kind in {type(block) for block in plain}}
    for block in plain:
        block.__class__ = twice[type(block)]


def _twice(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a block's class that computes twice.

    Unlike a wrapped `forward` method, a class is also effective in a copy of the block.
    """

    def forward(self: nn.Module, *inputs: Tensor) -> Any:
        plain = partial(kind.forward, self)
        if not (self.training and torch.is_grad_enabled()):
            return plain(*inputs)
        contexts = (nullcontext(), _StatisticsStay(self))
        return checkpoint(plain, *inputs, use_reentrant=False, context_fn=lambda: contexts)

    return type(kind.__name__, (kind,), {"forward": forward, "computes_twice": True})


class _StatisticsStay:
    """A context for the second pass, in which the running statistics of batch norm do not change.

    They have already taken in the same batch in the first pass.
    """

    def __init__(self, block: nn.Module) -> None:
        self._norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self._before = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm, (_, batches) in zip(self._norms, self._before, strict=True):
            norm.momentum = 0.0
            norm.num_batches_tracked = None if batches is None else batches.clone()

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self._norms, self._before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
