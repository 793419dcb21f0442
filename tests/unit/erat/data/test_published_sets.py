"""Tests CIFAR and Tiny-ImageNet with small files in their published formats, which the tests write and serve."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erat.data import facts, loading
from erat.data.sources import cifar, folder
from erat.errors import UserError

RNG = np.random.RandomState(0)


def config(name: str, root: Path | None = None, **changes: Any) -> Any:
    values = {"download": False, "image_size": None, "limit": None, "fingerprint": None, **changes}
    return SimpleNamespace(name=name, root=None if root is None else str(root), **values)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def bless(monkeypatch: pytest.MonkeyPatch, dataset: Any, root: Path) -> None:
    """Let torchvision expect the checksums of the present files.

    Its loading code stays the real one.
    """
    base = root / dataset.base_folder
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, name, [[file, md5(base / file)] for file, _ in getattr(dataset, name)])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(base / dataset.meta["filename"])})


def write_cifar(dataset: Any, root: Path, classes: int) -> dict[str, np.ndarray]:
    base = root / dataset.base_folder
    base.mkdir(parents=True)
    rows = {}
    key = "labels" if classes == 10 else "fine_labels"
    for name, _ in (*dataset.train_list, *dataset.test_list):
        rows[name] = RNG.randint(0, 256, (classes, 3072)).astype(np.uint8)
        batch = {"data": rows[name], key: list(range(classes)), "filenames": ["x.png"] * classes, "batch_label": name}
        (base / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {dataset.meta["key"]: [f"name {k}" for k in range(classes)]}
    (base / dataset.meta["filename"]).write_bytes(pickle.dumps(meta, protocol=2))
    return rows


SOURCES = [pytest.param(cifar.CIFAR10, 10, id="10"), pytest.param(cifar.CIFAR100, 100, id="100")]


@pytest.mark.parametrize(("source", "classes"), SOURCES)
def test_cifar_files(source: Any, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_cifar(source.dataset, tmp_path, classes)
    bless(monkeypatch, source.dataset, tmp_path)
    train, test = source.load(config("cifar", tmp_path))
    batches = len(source.dataset.train_list)
    assert train.images.shape == (batches * classes, 3, 32, 32)
    assert train.images.is_contiguous()
    assert test.labels.tolist() == list(range(classes))
    assert test.class_names[1] == "name 1"
    last = rows[source.dataset.train_list[-1][0]]  # a row is 1,024 red, then green, then blue values
    assert np.array_equal(train.images[-1].numpy(), last[-1].reshape(3, 32, 32))


@pytest.mark.parametrize(("source", "classes"), SOURCES)
def test_cifar_missing_files(source: Any, classes: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root must name the folder that holds cifar-10") as error:
        source.load(config("cifar", None))
    write_cifar(source.dataset, tmp_path, classes)
    gone = source.dataset.test_list[0][0]
    (tmp_path / source.dataset.base_folder / gone).unlink()
    with pytest.raises(UserError) as error:
        source.load(config("cifar", tmp_path))
    message = one_line(error)
    assert f"{source.title}: {gone} missing; put it into {tmp_path / source.dataset.base_folder}" in message
    assert "data.download=true" in message


def test_cifar_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = cifar.CIFAR10.dataset
    write_cifar(dataset, tmp_path, 10)
    bless(monkeypatch, dataset, tmp_path)
    batch = tmp_path / dataset.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:500])
    with pytest.raises(UserError) as error:
        cifar.CIFAR10.load(config("cifar10", tmp_path))
    assert "data_batch_3 (wrong MD5)" in one_line(error)
    for content in (batch.read_bytes(), pickle.dumps(["no", "dictionary"]), pickle.dumps({"data": np.zeros((2, 5))})):
        batch.write_bytes(content)
        bless(monkeypatch, dataset, tmp_path)
        with pytest.raises(UserError, match=r"a file .* damaged") as error:
            cifar.CIFAR10.load(config("cifar10", tmp_path))
        one_line(error)


def test_cifar_download(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision really downloads, from a server that the test starts."""
    dataset = cifar.CIFAR10.dataset
    write_cifar(dataset, tmp_path / "made", 10)
    bless(monkeypatch, dataset, tmp_path / "made")
    archive = served[0] / dataset.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / dataset.base_folder, arcname=dataset.base_folder)
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    monkeypatch.setattr(dataset, "url", f"{served[1]}/{archive.name}")
    train, _ = cifar.CIFAR10.load(config("cifar10", tmp_path / "new", download=True))
    assert len(train) == 50
    archive.unlink()
    cifar.CIFAR10.load(config("cifar10", tmp_path / "new", download=True))  # downloads nothing that is there already
    with pytest.raises(UserError, match="by hand") as error:
        cifar.CIFAR10.load(config("cifar10", tmp_path / "other", download=True))
    one_line(error)
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match="by hand"):
        cifar.CIFAR10.load(config("cifar10", tmp_path / "third", download=True))


