"""Train the network that perturbations are crafted against while they are crafted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Surrogate:
    """A network that learns by SGD, step by step.

    Args:
        network: maps images to logits.
        lr, momentum, weight_decay: the settings of SGD; the defaults are those of UP's authors.
    """

    def __init__(
        self, network: nn.Module, *, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        self.network = network
        self._optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def learn(self, images: Tensor, labels: Tensor, lr: float | None = None) -> None:
        """Take a step on the mean cross-entropy of images (B, C, H, W) for labels, int64 (B,); keep `lr`, if given."""
        if lr is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.network(images), labels).backward()
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return the state to keep, from which `restore` goes on."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of another."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
