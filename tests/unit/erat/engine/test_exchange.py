"""Tests the exchange of gradients in buckets, with a stand-in for the sum over the workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erat.engine import exchange
from erat.engine.exchange import Exchange


class Sums:
    """Sums over two workers with the same gradients, which come when they are waited for; `sent` holds their sizes."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def __call__(self, tensor: Tensor, async_op: bool) -> Sums._Journey:
        assert async_op
        self.sent.append(tensor.numel())
        return self._Journey(tensor)

    class _Journey:
        def __init__(self, tensor: Tensor) -> None:
            self._tensor = tensor

        def wait(self) -> None:
            self._tensor *= 2


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    made = Sums()
    monkeypatch.setattr(exchange.dist, "all_reduce", made)
    return made


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.arange(1.0, size + 1)) for size in sizes]


def given(_parameter: nn.Parameter, grad: Tensor) -> Tensor:
    return grad


def backward(weights: list[nn.Parameter], total: Tensor, way: Exchange, finish: Any = given) -> tuple[Any, ...]:
    with way.during(finish) as taken:
        assert taken
        return torch.autograd.grad(total, weights, allow_unused=True)


def test_gradients_become_means_and_are_parts_of_a_bucket(sums: Sums) -> None:
    weights = parameters(3, 2)
    way = Exchange(2, weights)
    grads = backward(weights, sum((w.square().sum() for w in weights), start=torch.zeros(())), way)
    way.end()
    for weight, grad in zip(weights, grads, strict=True):
        assert weight.grad is not None
        assert torch.equal(weight.grad, 2 * weight.detach())
        assert grad.data_ptr() == weight.grad.data_ptr()
    assert weights[0].grad.untyped_storage().data_ptr() == weights[1].grad.untyped_storage().data_ptr()  # type: ignore[union-attr]
    assert sums.sent == [5]
    assert not weights[0]._backward_hooks


def test_buckets_leave_from_the_last_parameter_to_the_first_while_backward_runs(
    sums: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 4 * 6)
    weights, inside = parameters(1, 9, 4, 2), []
    way = Exchange(2, weights)
    total = weights[0].sum()
    for weight in weights[1:]:
        total = total * weight.sum()
    backward(weights, total, way, lambda _, grad: inside.append(list(sums.sent)) or grad)
    assert sums.sent == [6, 9, 1]
    assert [] in inside
    assert [6] in inside, "the first left before the last gradient was made"
    way.end()
    assert sums.sent == [6, 9, 1], "each once"


def test_a_bucket_never_overtakes_another(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order would depend on a worker's graph, and workers would add up different buckets."""
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 4)
    weights = parameters(3, 2)
    way = Exchange(2, weights)
    with way.during(given):
        torch.autograd.grad(weights[0].sum(), weights[:1])
        assert sums.sent == []
        torch.autograd.grad(weights[1].sum(), weights[1:])
    assert sums.sent == [2, 3]


def test_a_parameter_without_gradient_keeps_none_and_holds_up_no_other(sums: Sums) -> None:
    weights = parameters(3, 2)
    way = Exchange(2, weights)
    assert backward(weights, weights[0].sum(), way)[1] is None
    assert sums.sent == []
    way.end()
    assert torch.equal(weights[0].grad, torch.ones(3))  # type: ignore[arg-type]
    assert weights[1].grad is None


def test_no_gradient_at_all_is_not_exchanged(sums: Sums) -> None:
    Exchange(2, parameters(3)).end()
    assert sums.sent == []


def test_parts_are_added_before_they_leave(sums: Sums) -> None:
    """The second parameter has a gradient in the first part of the batch only."""
    weights = parameters(3, 2)
    weights[0].grad, weights[1].grad = torch.full((3,), 5.0), torch.full((2,), 7.0)
    way = Exchange(2, weights)
    backward(weights, weights[0].sum(), way, lambda weight, grad: weight.grad.add_(grad / 2))
    way.end()
    assert [weight.grad.tolist() for weight in weights] == [[5.5] * 3, [7.0] * 2]  # type: ignore[union-attr]


def test_others_leave_at_once(sums: Sums) -> None:
    flag = torch.ones(1)
    way = Exchange(4, parameters(3), [flag])
    assert sums.sent == [1]
    way.end()
    assert flag.item() == 0.5


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 1, 1), (5,)], ids=str)
def test_a_gradient_has_the_strides_of_its_parameter(sums: Sums, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weights = [nn.Parameter(torch.ones(7)), nn.Parameter(values)]
    if len(shape) == 4:
        weights[1] = nn.Parameter(values.to(memory_format=torch.channels_last))
    way = Exchange(2, weights)
    backward(weights, weights[0].sum() + weights[1].square().sum(), way)
    way.end()
    assert weights[1].grad is not None
    assert weights[1].grad.stride() == weights[1].stride()
    assert torch.equal(weights[1].grad, 2 * values)
    assert torch.equal(weights[0].grad, torch.ones(7))  # type: ignore[arg-type]


def test_types_do_not_share_a_bucket(sums: Sums) -> None:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    way = Exchange(2, weights)
    backward(weights, weights[0].sum() + weights[1].sum(), way)
    way.end()
    assert sums.sent == [2, 3]
    assert weights[1].grad is not None
    assert weights[1].grad.dtype == torch.float64
