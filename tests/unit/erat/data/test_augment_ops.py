"""Tests every batched operation against torchvision's 8-bit kernel, image by image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, functional

from erat.data.augment import ops
from erat.data.augment.policies import GEOMETRIC, LEVELS, OPERATIONS, PHOTOMETRIC, POLICIES, SIGNED, magnitude_space

SIZES = [(14, 14), (28, 28), (32, 32), (20, 33)]
# Results that are whole levels by nature agree exactly. The 8-bit kernels cut the others to whole levels; here they are
# kept as they are.
EXACT = {"posterize", "solarize", "equalize", "invert"}


def sample_images(channels: int, height: int, width: int) -> Tensor:
    """Make uint8 images, shape (8, channels, height, width): noise, ramps, few levels, flat parts, a kind of digit."""
    generator = torch.Generator().manual_seed(0)
    shape = (channels, height, width)
    noise = torch.randint(0, 256, shape, generator=generator)
    ramp = (torch.arange(height * width) * 255 // (height * width - 1)).view(1, height, width).expand(shape)
    checkers = (torch.arange(height)[:, None] + torch.arange(width)).remainder(2).mul(255).expand(shape)
    figure = torch.zeros(shape, dtype=torch.int64)
    figure[:, height // 4 : -height // 4, width // 3 : width // 2] = 200 + noise[:, :1, :1] // 8
    low_contrast = 100 + noise // 16
    flat = torch.full(shape, 77)
    half_flat = torch.cat((torch.full((1, height, width), 3), noise[1:])) if channels > 1 else noise // 2
    sparse = torch.where(noise > 250, noise, 0)
    return torch.stack((noise, ramp, checkers, figure, low_contrast, flat, half_flat, sparse)).to(torch.uint8)


def reference(name: str, image: Tensor, magnitude: float) -> Tensor:
    """Return what torchvision's AutoAugment makes of one uint8 image."""
    angle, shift, shear, centre = 0.0, [0, 0], [0.0, 0.0], None
    match name:
        case "shear_x":
            shear, centre = [math.degrees(math.atan(magnitude)), 0.0], [0, 0]
        case "shear_y":
            shear, centre = [0.0, math.degrees(math.atan(magnitude))], [0, 0]
        case "translate_x":
            shift = [int(magnitude), 0]
        case "translate_y":
            shift = [0, int(magnitude)]
        case "rotate":
            return functional.rotate(image, magnitude)
        case "brightness":
            return functional.adjust_brightness(image, 1 + magnitude)
        case "color":
            return functional.adjust_saturation(image, 1 + magnitude)
        case "contrast":
            return functional.adjust_contrast(image, 1 + magnitude)
        case "sharpness":
            return functional.adjust_sharpness(image, 1 + magnitude)
        case "posterize":
            return functional.posterize(image, int(magnitude))
        case "solarize":
            return functional.solarize(image, 255.0 * magnitude)
        case "autocontrast" | "equalize" | "invert":
            return getattr(functional, name)(image)
    return functional.affine(image, angle=angle, translate=shift, scale=1.0, shear=shear, center=centre)


def all_magnitudes(name: str, height: int, width: int) -> list[float]:
    space = magnitude_space(name, height, width).float().tolist()
    return sorted({sign * m for m in space for sign in ((1, -1) if name in SIGNED else (1,))})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_operations_agree_with_torchvision(name: str, size: tuple[int, int], channels: int) -> None:
    images = sample_images(channels, *size)
    magnitudes = all_magnitudes(name, *size)
    # One batch has all images at all magnitudes: each image must be treated by its own magnitude.
    batch = images.repeat(len(magnitudes), 1, 1, 1)
    per_image = torch.tensor(magnitudes).repeat_interleave(len(images))
    before = batch / 255
    given = before.clone()
    result = ops.PHOTOMETRIC_FUNCTIONS[name](given, per_image)
    expected = torch.cat([reference(name, images, m) for m in magnitudes])
    assert torch.equal(given, before)
    assert result.data_ptr() != given.data_ptr()
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    levels = result * 255
    difference = (levels.round() - expected).abs()
    assert difference.max() <= (0 if name in EXACT or (name == "color" and channels == 1) else 1)
    if name != "sharpness":  # for this operation torchvision rounds the blurred image, too
        lost = levels - expected
        assert lost.min() > -2e-3, "torchvision only cuts off what is beyond a whole level"
        assert lost.max() < 1 + 2e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_pick_the_pixels_of_torchvision(name: str, size: tuple[int, int], channels: int) -> None:
    height, width = size
    images = sample_images(channels, height, width)
    magnitudes = [m for m in all_magnitudes(name, height, width) if m]
    batch = images.repeat(len(magnitudes), 1, 1, 1) / 255
    per_image = torch.tensor(magnitudes, dtype=torch.float64).repeat_interleave(len(images))
    before = batch.clone()
    matrices = ops.MATRICES[name](per_image, height, width)
    result = ops.warp(batch, matrices)
    expected = torch.cat([reference(name, images, m) for m in magnitudes])
    assert torch.equal(batch, before)
    differs = ((result * 255).round() != expected).any(dim=1)
    assert not (differs & ~near_pixel_edge(matrices.double(), height, width)).any()
    # On an edge float32 rounding decides, and along a sheared row or column many pixels lie on an edge.
    assert differs.float().mean() < 2e-3
    if height == width == 32:
        assert not differs.any()


