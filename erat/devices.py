"""Settles what depends on the kind of device: how tensors are copied to it, and how it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy `host` to `device` without waiting; a copy to a GPU is asynchronous only from pinned memory."""
    if device.type == "cuda" and host.numel():
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


@contextmanager
def arithmetic(kind: str, precision: str) -> Iterator[None]:
    """Settle how a GPU computes within a `with` block, and restore torch's flags afterwards; the CPU has no choice.

    TF32, with 10 bits in place of float32's 23, is used for convolutions and matrix products only if `precision` is
    "tf32"; torch itself would use it for convolutions. `cudnn.benchmark` is off and `cudnn.deterministic` is on:
    kernels that are chosen by a race on the clock, or add in any order, would give another run's bits after a resume.

    Args:
        kind: the type of the device, "cuda" or "cpu".
        precision: the value of `train.precision`.
    """
    if kind != "cuda":
        yield
        return
    tf32, before = precision == "tf32", torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def in_fixed_order(device: torch.device) -> Iterator[None]:
    """Let a GPU add within a `with` block in an order that does not change from call to call, as the CPU always does.

    This is for sums by index, whose fast kernels on a GPU add in the order in which their threads arrive.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
