"""Tests the common corruptions: their range, their strength, and some of them against other programs."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import pytest
import torch

from erat.data.types import ImageSet
from erat.robustness.common import SEVERITIES, STRENGTHS, corrupt


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", STRENGTHS)
def test_every_kind_changes_images_more_with_severity_and_stays_in_range(pictures: torch.Tensor, kind: str) -> None:
    clean, distances = pictures.float() / 255, []
    assert len(STRENGTHS[kind]) == len(SEVERITIES)
    for strength in STRENGTHS[kind]:
        made = corrupt(pictures, kind, strength, 3)
        assert made.shape == clean.shape
        assert made.min() >= 0 and made.max() <= 1
        assert torch.equal(made, corrupt(pictures, kind, strength, 3))
        distances.append((made - clean).square().mean().item())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_grey_images_are_corrupted_too(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(5).images
    for kind, strengths in STRENGTHS.items():
        assert corrupt(images, kind, strengths[0]).shape == images.shape


def test_brightness_is_added_to_the_value_of_hsv(pictures: torch.Tensor) -> None:
    pictures[0, :, 0, 0] = 0
    made = corrupt(pictures, "brightness", 0.15)
    for row, column in ((0, 0), (3, 5), (9, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pictures[0, :, row, column].float() / 255).tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        assert made[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_contrast_keeps_the_mean_of_each_channel(pictures: torch.Tensor) -> None:
    clean, made = pictures.float() / 255, corrupt(pictures, "contrast", 0.4)
    torch.testing.assert_close(made.mean((2, 3)), clean.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.std((2, 3)), 0.4 * clean.std((2, 3)), rtol=1e-4, atol=0)


def test_impulses_turn_a_share_of_the_values_black_or_white() -> None:
    grey = torch.full((20, 3, 32, 32), 100, dtype=torch.uint8)
    made = corrupt(grey, "impulse", 0.07)
    assert (made == 0).double().mean().item() == pytest.approx(0.035, abs=0.004)
    assert (made == 1).double().mean().item() == pytest.approx(0.035, abs=0.004)
    assert ((made == 0) | (made == 1) | (made == made[made.ne(0) & made.ne(1)][0])).all()


def test_shot_noise_has_the_variance_of_photons() -> None:
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    made = corrupt(grey, "shot", 100)
    assert made.mean().item() == pytest.approx(128 / 255, abs=0.003)
    assert made.var().item() == pytest.approx(128 / 255 / 100, rel=0.05)
