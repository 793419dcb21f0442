"""Tests that a network that runs uncompiled in spite of `train.compile` is spoken of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from erat.engine.compiling import PROGRAMS, compile_network


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """Return a network that is really traced, but runs without generated code, which takes long to make."""
    import torch._dynamo

    original = nn.Module.compile

    def traced(network: nn.Module, *, mode: str | None, dynamic: bool) -> None:
        original(network, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    made = nn.Sequential(nn.Linear(3, 2))
    with torch._dynamo.config.patch(recompile_limit=1):
        compile_network(made, "main", cuda_graphs=False)
        yield made


def run(network: nn.Module, *rows: int) -> None:
    for count in rows:
        assert network(torch.ones(count, 3)).shape == (count, 2)


def test_several_shapes_are_compiled_in_silence(network: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(network, 1, 2, 3)
    assert torch._dynamo.config.recompile_limit == PROGRAMS, "in place of 1"


def test_what_is_beyond_the_limit_is_warned_of_once(network: nn.Module) -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(network, 1, 2, 1, 2)
        with pytest.warns(
            UserWarning, match=r"^train\.compile: network main runs uncompiled on images \(3, 3\)"
        ) as said:
            run(network, 3, 4, 3)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
