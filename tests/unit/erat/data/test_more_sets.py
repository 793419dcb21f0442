"""Tests the sets in IDX, MATLAB, binary, PPM and .npz files with small files in these formats, written by the tests."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from erat import build
from erat.data import bounded, fingerprint, loading
from erat.data.sources import gtsrb, idx, medmnist, stl10, svhn
from erat.errors import UserError
from erat.registry import DATASETS

RNG = np.random.RandomState(0)
NAMES = ("fashion-mnist", "kmnist", "svhn", "stl10", "gtsrb", "medmnist")
SPLITS = ("train", "test")


def config(name: str, root: Path | None, **changes: Any) -> Any:
    values = {"download": False, "image_size": None, "limit": None, "fingerprint": None, **changes}
    return SimpleNamespace(name=name, root=None if root is None else str(root), **values)


def pixels(*shape: int) -> np.ndarray:
    return RNG.randint(0, 256, shape).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


def write_idx(root: Path) -> np.ndarray:
    root.mkdir(parents=True, exist_ok=True)
    images = pixels(20, 28, 28)
    labels = np.arange(20, dtype=np.uint8) % 10
    for part, count in (("train", 20), ("t10k", 10)):
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images[:count]), mtime=0))
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels[:count]), mtime=0))
    return images[:, None]


def write_svhn(root: Path) -> np.ndarray:
    images, labels = pixels(20, 3, 32, 32), np.arange(1, 21).reshape(-1, 1) % 10
    labels[labels == 0] = 10
    for name, count in (("train", 20), ("test", 10)):
        content = {"X": images[:count].transpose(2, 3, 1, 0), "y": labels[:count].astype(np.uint8)}
        savemat(root / f"{name}_32x32.mat", content, do_compression=True)
    return images


def write_stl(root: Path) -> np.ndarray:
    folder = root / "stl10_binary"
    folder.mkdir()
    images = pixels(10, 3, 96, 96)
    for name in ("train", "test"):
        (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes(range(1, 11)))
    return images


def write_gtsrb(root: Path) -> np.ndarray:
    base = root / "gtsrb"
    images = pixels(43, 32, 32, 3)
    tests = base / "GTSRB" / "Final_Test" / "Images"
    tests.mkdir(parents=True)
    for k, image in enumerate(images):
        folder = base / "GTSRB" / "Training" / f"{k:05d}"
        folder.mkdir(parents=True)
        (folder / f"GT-{k:05d}.csv").write_text("Filename;Width;Height\n")
        Image.fromarray(image).save(folder / "00000_00000.ppm")
    Image.fromarray(images[7]).resize((60, 40)).save(tests / "00000.ppm")
    Image.fromarray(images[7]).save(tests / "00001.ppm")
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    rows = "00000.ppm;60;40;5;5;50;30;16\n00001.ppm;32;32;5;5;50;30;7\n"
    (base / "GT-final_test.csv").write_text(header + rows)
    return images.transpose(0, 3, 1, 2)


def write_medmnist(path: Path) -> np.ndarray:
    images, labels = pixels(18, 28, 28, 3), np.arange(18, dtype=np.uint8).reshape(-1, 1) % 9
    parts = {f"{part}_images": images for part in ("train", "val", "test")}
    np.savez_compressed(path, **parts, **{f"{part}_labels": labels for part in ("train", "val", "test")})
    return images.transpose(0, 3, 1, 2)


WRITERS: dict[str, Callable[[Path], np.ndarray]] = {
    "fashion-mnist": write_idx,
    "kmnist": lambda root: write_idx(root / "KMNIST" / "raw"),
    "svhn": write_svhn,
    "stl10": write_stl,
    "gtsrb": write_gtsrb,
    "medmnist": lambda root: write_medmnist(root / "pathmnist.npz"),
}


def written(name: str, root: Path) -> tuple[np.ndarray, Path]:
    """Write a small set of this name; return its training images and its `data.root`."""
    images = WRITERS[name](root)
    return images, root / "pathmnist.npz" if name == "medmnist" else root


@pytest.mark.parametrize("name", NAMES)
def test_files(name: str, tmp_path: Path) -> None:
    """Pixels arrive upright and in the order of the labels, whatever the order of axes in the file."""
    images, root = written(name, tmp_path)
    train, test = DATASETS[name].load(config(name, root))
    assert np.array_equal(train.images.numpy(), images)
    assert train.labels.tolist() == [(k + (name == "svhn")) % train.num_classes for k in range(len(images))]
    assert train.class_names == test.class_names
    assert len(set(train.class_names)) == train.num_classes == len(set(train.labels.tolist()))
    known = DATASETS.facts(name).shape
    assert known is None or known[2:] == (train.channels, train.size, train.num_classes)
    smaller, tests = loading.load(config(name, root, image_size=16, limit=train.num_classes))
    assert (smaller.size, tests.size, len(smaller)) == (16, 16, train.num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint_is_of_the_content(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "SETTLED_NS", 0)
    _, root = written(name, tmp_path)
    asked = build("medium", {"data.name": name, "data.root": str(root)}, quiet=True).data
    cache = fingerprint.Cache(tmp_path / "cache")
    found = fingerprint.fingerprint_of(asked, cache)
    assert found == fingerprint.of_arrays((*DATASETS[name].load(asked), None))
    files = DATASETS[name].files(asked)  # type: ignore[attr-defined]
    assert files and all(path.is_file() for path in files)
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "read_parts", lambda *_: pytest.fail("no file has changed"))
        assert fingerprint.fingerprint_of(asked, cache) == found
    (root if root.is_file() else files[-1]).unlink()
    with pytest.raises(UserError, match=r"missing|cannot be read"):
        fingerprint.fingerprint_of(asked, cache)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx.FASHION_MNIST, "usual", tmp_path / "nowhere")
    root = tmp_path / "pathmnist.npz" if name == "medmnist" else tmp_path
    for place in (root, None):
        with pytest.raises(UserError) as error:
            DATASETS[name].load(config(name, place))
        assert "\n" not in str(error.value)
        assert DATASETS[name].title in str(error.value)  # type: ignore[attr-defined]
        assert ("data.root" if place is None else "data.download=true") in str(error.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion-mnist", "train-images-idx3-ubyte.gz"),
        ("svhn", "train_32x32.mat"),
        ("stl10", "stl10_binary/train_X.bin"),
        ("gtsrb", "gtsrb/GTSRB/Training/00003/00000_00000.ppm"),
        ("medmnist", "pathmnist.npz"),
    ],
)
def test_damaged_files_in_one_line(name: str, file: str, tmp_path: Path) -> None:
    _, root = written(name, tmp_path)
    whole = (tmp_path / file).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x00" * 200):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError) as error:
            DATASETS[name].load(config(name, root))
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)


def test_fashion_is_found_where_debian_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = idx.FASHION_MNIST
    assert source.usual == Path("/usr/share/datasets/fashion-mnist")
    monkeypatch.setattr(source, "usual", tmp_path / "usual")
    with pytest.raises(UserError, match=r"put them into .*usual, or .*apt-get install dataset-fashion-mnist"):
        source.load(config("fashion-mnist", None))
    images = write_idx(tmp_path / "usual")
    train, _ = source.load(config("fashion-mnist", None, download=True))  # nothing is missing, nothing is fetched
    assert np.array_equal(train.images.numpy(), images)


def test_plain_idx_files_and_torchvisions_folder(tmp_path: Path) -> None:
    write_idx(tmp_path)
    packed, _ = idx.KMNIST.load(config("kmnist", tmp_path))
    raw = tmp_path / "other" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in tmp_path.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    plain, _ = idx.KMNIST.load(config("kmnist", tmp_path / "other"))
    assert plain.fingerprint == packed.fingerprint


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_claims_are_checked_before_memory_is_taken(suffix: str, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / f"images{suffix}"

    def write(content: bytes) -> Path:
        path.write_bytes(gzip.compress(content) if suffix else content)
        return path

    with pytest.raises(UserError, match="must name at most"):
        idx.read_idx(write(struct.pack(">4I", 0x0803, 2**31, 28, 28)), 3)
    with pytest.raises(UserError, match="must hold at most"):
        idx.read_idx(write(struct.pack(">4I", 0x0803, 10_000, 2**31, 2**20)), 3)
    with pytest.raises(ValueError, match="must hold 8 values after its header, got 9 or more"):
        idx.read_idx(write(struct.pack(">4I", 0x0803, 2, 2, 2) + bytes(20)), 3)
    with pytest.raises(ValueError, match="must begin with 2051, got 2049"):
        idx.read_idx(write(struct.pack(">4I", 0x0801, 2, 2, 2)), 3)


def test_other_formats_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("svhn", "stl10", "medmnist"):
        (tmp_path / name).mkdir()
        _, root = written(name, tmp_path / name)
        monkeypatch.setattr(bounded, "room", lambda: 10_000)
        with pytest.raises(UserError, match="must hold at most 10000 bytes"):
            DATASETS[name].load(config(name, root))
        monkeypatch.undo()


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_idx(tmp_path)
    wrong = gzip.compress(idx_bytes(np.full(10, 11, np.uint8)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(wrong)
    with pytest.raises(UserError, match=r"labels must be in 0..9, got 11"):
        idx.KMNIST.load(config("kmnist", tmp_path))
    write_stl(tmp_path)
    (tmp_path / "stl10_binary" / "test_y.bin").write_bytes(bytes(10))
    with pytest.raises(UserError, match=r"labels must be in 0..9, got -1"):
        stl10.SOURCE.load(config("stl10", tmp_path))
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n00001.ppm;43\n")
    with pytest.raises(UserError, match=r"image 1: must have a Filename and a ClassId in 0..42"):
        gtsrb.SOURCE.load(config("gtsrb", tmp_path))


def test_numbers_and_labels_must_agree(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels(32, 32, 3, 5), "y": np.ones((4, 1), np.uint8)})
    with pytest.raises(UserError, match="damaged"):
        svhn.SOURCE.load(config("svhn", tmp_path))
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 5)), "y": np.ones((5, 1), np.uint8)})
    with pytest.raises(UserError, match="X must be uint8"):
        svhn.SOURCE.load(config("svhn", tmp_path))


def test_medmnist_grey_larger_and_refused(tmp_path: Path) -> None:
    source, path = medmnist.SOURCE, tmp_path / "bloodmnist_64.npz"
    arrays = {f"{part}_images": pixels(4, 64, 64) for part in ("train", "test")}
    labels = {f"{part}_labels": np.array([[0], [1], [7], [3]]) for part in ("train", "test")}
    np.savez(path, **arrays, **labels)
    train, _ = source.load(config("medmnist", path))
    assert train.images.shape == (4, 1, 64, 64)
    assert train.class_names[7] == "platelet"
    np.savez(path, **arrays, **{name: np.eye(4, dtype=np.uint8) for name in labels})
    with pytest.raises(UserError, match=r"every image must have one whole number as its label, got uint8 \(4, 4\)"):
        source.load(config("medmnist", path))
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="must have the arrays train_images, train_labels"):
        source.load(config("medmnist", path))
    with pytest.raises(UserError, match=r"can fetch pathmnist.npz, .*got data.root=.*chestmnist.npz"):
        source.load(config("medmnist", tmp_path / "chestmnist.npz", download=True))


def test_downloads(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision really downloads, from a server that the test starts, and its checksums count."""
    files, address = served
    write_idx(files)
    write_svhn(files)
    write_medmnist(files / "pathmnist.npz")
    write_stl(files)
    with tarfile.open(files / "stl10_binary.tar.gz", "w:gz") as tar:
        tar.add(files / "stl10_binary", arcname="stl10_binary")

    def md5(name: str) -> str:
        return hashlib.md5((files / name).read_bytes()).hexdigest()

    kmnist, stl, numbers = idx.KMNIST.dataset, stl10.datasets.STL10, svhn.datasets.SVHN
    monkeypatch.setattr(kmnist, "mirrors", [f"{address}/"])
    monkeypatch.setattr(kmnist, "resources", [(f"{name}.gz", md5(f"{name}.gz")) for name in idx.KMNIST.names])
    split = {part: [f"{address}/{part}_32x32.mat", f"{part}_32x32.mat", md5(f"{part}_32x32.mat")] for part in SPLITS}
    monkeypatch.setattr(numbers, "split_list", split)
    monkeypatch.setattr(stl, "url", f"{address}/stl10_binary.tar.gz")
    monkeypatch.setattr(stl, "tgz_md5", md5("stl10_binary.tar.gz"))
    monkeypatch.setattr(medmnist, "URL", f"{address}/{{}}")
    monkeypatch.setitem(medmnist.SETS, "pathmnist", (md5("pathmnist.npz"), tuple(map(str, range(9)))))
    for name in ("kmnist", "svhn", "stl10", "medmnist"):
        root = tmp_path / name / "pathmnist.npz" if name == "medmnist" else tmp_path / name
        train, _ = DATASETS[name].load(config(name, root, download=True))
        assert len(train) >= train.num_classes
    (files / "pathmnist.npz").write_bytes(b"another file")
    (files / "train_32x32.mat").unlink()
    for name, root in (("medmnist", tmp_path / "new" / "pathmnist.npz"), ("svhn", tmp_path / "new")):
        with pytest.raises(UserError, match=r"fetching into .* failed \(.*\); put the files there by hand") as error:
            DATASETS[name].load(config(name, root, download=True))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_facts(name: str) -> None:
    facts = DATASETS.facts(name)
    found = build("medium", {"data.name": name, "corruption.labels": "asymmetric"}, quiet=True)
    assert found.defense.model_dump()["policy"] == facts.policy
    assert found.data.flip is facts.flip
    names = facts.classes
    assert all(0 <= k < len(names) for pair in (facts.similar or {}).items() for k in pair)
    if facts.similar:
        assert all(k != partner for k, partner in facts.similar.items())


def test_similar_classes_by_name() -> None:
    def named(name: str) -> set[tuple[str, str]]:
        facts = DATASETS.facts(name)
        return {(facts.classes[k], facts.classes[partner]) for k, partner in (facts.similar or {}).items()}

    assert named("fashion-mnist") == {
        ("Ankle boot", "Sneaker"),
        ("Sneaker", "Sandal"),
        ("Pullover", "Shirt"),
        ("Coat", "Dress"),
        ("Dress", "Coat"),
    }
    animals = {("cat", "dog"), ("dog", "cat"), ("deer", "horse")}
    assert named("stl10") == {("truck", "car"), ("bird", "airplane")} | animals
    assert named("svhn") == {("2", "7"), ("3", "8"), ("7", "1"), ("5", "6"), ("6", "5")}
