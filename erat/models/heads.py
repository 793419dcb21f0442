"""Cuts a network before its last linear layer, so that other heads can use its features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def cut_head(network: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """Remove the last linear layer from `network`, which is changed in place.

    Returns:
        (the network, which now maps images to features (B, F); the removed linear layer, F -> K).

    Raises:
        ValueError: the network has no linear layer.
    """
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the network must end in a linear layer, got none in it")
    name, head = linear[-1]
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
    return network, head


class Projecting(nn.Module):
    """A classifier with projection heads beside its last layer (by default the two-layer heads of SimCLR).

    Args:
        network: maps images to logits (B, K); its last layer is removed from it.
        heads: number of projection heads.
        width: D, the width of each projection.
        linear: each head is one linear layer with batch norm instead.
    """

    def __init__(self, network: nn.Module, heads: int, width: int = 128, *, linear: bool = False) -> None:
        super().__init__()
        self.features, self.classifier = cut_head(network)
        inputs = self.classifier.in_features

        def head() -> nn.Module:
            if linear:
                return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width))
            return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, width))

        self.projectors = nn.ModuleList(head() for _ in range(heads))

    def forward(self, images: Tensor, project: bool = False) -> Tensor | tuple[Tensor, Sequence[Tensor]]:
        """Return the logits (B, K); with `project` also each head's projections, (B, D), of unit length."""
        features = self.features(images)
        logits: Tensor = self.classifier(features)
        if not project:
            return logits
        return logits, [nn.functional.normalize(head(features).float(), dim=1) for head in self.projectors]
