"""Tests a user's images in folders: layouts, splits, odd files, links."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erat.data import image_files, loading
from erat.data.types import ImageSet
from erat.errors import UserError

RNG = np.random.RandomState(0)


def write_images(root: Path, count: int, colour: bool = True, suffix: str = "png") -> None:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        shape = (12, 16, 3) if colour else (12, 16)
        Image.fromarray(RNG.randint(0, 256, shape).astype(np.uint8)).save(root / f"{i:03d}.{suffix}")


def load_folder(root: Path | None, **changes: Any) -> tuple[ImageSet, ImageSet]:
    values = {"name": "folder", "download": False, "image_size": None, "limit": None, "test_fraction": 0.2, **changes}
    values = {"fingerprint": None, **values}
    config: Any = SimpleNamespace(root=None if root is None else str(root), **values)
    return loading.load(config)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_with_train_and_test(test_name: str, tmp_path: Path) -> None:
    for name in ("dog", "cat", "emu"):
        write_images(tmp_path / "train" / name, 3)
    write_images(tmp_path / test_name / "emu", 2)
    write_images(tmp_path / test_name / "dog", 1, suffix="jpg")
    train, test = load_folder(tmp_path)
    assert train.class_names == test.class_names == ("cat", "dog", "emu")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [1, 2, 2]
    assert train.images.shape == (9, 3, 32, 32)
    assert load_folder(tmp_path, image_size=7)[1].images.shape == (3, 3, 7, 7)


def test_folder_split_is_stable(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 60)
    write_images(tmp_path / "b", 40)
    before = load_folder(tmp_path)
    assert 8 <= len(before[1]) <= 32
    assert len(before[0]) + len(before[1]) == 100
    write_images(tmp_path / "new", 30)
    for path in list((tmp_path / "new").iterdir()):
        path.rename(tmp_path / "a" / f"0000{path.name}")
    (tmp_path / "new").rmdir()
    (tmp_path / "b" / "copy.png").write_bytes((tmp_path / "b" / "003.png").read_bytes())
    after = load_folder(tmp_path)
    for old, new in zip(before, after, strict=True):
        assert {image.numpy().tobytes() for image in old.images} <= {image.numpy().tobytes() for image in new.images}
    sides = [{image.numpy().tobytes() for image in part.images} for part in after]
    assert not sides[0] & sides[1], "a copy stays with its original"
    assert len(after[0]) + len(after[1]) == 131
    assert len(load_folder(tmp_path, test_fraction=0.5)[1]) > len(after[1])
    with pytest.raises(UserError, match=r"data.test_fraction must be in \(0, 1\), got 1"):
        load_folder(tmp_path, test_fraction=1)


def test_folder_split_leaves_no_class_without_training_or_test_images(tmp_path: Path) -> None:
    for k in range(8):
        write_images(tmp_path / f"class{k}", 2)
    write_images(tmp_path / "single", 1)
    for fraction in (0.01, 0.5, 0.99):
        train, test = load_folder(tmp_path, test_fraction=fraction)
        assert torch.bincount(train.labels).tolist() == [1] * 9
        assert torch.bincount(test.labels, minlength=9).tolist() == [1] * 8 + [0]


def test_folder_called_train_may_be_a_class(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 5)
    write_images(tmp_path / "bus", 5)
    assert load_folder(tmp_path)[0].class_names == ("bus", "train")


def test_folder_layouts_that_are_half_there(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 6)
    train, test = load_folder(tmp_path)
    assert len(train) + len(test) == 12
    write_images(tmp_path / "validation" / "cat", 2)
    with pytest.raises(UserError, match="neither test/ nor val/ beside it, got validation"):
        load_folder(tmp_path)
    write_images(tmp_path / "test" / "cow", 2)
    with pytest.raises(UserError, match="only classes of the training set, got also cow"):
        load_folder(tmp_path)
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "cat")
    write_images(tmp_path / "val" / "cat", 2)
    with pytest.warns(UserWarning, match="val is not read"):
        _, test = load_folder(tmp_path)
    assert test.labels.tolist() == [0, 0]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs data.root"):
        load_folder(None)
    with pytest.raises(UserError, match=r"there is none at .*nowhere"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="at least 2 class folders, got none"):
        load_folder(tmp_path)
    write_images(tmp_path / "cat", 3)
    with pytest.raises(UserError, match="at least 2 class folders, got only 'cat'"):
        load_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="got none for dog") as error:
        load_folder(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "dog" / "x.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 files"), pytest.raises(UserError, match="got none for dog"):
        load_folder(tmp_path)
    with pytest.raises(UserError, match=r"data.image_size must be at least 1, got 0"):
        load_folder(tmp_path, image_size=0)


def test_folder_test_set_without_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 2)
        (tmp_path / "test" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no readable test image in .*test"):
        load_folder(tmp_path)


def test_folder_skips_unreadable_files_with_one_warning(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 4)
    write_images(tmp_path / "b", 4)
    (tmp_path / "a" / "cut.png").write_bytes((tmp_path / "a" / "000.png").read_bytes()[:60])
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "b" / "broken-link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b" / ".hidden.png").write_bytes(b"hidden")
    (tmp_path / ".cache").mkdir()
    os.mkfifo(tmp_path / "b" / "pipe")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train, test = load_folder(tmp_path)
    messages = [str(warning.message) for warning in caught if "skipped" in str(warning.message)]
    assert messages == [f"4 files are no readable image and were skipped, first: {tmp_path / 'a' / 'cut.png'}"]
    assert len(train) + len(test) == 8


def test_folder_follows_links_once(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    write_images(outside / "deep" / "deeper", 2)
    root = tmp_path / "set"
    write_images(root / "a", 3)
    write_images(root / "b", 3)
    (root / "b" / "more").symlink_to(outside)
    (outside / "deep" / "back").symlink_to(outside)
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root)
    (root / "a" / "me.png").symlink_to(root / "a" / "me.png")
    with pytest.warns(UserWarning, match="1 files"):
        train, test = load_folder(root)
    assert train.class_names == ("a", "b")
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [3, 5]


def test_folder_of_grey_files_stays_grey(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / "train" / name, 2, colour=False)
        write_images(tmp_path / "test" / name, 1, colour=False)
    train, test = load_folder(tmp_path)
    assert train.channels == test.channels == 1
    write_images(tmp_path / "test" / "a", 2)
    train, test = load_folder(tmp_path)
    assert train.channels == test.channels == 3
    assert torch.equal(train.images[:, 0], train.images[:, 2])


ODD_IMAGES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "sixteen.png": (Image.fromarray(np.full((9, 9), 257 * 100, np.uint16)), (100,)),
    "sixteen-dark.png": (Image.fromarray(np.full((9, 9), 200, np.uint16)), (1,)),
    "int32.tif": (Image.fromarray(np.full((9, 9), 60, np.int32)), (60,)),
    "float.tif": (Image.fromarray(np.full((9, 9), 0.5, np.float32)), (128,)),
    "float255.tif": (Image.fromarray(np.full((9, 9), 99.6, np.float32)), (100,)),
    "bilevel.png": (Image.new("1", (9, 9), 1), (255,)),
    "grey-alpha.png": (Image.new("LA", (9, 9), (10, 0)), (255,)),
    "palette.png": (
        Image.new("RGB", (9, 9), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE),
        (10, 200, 30),
    ),
    "palette-grey.gif": (Image.new("L", (9, 9), 77).convert("P"), (77,)),
    "alpha.png": (Image.new("RGBA", (9, 9), (10, 200, 30, 0)), (255, 255, 255)),
    "opaque.png": (Image.new("RGBA", (9, 9), (10, 200, 30, 255)), (10, 200, 30)),
    "cmyk.tif": (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), (255, 0, 0)),
    "webp.webp": (Image.new("RGB", (9, 9), (255, 255, 255)), (255, 255, 255)),
    "lab.tif": (Image.new("LAB", (9, 9), (255, 128, 128)), (255, 255, 255)),
}


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_images(name: str, tmp_path: Path) -> None:
    image, expected = ODD_IMAGES[name]
    image.save(tmp_path / name)
    decoded = image_files.decode(tmp_path / name, 4)
    assert not isinstance(decoded, str)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape == ((4, 4) if len(expected) == 1 else (4, 4, 3))
    assert np.abs(decoded.pixels.reshape(16, -1).astype(int) - expected).max() <= 1
    assert 0 <= decoded.position < 1


def test_centre_of_a_wide_upright_image(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (250, 0, 0)
    wide[:4, 8:16] = (0, 0, 250)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    turned = Image.fromarray(np.rot90(wide, 1).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation "rotate by a quarter clockwise"
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = np.zeros((2, 2, 3), np.uint8)
    expected[0], expected[1] = (0, 0, 250), (250, 0, 0)
    for name in ("wide.png", "turned.png"):
        decoded = image_files.decode(tmp_path / name, 8)
        assert not isinstance(decoded, str)
        assert np.array_equal(decoded.pixels[[0, 7]][:, [0, 7]], expected)


def test_resizing_is_antialiased_and_large_jpegs_agree(tmp_path: Path) -> None:
    stripes = np.zeros((640, 640), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    Image.fromarray(stripes).save(tmp_path / "stripes.jpg", quality=100)
    for name in ("stripes.png", "stripes.jpg"):
        decoded = image_files.decode(tmp_path / name, 32)
        assert not isinstance(decoded, str)
        assert decoded.pixels.shape == (32, 32)
        assert np.abs(decoded.pixels.astype(int) - 128).max() <= 3
