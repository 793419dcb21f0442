"""Keeps the running mean of a network's weights, whose judgement varies less from step to step than the network's own.

Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of a network that follows it slowly and never learns by itself.

    Its weights are buffers: they are in the checkpoint, and no optimizer or gradient reaches them.

    Args:
        network: the network to follow.
        decay: the share of the teacher's weights that an update keeps, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self.network = deepcopy(network)
        for module in self.network.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for float images in [0, 1]."""
        logits: Tensor = self.network(images)
        return logits

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move weights and batch statistics towards those of `network`; copy whole numbers, which have no mean."""
        theirs = network.state_dict()
        for name, mine in self.network.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name], 1 - self._decay)
            else:
                mine.copy_(theirs[name])