def test_cifar100_coarse_map() -> None:
    superclasses = facts.CIFAR100_SUPERCLASSES
    fine = sorted(name for names in superclasses.values() for name in names)
    assert len(superclasses) == 20
    assert all(len(names) == 5 for names in superclasses.values())
    assert len(set(fine)) == 100
    # The coarse label of each fine class, in order, as in the data set's own files.
    published = (
        "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 "
        "5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 "
        "16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
    )
    coarse = {name: number for number, names in enumerate(superclasses.values()) for name in names}
    assert [coarse[name] for name in fine] == [int(number) for number in published.split()]
    similar = cifar.CIFAR100.facts.similar
    assert similar is not None
    assert sorted(similar) == sorted(similar.values()) == list(range(100))
    assert all(coarse[fine[k]] == coarse[fine[partner]] and k != partner for k, partner in similar.items())
    assert fine[similar[fine.index("beaver")]] == "dolphin"
    assert fine[similar[fine.index("whale")]] == "beaver"


# --- Tiny-ImageNet ---------------------------------------------------------------------------------------------------


def write_tiny(base: Path) -> list[str]:
    wnids = ["n03", "n01", "n02"]
    for k, wnid in enumerate(wnids):
        images = base / "train" / wnid / "images"
        images.mkdir(parents=True)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("n03_0.JPEG\t0\t0\t10\t10\n")
        for i in range(2):
            Image.new("L" if i else "RGB", (64, 64), 40 * k if i else (40 * k, 0, 200)).save(
                images / f"{wnid}_{i}.JPEG", quality=100
            )
    val = base / "val" / "images"
    val.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (64, 64), (0, 100, 40 * i)).save(val / f"val_{i}.JPEG")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(["n01", "n01", "n03"])]
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (base / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tbat\nn03\tbat, chiropteran\nn99\tother\n")
    return wnids


@pytest.mark.parametrize("nested", [True, False])
def test_tiny_imagenet_files(nested: bool, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny-imagenet-200" if nested else tmp_path)
    train, test = loading.load(config("tiny-imagenet", tmp_path))
    assert train.images.shape == (6, 3, 64, 64)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.class_names == ("n03", "goldfish", "n02"), "two bats, so their ids tell them apart"
    assert test.labels.tolist() == [1, 1, 0]
    assert abs(int(train.images[4, 0].float().mean()) - 80) <= 2
    assert (train.images[5, 0] == train.images[5, 2]).all(), "grey files become RGB"


def test_tiny_imagenet_errors(tmp_path: Path) -> None:
    source = folder.TINY_IMAGENET
    with pytest.raises(UserError, match=r"needs data.root"):
        source.load(config("tiny-imagenet"))
    with pytest.raises(UserError, match=r"wnids.txt, train, val/images, val/val_annotations.txt missing") as error:
        source.load(config("tiny-imagenet", tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere" / "tiny-imagenet-200") in one_line(error)
    write_tiny(tmp_path)
    (tmp_path / "train" / "n02" / "images" / "n02_0.JPEG").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read, first .*n02_0.JPEG"):
        source.load(config("tiny-imagenet", tmp_path))
    (tmp_path / "train" / "n02" / "images" / "n02_0.JPEG").unlink()
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"line 1: must name a class of wnids.txt"):
        source.load(config("tiny-imagenet", tmp_path))
    (tmp_path / "wnids.txt").write_text("n01\nn55\n")
    with pytest.raises(UserError, match="no training image of class n55"):
        source.load(config("tiny-imagenet", tmp_path))


def test_tiny_imagenet_download(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder.TINY_IMAGENET
    write_tiny(tmp_path / "made" / "tiny-imagenet-200")
    archive = served[0] / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((tmp_path / "made").rglob("*")):
            packed.write(path, path.relative_to(tmp_path / "made"))
    monkeypatch.setattr(source, "url", f"{served[1]}/{archive.name}")
    with pytest.raises(UserError, match=r"by hand so that .*wnids.txt exists"):  # the published checksum
        source.load(config("tiny-imagenet", tmp_path / "new", download=True))
    monkeypatch.setattr(source, "md5", md5(archive))
    train, _ = source.load(config("tiny-imagenet", tmp_path / "new", download=True))
    assert len(train) == 6
