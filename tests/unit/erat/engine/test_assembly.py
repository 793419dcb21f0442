"""Tests the making of networks and defenses."""

from __future__ import annotations

import torch

from erat.engine.assembly import channel_statistics


def test_channel_statistics() -> None:
    images = torch.stack([torch.full((2, 3, 3), 51), torch.full((2, 3, 3), 153)]).to(torch.uint8)
    images[:, 1] = 255
    mean, std = channel_statistics(images)
    torch.testing.assert_close(mean, torch.tensor([0.4, 1.0]))
    torch.testing.assert_close(std, torch.tensor([0.2 * (18 / 17) ** 0.5, 1e-3]), rtol=1e-4, atol=0)
