"""Tests copies and near-copies: which are found, which images are left alone, and the cost."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images
from torch import Tensor

from erat.audit import copies as module
from erat.audit.copies import Copies, find_copies
from erat.data.image_files import decode, stack
from erat.data.sources.collection import same_pictures
from erat.data.sources.mnist import SOURCE
from erat.data.types import ImageSet
from erat.options import DataConfig

Change = Callable[[Image.Image], Image.Image]


def of(pixels: Tensor) -> ImageSet:
    return ImageSet(pixels, torch.arange(len(pixels)) % 2, ("a", "b"))


def found(pixels: Tensor) -> list[Copies]:
    images = of(pixels)
    return find_copies(images, same_pictures(images))


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


CHANGES: dict[str, Change] = {
    "jpeg 90": jpeg(90),
    "jpeg 50": jpeg(50),
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Return squares of 96 x 96 pixels that do not overlap, from two photographs that scikit-learn ships.

    Squares of plain sky are left out.
    """
    squares = []
    for picture in load_sample_images().images:
        rows, columns = picture.shape[0] // 96, picture.shape[1] // 96
        for place in range(rows * columns):
            top, left = 96 * (place // columns), 96 * (place % columns)
            squares.append(Image.fromarray(picture[top : top + 96, left : left + 96]))
    detail = module._levelled(read(squares, module.SIDE).float().mean(1, keepdim=True)).std(1)
    return [square for square, levels in zip(squares, detail, strict=True) if levels > 1.5 * module.PLAIN]


def read(pictures: list[Image.Image], size: int = 32) -> Tensor:
    """Read pictures in the same way as the audit reads them from files."""
    decoded = [decode(np.asarray(picture), size) for picture in pictures]
    return stack([one.pixels for one in decoded if not isinstance(one, str)], 3)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Return the 5,000 embedded digits, no two of which are the same."""
    return torch.cat([part.images for part in SOURCE.load(DataConfig(name="mnist"))])


@pytest.mark.parametrize("size", [14, 28])
def test_no_two_of_5000_digits_are_taken_for_copies(digits: Tensor, size: int) -> None:
    pixels = torch.nn.functional.interpolate(digits.float(), (size, size), mode="area").round().to(torch.uint8)
    assert found(pixels) == []


@pytest.mark.parametrize("change", [jpeg(90), jpeg(50), CHANGES["brighter"], CHANGES["less contrast"]])
def test_digits_that_were_stored_again_are_found(digits: Tensor, change: Change) -> None:
    some = digits[:200]
    again = [np.asarray(change(Image.fromarray(picture.numpy()))) for picture in some[:, 0]]
    groups = found(torch.cat([some, torch.from_numpy(np.stack(again))[:, None]]))
    pairs = [group.rows for group in groups]
    assert sum((row, 200 + row) in pairs for row in range(200)) >= 196
    assert all(rows[1] == rows[0] + 200 for rows in pairs), "and nothing else"


def test_no_two_photographs_are_taken_for_copies(photographs: list[Image.Image]) -> None:
    assert len(photographs) > 20
    assert found(read(photographs)) == []


@pytest.mark.parametrize("name", CHANGES)
def test_photographs_that_were_stored_again_are_found(name: str, photographs: list[Image.Image]) -> None:
    again = [CHANGES[name](picture) for picture in photographs]
    pairs = [group.rows for group in found(read(photographs + again))]
    assert pairs == [(row, row + len(photographs)) for row in range(len(photographs))]


def test_exact_copies_are_told_from_near_ones(photographs: list[Image.Image]) -> None:
    pixels = read([*photographs[:6], photographs[0], photographs[1], jpeg(80)(photographs[1])])
    assert found(pixels) == [Copies((0, 6), True), Copies((1, 7, 8), False)]


def test_colour_tells_pictures_apart(photographs: list[Image.Image]) -> None:
    pixels = read(photographs[:1])
    other = pixels[:, [2, 0, 1]]
    grey = pixels.float().mean(1), other.float().mean(1)
    assert torch.equal(*grey), "alike in grey"
    assert found(torch.cat([pixels, other])) == []


def test_pictures_without_detail_are_no_near_copies() -> None:
    ramp = torch.linspace(60, 180, 16)[None, None, None].expand(6, 3, 16, 16)
    noise = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert found((ramp + 3 * noise).round().to(torch.uint8)) == []
    assert found(torch.full((3, 1, 16, 16), 7, dtype=torch.uint8)) == [Copies((0, 1, 2), True)]


def test_small_images_and_few_are_compared(make_images: Callable[..., ImageSet]) -> None:
    pixels = make_images(6, classes=6, seed=1).images
    assert found(torch.cat([pixels, pixels[:1] // 2 + 60])) == [Copies((0, 6), False)]
    assert found(pixels[:1]) == []


def test_of_too_many_images_exact_copies_alone_are_found(
    photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = read([*photographs[:4], photographs[0], jpeg(80)(photographs[1])])
    monkeypatch.setattr(module, "MOST_COMPARED", 4)
    assert found(pixels) == [Copies((0, 4), True)]


def test_many_that_are_all_alike_are_one_group(photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "MOST_LINKS", 2)
    noise = torch.randint(0, 4, (300, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    many = read(photographs[:1]).clamp(max=250).expand(300, -1, -1, -1) + noise
    (group,) = found(many)
    assert group.rows == tuple(range(300)) and not group.exact
    assert len(module._links(of(many))) <= 2 * 300


def test_copies_far_apart_in_a_large_set_are_found() -> None:
    """They are found without a loop over pairs, of which there are 18 million here."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (6000, 1, 8, 8), generator=generator).to(torch.uint8)
    pixels = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pixels[5990:] = pixels[:10] // 2 + 40
    assert [group.rows for group in found(pixels)] == [(row, 5990 + row) for row in range(10)]
