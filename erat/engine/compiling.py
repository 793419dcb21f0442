"""Compile networks, and say so where one runs uncompiled after all.

torch.compile makes a program for each shape, mode and set of frozen weights. After `recompile_limit` programs it makes
no more, and the network runs as if `train.compile` were off: right, but slow, and torch only logs it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

# The programs that a network may get. A step has three (pseudo-labels, attack, student), scoring and tests have others
# for whole and for last batches; both networks of a defense share one count. Torch's own limit of 8 is soon reached.
PROGRAMS = 64


def compile_network(network: nn.Module, name: str, *, cuda_graphs: bool) -> None:
    """Compile a network in place, so that the names in checkpoints do not change.

    Args:
        network: the network.
        name: what the network is called in the warning that it runs uncompiled.
        cuda_graphs: launch a whole pass at once.
    """
    import torch._dynamo  # here because it loads slowly

    settings: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # torch before 2.7
    setattr(settings, limit, max(PROGRAMS, getattr(settings, limit)))
    network.register_forward_pre_hook(_Uncompiled(name))
    # Each batch size gets a program of its own.
    network.compile(mode="reduce-overhead" if cuda_graphs else None, dynamic=False)


class _Uncompiled:
    """A hook that warns, once, when it is really called; in a compiled program nothing of it is left."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, False

    def __call__(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            return
        if not self._said:
            self._said = True
            warnings.warn(
                f"train.compile: network {self._name} runs uncompiled on images {tuple(inputs[0].shape)}, because "
                f"torch.compile gave up on them (TORCH_LOGS=recompiles says why)",
                stacklevel=2,
            )