def near_pixel_edge(matrices: Tensor, height: int, width: int) -> Tensor:
    """Return where the source position lies within 1e-4 pixels of an edge between two pixels: bool, shape (N, H, W)."""
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2)[:, None]
    near = torch.zeros(len(matrices), height, width, dtype=torch.bool)
    for row, size in ((0, width), (1, height)):
        of_x, of_y, offset = matrices[:, row, :, None, None].unbind(1)
        position = x * of_x + y * of_y + offset + size / 2  # an edge is a whole number
        near |= (position - position.round()).abs() < 1e-4
    return near


def test_one_warp_serves_images_of_different_operations() -> None:
    images = sample_images(3, 32, 32)[:5]
    each = {"shear_x": 0.2, "shear_y": -0.3, "translate_x": 9.7, "translate_y": -4.2, "rotate": 13.0}
    matrices = torch.cat([ops.MATRICES[name](torch.tensor([m]).double(), 32, 32) for name, m in each.items()])
    result = (ops.warp(images / 255, matrices) * 255).round()
    expected = torch.stack([reference(name, i, m) for (name, m), i in zip(each.items(), images, strict=True)])
    assert torch.equal(result, expected.float())


def test_translation_moves_right_and_down_and_fills_with_black() -> None:
    image = torch.ones(1, 1, 6, 6)
    right = ops.warp(image, ops.translate_x_matrix(torch.tensor([2.9]).double(), 6, 6))
    down = ops.warp(image, ops.translate_y_matrix(torch.tensor([2.9]).double(), 6, 6))
    assert torch.equal(right[0, 0].sum(0), torch.tensor([0.0, 0, 6, 6, 6, 6]))
    assert torch.equal(down[0, 0].sum(1), torch.tensor([0.0, 0, 6, 6, 6, 6]))


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_images_off_the_grid_stay_in_range_and_close(name: str) -> None:
    """A perturbation far below a grey level changes no result by more than one step of the operation."""
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    magnitude = torch.full((6,), 5.0 if name == "posterize" else 0.6)
    result = ops.PHOTOMETRIC_FUNCTIONS[name](images, magnitude)
    assert result.min() >= 0
    assert result.max() <= 1
    if name in {"brightness", "color", "contrast", "sharpness", "autocontrast", "invert"}:
        nudged = ops.PHOTOMETRIC_FUNCTIONS[name]((images + 1e-5).clamp(max=1), magnitude)
        assert (nudged - result).abs().max() < 2 / 255


def test_magnitude_zero_leaves_an_image_alone() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    for name in ("brightness", "color", "contrast", "sharpness"):
        torch.testing.assert_close(ops.PHOTOMETRIC_FUNCTIONS[name](images, torch.zeros(3)), images)
    for name in GEOMETRIC:
        matrices = ops.MATRICES[name](torch.zeros(3, dtype=torch.float64), 16, 16)
        assert torch.equal(ops.warp(images, matrices), images)


def test_memory_layout_does_not_matter() -> None:
    images = sample_images(3, 20, 33) / 255
    scattered = images.to(memory_format=torch.channels_last)
    magnitude = torch.full((len(images),), 5.0)
    for operation in ops.PHOTOMETRIC_FUNCTIONS.values():
        torch.testing.assert_close(operation(scattered, magnitude), operation(images, magnitude))


def test_the_policy_for_digits_moves_ink_and_leaves_its_tone() -> None:
    names = {name for steps in POLICIES["digits"] for name, _, _ in steps}
    assert names <= set(GEOMETRIC)
    for steps in POLICIES["digits"]:
        assert len(steps) == 2
        assert all(
            0 < probability <= 1 and index is not None and 0 <= index < LEVELS for _, probability, index in steps
        )


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"digits"}))
def test_policies_and_magnitudes_are_the_published_ones(policy: str) -> None:
    theirs = AutoAugment(AutoAugmentPolicy(policy))
    as_ours = {"AutoContrast": "autocontrast"} | {
        kind + axis: f"{kind.lower()}_{axis.lower()}" for kind in ("Shear", "Translate") for axis in "XY"
    }

    def renamed(name: str) -> str:
        return as_ours.get(name, name.lower())

    published = tuple(tuple((renamed(name), p, index) for name, p, index in steps) for steps in theirs._policies)
    assert POLICIES[policy] == published
    assert {renamed(name) for name in theirs._AUGMENTATION_SPACE} == set(OPERATIONS)
    for name, (values, signed) in theirs._AUGMENTATION_SPACE.items():
        assert signed == (renamed(name) in SIGNED)
        expected = values(LEVELS, 20, 33)
        if expected is not None:
            torch.testing.assert_close(magnitude_space(renamed(name), 20, 33).float(), expected.float())
