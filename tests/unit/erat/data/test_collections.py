"""Tests a user's images in tables and arrays, trusted labels, odd or broken entries, and splits that stay stable."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erat.config import build
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.data import image_files, loading
from erat.data.sources.collection import read_collection, same_pictures
from erat.errors import UserError

RNG = np.random.RandomState(0)


def settings(root: Path, **changes: Any) -> Any:
    values = {
        "name": "folder",
        "download": False,
        "image_size": None,
        "limit": None,
        "test_fraction": 0.2,
        "fingerprint": None,
    }
    return SimpleNamespace(**values | {"root": str(root)} | changes)


def save_image(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.randint(0, 256, (10, 12, 3)).astype(np.uint8)).convert(mode).save(path)


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def content_of(root: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def test_csv_with_odd_names_missing_files_and_parts(tmp_path: Path) -> None:
    names = ["Käfer und Laub 1.png", "images/b 2.png", "images/日本.png", "c,3.png", "d.png", "e.png"]
    for name in names:
        save_image(tmp_path / name)
    rows = [["path", "label", "part"]]
    rows += [
        [name, "zehn" if i % 2 else "neun", part] for i, (name, part) in enumerate(zip(names, "  ttTT", strict=True))
    ]
    parts = {" ": "", "t": "test", "T": "trusted"}
    rows = [[*row[:2], parts.get(row[2], row[2])] for row in rows]
    rows += [["gone.png", "neun", ""], ["", "neun", ""], ["d.png", " ", ""]]
    table = write_table(tmp_path / "my labels.csv", rows)
    before = content_of(tmp_path)
    with pytest.warns(UserWarning, match=r"3 rows of .*my labels.csv were skipped, first: row 8 \(no path\)"):
        collection = read_collection(settings(table))
    assert collection.names == tuple(names)
    assert collection.parts == ("train", "train", "test", "test", "trusted", "trusted")
    assert collection.images.class_names == ("neun", "zehn")
    assert {(skip.name, skip.reason) for skip in collection.skipped} == {
        ("row 8", "no path"),
        ("d.png", "no label"),
        ("gone.png", "no such file"),
    }
    assert content_of(tmp_path) == before, "the originals are never written to"
    with pytest.warns(UserWarning, match="were skipped"):
        train, test, trusted = loading.load_parts(settings(table))
    assert trusted is not None
    assert [len(part) for part in (train, test, trusted)] == [2, 2, 2]
    assert train.labels.tolist() == test.labels.tolist() == trusted.labels.tolist() == [0, 1]


def test_csv_classes_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    table = write_table(tmp_path / "t.csv", [["label", "path"], *([str(k), "a.png"] for k in (10, 9, 2))])
    assert read_collection(settings(table)).images.class_names == ("2", "9", "10")


@pytest.mark.filterwarnings("ignore:.*were skipped")
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["file", "class"], ["a.png", "x"]], "must have the columns path and label, got file, class"),
        ([], "must have the columns path and label, got none"),
        ([["path", "label"]], "at least 2 classes, got none"),
        ([["path", "label"], ["a.png", "x"]], "at least 2 classes, got only 'x'"),
        ([["path", "label"], ["a.png", "x"], ["b.png", "y"]], "got none for y"),
        (
            [["path", "label", "part"], ["a.png", "x", "dev"]],
            "row 1: part must be train, test, trusted or empty, got 'dev'",
        ),
    ],
)
def test_csv_errors(rows: Sequence[Sequence[str]], words: str, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    table = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match=words) as error:
        read_collection(settings(table))
    assert "\n" not in str(error.value)


def test_csv_of_other_encodings_finds_its_files(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    odd = tmp_path / b"k\xe4fer.png".decode(errors="surrogateescape")
    (tmp_path / "a.png").rename(odd)
    save_image(tmp_path / "b.png")
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\nk\xe4fer.png,x\r\nb.png,y\r\n")
    assert read_collection(settings(tmp_path / "t.csv")).images.class_names == ("x", "y")


@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_parquet_of_bytes_structs_and_paths(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for name in ("a.png", "b.png"):
        save_image(tmp_path / name)
    files = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    variants = {
        "bytes": {"image": [*files, None, b"no image"], "label": [3, 11, 3, 3]},
        "struct": {"image": [{"bytes": file, "path": "x.png"} for file in files], "label": ["u", "v"]},
        "paths": {"path": ["a.png", "b.png"] * 2, "label": [0, 1, 0, 7], "part": ["", "", "test", "test"]},
    }
    sizes = {}
    for name, columns in variants.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
        if name != "paths":
            collection = read_collection(settings(tmp_path / f"{name}.parquet"))
            sizes[name] = (len(collection), collection.names, [skip.reason for skip in collection.skipped])
    with pytest.raises(UserError, match="only classes of the training set, got also 7"):
        read_collection(settings(tmp_path / "paths.parquet"))
    assert sizes["bytes"] == (2, ("row 0", "row 1"), ["no image", "no image of a known format"])
    assert sizes["struct"] == (2, ("x.png", "x.png"), [])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="readable Parquet file"):
        read_collection(settings(tmp_path / "bad.parquet"))


# --- arrays ----------------------------------------------------------------------------------------------------------


def save_arrays(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (np.zeros((6, 9, 9), np.uint8), (1, 9, 9)),
        (np.zeros((6, 9, 12, 1), np.uint8), (1, 9, 9)),
        (np.zeros((6, 3, 9, 9), np.uint8), (3, 9, 9)),
        (np.zeros((6, 9, 9, 3), np.float32), (3, 9, 9)),
        (np.full((6, 9, 9), True), (1, 9, 9)),
    ],
)
def test_arrays_of_many_shapes(images: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    root = save_arrays(tmp_path / "a.npz", images=images, labels=[0, 1, 0, 1, 0, 1], class_names=["on", "off"])
    collection = read_collection(settings(root))
    assert tuple(collection.images.images.shape) == (6, *shape)
    assert int(collection.images.images.max()) == (255 if images.dtype == np.bool_ else 0)
    assert collection.images.class_names == ("on", "off")
    assert collection.images.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_arrays_with_parts_and_their_errors(tmp_path: Path) -> None:
    images = RNG.randint(0, 256, (8, 8, 8)).astype(np.uint8)
    labels = np.array(list("aabbaabb"))
    parts = {
        "test_images": images[:2],
        "test_labels": labels[1:3],
        "trusted_images": images[2:4],
        "trusted_labels": labels[1:3],
    }
    train, test, trusted = loading.load_parts(
        settings(save_arrays(tmp_path / "a.npz", images=images, labels=labels, **parts))
    )
    assert trusted is not None
    assert [len(part) for part in (train, test, trusted)] == [8, 2, 2]
    assert torch.equal(train.images[:, 0], torch.from_numpy(images))
    bad = {
        "one label per image, got 8 images and 3 labels": {"images": images, "labels": [0, 1, 0]},
        r"images must be of shape .* got \(8, 64\)": {"images": images.reshape(8, 64), "labels": labels},
        "columns images and labels, got x": {"x": images},
        r"labels must be in 0..1, as class_names has it, got 2": {
            "images": images,
            "labels": np.arange(8) % 3,
            "class_names": ["a", "b"],
        },
        "images must be numbers": {"images": np.full((8, 2, 2), "x"), "labels": labels},
    }
    for words, arrays in bad.items():
        with pytest.raises(UserError, match=words):
            read_collection(settings(save_arrays(tmp_path / "bad.npz", **arrays)))
    np.savez(tmp_path / "pickled.npz", images=np.array([object()] * 3), labels=[1, 2, 3])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    for name in ("pickled.npz", "cut.npz"):
        with pytest.raises(UserError, match=r"readable .npz file"):
            read_collection(settings(tmp_path / name))


# --- odd images ------------------------------------------------------------------------------------------------------


def test_why_an_image_was_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    monkeypatch.setattr(image_files, "MOST_PIXELS", 100)
    reasons = {name: image_files.decode(tmp_path / name, 8) for name in ("a.png", "empty.png", "text.png", "loop.png")}
    assert reasons == {
        "a.png": "12 x 10 pixels, more than 0 million",
        "empty.png": "empty file",
        "text.png": "no image of a known format",
        "loop.png": "no such file",
    }
    monkeypatch.undo()
    assert str(image_files.decode(tmp_path / "cut.png", 8)).startswith("cannot be decoded: ")


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3000, 2)])
def test_images_of_a_pixel_or_a_line(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (9, 90, 200)).save(tmp_path / "a.png")
    decoded = image_files.decode(tmp_path / "a.png", 16)
    assert not isinstance(decoded, str)
    assert (decoded.pixels == (9, 90, 200)).all()


def test_half_of_the_files_unreadable(tmp_path: Path) -> None:
    for k in range(2):
        for i in range(4):
            save_image(tmp_path / f"class {k}" / f"{i}.png")
            (tmp_path / f"class {k}" / f"broken {i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.warns(UserWarning, match=r"8 files are no readable image and were skipped"):
        collection = read_collection(settings(tmp_path))
    assert len(collection) == 8
    assert len(collection.skipped) == 8


def test_same_pictures_are_found_whatever_the_file(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png", "y/3.png"):
        save_image(tmp_path / name, "L")
    Image.open(tmp_path / "x" / "1.png").save(tmp_path / "y" / "copy.bmp")
    collection = read_collection(settings(tmp_path))
    (pair,) = same_pictures(collection.images)
    assert {collection.names[row] for row in pair} == {"x/1.png", "y/copy.bmp"}


# --- splits and trusted labels ---------------------------------------------------------------------------------------


def test_validation_split_moves_no_image_when_others_are_added(tmp_path: Path) -> None:
    for i in range(120):
        save_image(tmp_path / "ab"[i % 2] / f"{i:03d}.png")
    train, _ = loading.load(settings(tmp_path))
    kept, held_out = loading.split_validation(train, 0.2, seed=3)
    assert 6 <= len(held_out) <= 36
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(train)))
    before = {image.numpy().tobytes() for image in train.images[held_out]}
    rest = {image.numpy().tobytes() for image in train.images[kept]}
    for i in range(60):
        save_image(tmp_path / "ab"[i % 2] / f"0new{i}.png")
    more, _ = loading.load(settings(tmp_path))
    kept, held_out = loading.split_validation(more, 0.2, seed=3)
    assert before <= {image.numpy().tobytes() for image in more.images[held_out]}
    assert rest <= {image.numpy().tobytes() for image in more.images[kept]}
    assert set(loading.split_validation(more, 0.2, seed=4)[1].tolist()) != set(held_out.tolist())


def test_validation_split_leaves_every_class_something_to_learn_from(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        save_image(tmp_path / "train" / name)
    save_image(tmp_path / "test" / "a" / "1.png")
    train, _ = loading.load(settings(tmp_path))
    for fraction in (0.01, 0.5, 0.89):
        kept, held_out = loading.split_validation(train, fraction, seed=0)
        assert len(held_out) == 1
        assert set(train.labels[kept].tolist()) == {0, 1}


def test_trusted_folder_becomes_the_validation_part(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 2), ("trusted", 3)):
        for i in range(count):
            for name in ("cat", "dog"):
                save_image(tmp_path / part / name / f"{i}.png")
    overrides = {"data.name": "folder", "data.root": str(tmp_path), "data.image_size": 8, "corruption.data": "none"}
    config = build("demo", overrides | {"corruption.labels": "symmetric", "corruption.rate": 0.5})
    data = corrupted_set(config, Store(tmp_path / "store"))
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 4)
    assert data.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.train.labels != data.true_labels).sum() == 6
    untrusted = corrupted_set(
        build("demo", config.flat() | {"val.trusted": False, "val.fraction": 0.4}), Store(tmp_path / "store")
    )
    assert len(untrusted.train) + len(untrusted.val) == 12
