"""BatchNorm over the batch of all data-parallel workers together, so that several normalise as one would.

torch's SyncBatchNorm does that on CUDA and refuses tensors of a CPU. There the statistics travel through all-reduces
that gradients pass through: what one worker's images do to another worker's normalisation counts in its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm of any number of dimensions, (B, C, ...), whose B is that of all workers. In eval mode as ever."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, f"expected (B, C, ...), got {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        normalise: Callable[[Tensor], Tensor] = self._over_all_workers if self.training else super().forward
        return normalise(input)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # collectives are no part of a compiled graph
    def _over_all_workers(self, input: Tensor) -> Tensor:
        over = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.float()
        own = values.new_tensor([values.numel() / values.shape[1]])
        summed = all_reduce(torch.cat([values.sum(over), own]))
        count, mean = summed[-1].detach(), summed[:-1] / summed[-1].detach()
        centred = values - mean.view(shape)
        # Of what is left after the mean: from sums of squares a small variance would lose its digits.
        variance = all_reduce(centred.square().sum(over)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = normal.to(input.dtype)
        return result

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as torch's own BatchNorm keeps them."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm inside one over all workers, in place: whoever holds one of them still does."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            if device.type == "cuda":
                part.__class__ = nn.SyncBatchNorm
                part.process_group = None  # type: ignore[assignment]  # all of them
            else:
                part.__class__ = SynchronisedBatchNorm
