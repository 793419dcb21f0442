"""Tests the loss terms against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from erat.losses import consistency, cross_entropy, ramp


def test_cross_entropy_is_the_mean() -> None:
    """The values are -ln 0.5 and -ln 0.25, with the mean 1.5 ln 2."""
    logits = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    assert cross_entropy(logits, torch.tensor([0, 1])).item() == pytest.approx(1.5 * math.log(2))


def test_consistency_by_mean_and_by_sum() -> None:
    """The squared errors are 0.01 + 0.04 + 0.01 and 0.

    Over two samples and three classes the mean is 0.06 / 6; per sample it is 0.06 / 2.
    """
    logits = torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]]).log()
    target = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]])
    assert consistency(logits, target).item() == pytest.approx(0.01)
    assert consistency(logits, target, "sum").item() == pytest.approx(0.03)


def test_consistency_takes_logits_of_any_shift_and_soft_targets() -> None:
    logits = torch.tensor([[100.0, 100.0]])
    assert consistency(logits, torch.tensor([[0.5, 0.5]])).item() == 0


def test_an_empty_batch_costs_nothing_and_still_has_a_gradient() -> None:
    logits = torch.empty(0, 3, requires_grad=True)
    none = torch.empty(0, dtype=torch.int64)
    for value in (
        cross_entropy(logits, none),
        consistency(logits, torch.empty(0, 3)),
        consistency(logits, torch.empty(0, 3), "sum"),
    ):
        assert value.item() == 0
        assert torch.autograd.grad(value, logits)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("epochs", "weight"), [(-3.0, 0.0), (0.0, 0.0), (4.0, 6.25), (8.5, 13.28125), (16.0, 25.0), (99.0, 25.0)]
)
def test_ramp(epochs: float, weight: float) -> None:
    assert ramp(25.0, epochs, 16.0) == weight


def test_a_ramp_of_no_length_is_full_at_once() -> None:
    assert ramp(25.0, 0.0, 0.0) == 25.0
