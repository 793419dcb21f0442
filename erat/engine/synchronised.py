"""BatchNorm over the joint batch of all data-parallel workers, so that several workers normalise as a single one would.

On CUDA, torch's SyncBatchNorm does this, but it refuses tensors on the CPU. There, one small exchange in the forward
pass combines the statistics, and another in the backward pass combines the gradients that pass through them, so that a
worker's gradient includes the effect of its images on the normalisation of the other workers. All other computations
use torch's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalise(torch.autograd.Function):
    """The normalisation over all workers as a differentiable function.

    It returns (normalised values, mean, biased variance, number of values per channel), the last three over all
    workers.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = values.shape[1]
        # The kernel of torch's own BatchNorm: bit-equal to var_mean, in a third of its time.
        own_mean, own_variance = torch.batch_norm_update_stats(values, None, None, 0.0)
        own = torch.cat([own_mean, own_variance, values.new_tensor([values.numel() / channels])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([channels, channels, 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        # Deviations are combined, not squares, with which a small variance would lose its digits: Chan, Golub, LeVeque
        # (1979).
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(values, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        values, weight, mean, variance, count = ctx.saved_tensors
        # This treats the statistics as constants; the gradient through them follows from the sums that it returns.
        direct, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grad, values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([by_weight, by_bias])
        dist.all_reduce(sums)
        inverse = (variance + ctx.eps).rsqrt()
        scale = -inverse / count if weight is None else -inverse * weight / count
        slope = scale * inverse * sums[0]
        shape = [1, -1] + [1] * (values.ndim - 2)
        through = torch.addcmul((scale * sums[1] - slope * mean).view(shape), values, slope.view(shape))
        return direct.add_(through), *((None, None) if weight is None else (by_weight, by_bias)), None


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm of inputs (B, C, ...) of any number of dimensions, normalised over the samples of all workers.

    In eval mode it is the usual BatchNorm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, f"expected (B, C, ...), got {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); in training mode this waits for all workers."""
        normalise: Callable[[Tensor], Tensor] = self._over_all_workers if self.training else super().forward
        return normalise(input)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # collectives cannot be part of a compiled graph
    def _over_all_workers(self, input: Tensor) -> Tensor:
        values = input if input.dtype == torch.float64 else input.float()
        normal, mean, variance, count = _Normalise.apply(values, self.weight, self.bias, self.eps)
        self._remember(mean, variance * count / (count - 1).clamp_min(1))
        result: Tensor = normal.to(input.dtype)
        return result

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics in the same way as torch's own BatchNorm."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm inside `module` synchronise over all workers, in place, so that references stay valid."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            if device.type == "cuda":
                part.__class__ = nn.SyncBatchNorm
                part.process_group = None  # type: ignore[assignment]  # None: all workers
            else:
                part.__class__ = SynchronisedBatchNorm
