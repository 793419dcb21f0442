"""Tests how a GPU is told to compute; the flags are torch's and can be set without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from erat.config import RunConfig
from erat.devices import arithmetic, in_fixed_order, to_device
from erat.engine.trainer import Trainer
from erat.training import threads


def flags() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "convolutions in TF32": cudnn.allow_tf32,
        "products": torch.get_float32_matmul_precision(),
    }


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_gpu_computes_as_settled(precision: str) -> None:
    before, tf32 = flags(), precision == "tf32"
    with arithmetic("cuda", precision):
        inside = flags()
    assert inside == {
        "benchmark": False,
        "deterministic": True,
        "convolutions in TF32": tf32,
        "products": "high" if tf32 else "highest",
    }
    assert flags() == before


def test_the_flags_return_after_an_error() -> None:
    before = flags()
    with pytest.raises(RuntimeError, match="inside"), arithmetic("cuda", "tf32"):
        raise RuntimeError("inside")
    assert flags() == before


def test_on_the_cpu_nothing_is_touched() -> None:
    before = flags()
    with arithmetic("cpu", "tf32"), in_fixed_order(torch.device("cpu")):
        assert flags() == before
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("device", "settled"), [("auto", True), ("cuda", True), ("cpu", False)])
def test_a_run_settles_its_own(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, device: str, settled: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with threads(make_config({"resources.device": device})):
        assert torch.backends.cudnn.deterministic is settled
        assert torch.backends.cudnn.allow_tf32 is not settled
    assert torch.backends.cudnn.allow_tf32


def test_sums_by_index_are_made_in_order_on_a_gpu() -> None:
    with in_fixed_order(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_copy_to_the_cpu_is_no_copy() -> None:
    values = torch.ones(3)
    assert to_device(values, torch.device("cpu")) is values
    assert to_device(values, torch.device("meta")).device.type == "meta"


def test_tf32_on_the_cpu_is_warned_of(make_config: Callable[..., Any], make_data: Callable[..., Any]) -> None:
    config = make_config({"train.precision": "tf32", "resources.device": "cpu"})
    with pytest.warns(UserWarning, match=r"train\.precision=tf32 has no use on the CPU"):
        Trainer(config, make_data(32))
