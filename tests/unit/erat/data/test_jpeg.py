"""Tests JPEG of float images against PIL's, which writes and reads files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from erat.data.jpeg import jpeg


def pictures(channels: int, side: int, count: int = 20) -> Tensor:
    """Make smooth shapes under a little noise, uint8."""
    draw = torch.Generator().manual_seed(side)
    coarse = torch.rand(count, channels, 4, 4, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=draw)
    return (noisy * 255).round().clamp(0, 255).to(torch.uint8)


def through_a_file(image: Tensor, quality: int) -> Tensor:
    pixels, file = image.permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file)))
    return decoded[None] if decoded.ndim == 2 else decoded.permute(2, 0, 1)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 100])
@pytest.mark.parametrize("side", [8, 13, 14, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_pil_s_but_for_single_levels_and_rare_blocks(channels: int, side: int, quality: int) -> None:
    given = pictures(channels, side)
    theirs = torch.stack([through_a_file(image, quality) for image in given]).float()
    ours = jpeg(given.float() / 255, quality) * 255
    off = (ours - theirs).abs()
    lost = (theirs - given).abs().mean()
    print(f"mean {off.mean():.3f}, more than a level {(off > 1.5).float().mean():.3f}; JPEG itself {lost:.2f}")
    # A coefficient half-way between two steps goes the other way in some blocks, all of whose pixels then differ.
    assert (off > 1.5).float().mean() < 0.2
    assert off.median() < 1.5
    if quality < 100:
        assert off.mean() < lost / 8
    else:
        assert off.max() < 6.5


def test_an_even_surface_stays_even() -> None:
    """A single coefficient is left: the level minus 128, times 8, in whole steps of 80 at quality 10."""
    levels = torch.tensor([0.0, 100.0, 127.0, 128.0, 133.0, 200.0])
    even = (levels / 255).view(-1, 1, 1, 1).expand(-1, 1, 14, 14)
    steps = torch.copysign(((levels - 128).abs() / 10 + 0.5).floor(), levels - 128)
    expected = (128 + 10 * steps).clamp(0, 255)
    assert torch.equal((jpeg(even, 10) * 255).round(), expected.view(-1, 1, 1, 1).expand(-1, 1, 14, 14))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_are_jpeg_already_lose_little(channels: int) -> None:
    given = pictures(channels, 16).float() / 255
    once = jpeg(given, 10)
    assert (jpeg(once, 10) - once).abs().mean() < 0.3 * (once - given).abs().mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_lower_quality_loses_more(channels: int) -> None:
    given = pictures(channels, 28).float() / 255
    losses = [float((jpeg(given, quality) - given).abs().mean()) for quality in (5, 10, 30, 75, 95)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_range_levels_and_the_given_images(channels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    given = torch.rand(6, channels, 11, 17, generator=draw).requires_grad_()
    before = given.detach().clone()
    got = jpeg(given, 10)
    assert got.shape == given.shape
    assert got.dtype == torch.float32
    assert not got.requires_grad
    assert torch.equal(given.detach(), before)
    assert got.min() >= 0
    assert got.max() <= 1
    torch.testing.assert_close(got * 255, (got * 255).round(), rtol=0, atol=1e-3)
    assert jpeg(given[:0], 10).shape == (0, channels, 11, 17)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_in_any_batch_and_memory_format(channels: int) -> None:
    given = pictures(channels, 14, 40).float() / 255
    together = jpeg(given, 10)
    alone = torch.cat([jpeg(image[None], 10) for image in given])
    scattered = jpeg(given.to(memory_format=torch.channels_last), 10)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(scattered, together, rtol=0, atol=1e-6)


def test_reduced_precision_has_no_influence() -> None:
    given = pictures(3, 16).float() / 255
    with torch.autocast("cpu", torch.bfloat16):
        half = jpeg(given, 10)
    assert torch.equal(half, jpeg(given, 10))
