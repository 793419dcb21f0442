"""Freezes a network while it is attacked or measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Put the network into eval mode without weight gradients inside the block, and restore every flag afterwards.

    Weights are frozen, not merely left out of `autograd.grad`, because a compiled network skips their gradients only
    if they are frozen.
    """
    training = [(module, module.training) for module in network.modules()]
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield network
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, flag in training:
            module.training = flag
