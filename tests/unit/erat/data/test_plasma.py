"""Tests UEraser's strong views: the fractal, the order of channels, and one operation of TrivialAugment."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from erat.data.augment import ops, plasma
from erat.data.augment.policies import GEOMETRIC
from erat.data.augment.views import strong_view
from erat.data.random import BatchRandom


def seeded(seed: int = 0) -> BatchRandom:
    return BatchRandom(torch.Generator().manual_seed(seed))


def images(n: int, channels: int = 3, size: int = 14) -> Tensor:
    coarse = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def point_by_point(noise: Tensor, roughness: float) -> Tensor:
    """Compute one map as the algorithm is described: of every level first the centres, then the middles of sides."""
    side = len(noise) - 1
    values = {(y, x): float(noise[y, x]) for y in (0, side) for x in (0, side)}
    step, scale = side, 1.0
    while step > 1:
        half, scale = step // 2, scale * roughness
        centres = [(y, x) for y in range(half, side, step) for x in range(half, side, step)]
        middles = [
            (y, x) for y in range(0, side + 1, half) for x in range(0, side + 1, half) if (y // half + x // half) % 2
        ]
        for points, around in (
            (centres, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (middles, [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            for y, x in points:
                near = [values[y + dy, x + dx] for dy, dx in around if (y + dy, x + dx) in values]
                values[y, x] = (1 - scale) * sum(near) / len(near) + scale * float(noise[y, x])
        step = half
    return torch.tensor([[values[y, x] for x in range(side + 1)] for y in range(side + 1)], dtype=torch.float64)


@pytest.mark.parametrize("side", [3, 5, 17])
def test_a_plasma_is_what_the_algorithm_says_point_by_point(side: int) -> None:
    noise = torch.rand(3, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side))
    before, roughness = noise.clone(), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    maps = plasma.plasma(noise, roughness)
    assert torch.equal(noise, before)
    for row, rough in enumerate(roughness.tolist()):
        for channel in range(2):
            expected = point_by_point(noise[row, channel], rough)
            torch.testing.assert_close(maps[row, channel], expected, rtol=0, atol=1e-12)


def test_roughness_is_the_share_of_noise() -> None:
    noise = torch.rand(200, 1, 17, 17, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plasma.plasma(noise, torch.ones(200)), noise), "nothing but noise"
    maps = [plasma.plasma(noise, torch.full((200,), rough)) for rough in (0.0, 0.3, 0.7)]
    steps = [float(found.diff(dim=-1).abs().mean()) for found in maps]
    assert steps == sorted(steps), "rougher maps change more from pixel to pixel"
    assert all(0 <= float(found.min()) <= float(found.max()) <= 1 for found in maps)
    assert [float(found.mean()) for found in maps] == pytest.approx([0.5] * 3, abs=0.05)


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 9), (9, 9, 9), (14, 14, 17), (17, 10, 17), (32, 33, 33)])
def test_a_plasma_covers_the_image(height: int, width: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    made = plasma.plasma

    def seen(noise: Tensor, roughness: Tensor) -> Tensor:
        sides.append(noise.shape[-1])
        return made(noise, roughness)

    monkeypatch.setattr(plasma, "plasma", seen)
    assert plasma._plasma_of(torch.zeros(2, 3, height, width), seeded()).shape == (2, 3, height, width)
    assert sides == [side]


@pytest.mark.parametrize(
    ("level", "share", "why"),
    [(0.5, 1 / 2, "contrast leaves grey as it is, brightness does not"), (0.9, 3 / 4, "one, the other, or both")],
)
def test_half_of_the_images_get_each_plasma(
    level: float, share: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plasma, "trivial_augment", lambda views, random: views)
    n, given = 2000, torch.full((2000, 1, 8, 8), level)
    moved = (plasma.ueraser_view(given, seeded()) != given).flatten(1).any(1)
    assert abs(int(moved.sum()) - n * share) < 4 * math.sqrt(n * share * (1 - share)), why


def test_channels_are_shuffled_into_every_order_alike() -> None:
    n, draw = 6000, torch.Generator().manual_seed(0)
    given = torch.tensor([0.0, 0.5, 0.9]).view(1, 3, 1, 1) + torch.rand(n, 1, 8, 8, generator=draw) * 0.1
    found = plasma.shuffled_channels(given, seeded())
    orders = found.mean((2, 3)).argsort(1)
    counts = (orders * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 6
    chi_square = float(((counts - n / 6) ** 2 / (n / 6)).sum())
    assert abs(chi_square - 5) < 4 * math.sqrt(10)
    assert torch.equal(found.gather(1, orders[:, :, None, None].expand_as(found)), given)


@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_augment_applies_one_operation_to_each_image(channels: int) -> None:
    given, names = images(300, channels), [name for name, _, _ in plasma.TRIVIAL]
    found = plasma.trivial_augment(given, seeded(3))
    random = seeded(3)
    chosen, share = random.randint(len(names), 300).tolist(), random.rand(300).double()
    assert len(set(chosen)) == len(names)
    for image, view, number, part in zip(given, found, chosen, share, strict=True):
        name, low, high = plasma.TRIVIAL[number]
        size = 14 if name.startswith("translate") else 1
        magnitude = ((low + (high - low) * part) * size)[None]
        if name == "posterize":
            magnitude = magnitude.floor()
            assert magnitude.item() in (1, 2, 3)
        if name in GEOMETRIC:
            expected = ops.warp(image[None], ops.MATRICES[name](magnitude, 14, 14))
        else:
            expected = ops.PHOTOMETRIC_FUNCTIONS[name](image[None], magnitude.float())
        torch.testing.assert_close(view[None], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_policy_is_named_ueraser(channels: int) -> None:
    given = images(32, channels)
    found = strong_view(given, seeded(2), policy="ueraser")
    assert torch.equal(found, plasma.ueraser_view(given, seeded(2)))
    assert (found != given).flatten(1).any(1).float().mean() > 0.8
