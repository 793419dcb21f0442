"""Tests human labels: they are read from a file of CIFAR-N's format, assigned to the right images, and run no code."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erat.config import RunConfig, load_config
from erat.corruption.human import COLUMNS, human_labels
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.data.types import CorruptedSet, ImageSet
from erat.defaults import file_digest
from erat.errors import UserError

# torch warns about files that it did not write.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
Configure = Callable[..., RunConfig]
Content = dict[str, Any]
CIFAR10N = ["human-aggregate", "human-random1", "human-random2", "human-random3", "human-worst"]


@pytest.fixture
def clean(toy: Any) -> ImageSet:
    """Return the 120 training images."""
    train: ImageSet = toy.load(None)[0]
    return train


@pytest.fixture
def content(clean: ImageSet) -> Content:
    """Return the content of a file: arrays of int64, in the order in which the training set is read."""
    true, rng = clean.labels.numpy(), np.random.RandomState(0)

    def given(rate: float) -> np.ndarray[Any, Any]:
        return np.where(rng.random_sample(120) < rate, rng.randint(4, size=120), true)

    rates = {"aggre": 0.1, "worse": 0.5}
    columns = {f"{name}_label": given(rate) for name, rate in rates.items()}
    return {"clean_label": true} | columns | {f"random_label{i}": given(0.25) for i in (1, 2, 3)}


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def read(kind: str, images: ImageSet, path: Path) -> Any:
    return human_labels(kind, images, path, file_digest(path, "test"))


def refusal(kind: str, images: ImageSet, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(kind, images, path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"corruption.labels_file={path} ")
    return message


# --- what they are ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CIFAR10N)
def test_the_labels_are_those_of_the_file(clean: ImageSet, content: Content, tmp_path: Path, kind: str) -> None:
    noise = read(kind, clean, save(content, tmp_path / "human.pt"))
    given = content[COLUMNS[kind]]
    assert noise.labels.dtype == torch.int64
    assert noise.labels.tolist() == given.tolist()
    assert noise.rate == pytest.approx((given != content["clean_label"]).mean())
    assert 0 < noise.rate < 0.6
    for k in range(4):
        counts = np.bincount(given[content["clean_label"] == k], minlength=4)
        np.testing.assert_allclose(noise.transition[k].numpy(), counts / counts.sum())


def test_cifar100_n_has_one_kind_of_its_own(clean: ImageSet, content: Content, tmp_path: Path) -> None:
    fine = {"clean_label": content["clean_label"], "noisy_label": content["worse_label"]}
    path = save(fine | {"noisy_coarse_label": content["aggre_label"]}, tmp_path / "human.pt")
    assert read("human-fine", clean, path).labels.tolist() == content["worse_label"].tolist()


def test_a_part_of_the_set_gets_its_own_labels(clean: ImageSet, content: Content, tmp_path: Path) -> None:
    path = save(content, tmp_path / "human.pt")
    part = clean.take(torch.tensor([7, 3, 100, 64, 3])).take(torch.tensor([2, 0, 1]))
    assert read("human-worst", part, path).labels.tolist() == content["worse_label"][[100, 7, 3]].tolist()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_every_form_of_the_file_is_read(
    clean: ImageSet, content: Content, tmp_path: Path, dtype: str, zipped: bool
) -> None:
    typed = {name: column.astype(dtype) for name, column in content.items()}
    path = save(typed, tmp_path / "human.pt", _use_new_zipfile_serialization=zipped)
    assert read("human-worst", clean, path).labels.tolist() == content["worse_label"].tolist()


def as_numpy_1_wrote_it(raw: bytes) -> bytes:
    assert raw.count(b"cnumpy._core.multiarray\n") > 0
    return raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_files_of_the_authors_time_are_read(clean: ImageSet, content: Content, tmp_path: Path, zipped: bool) -> None:
    """The published files are of 2021, when numpy 1 had another name for the module of its arrays."""
    path = save(content, tmp_path / "new.pt", _use_new_zipfile_serialization=zipped)
    old = tmp_path / "old.pt"
    if zipped:
        with zipfile.ZipFile(path) as new, zipfile.ZipFile(old, "w") as archive:
            for name in new.namelist():
                raw = new.read(name)
                archive.writestr(name, as_numpy_1_wrote_it(raw) if name.endswith("data.pkl") else raw)
    else:
        old.write_bytes(as_numpy_1_wrote_it(path.read_bytes()))
    assert read("human-worst", clean, old).labels.tolist() == content["worse_label"].tolist()


# --- through the pipeline --------------------------------------------------------------------------------------------


def positions(images: ImageSet, among: ImageSet) -> list[int]:
    """Return the positions of the images in `among`; the toy images all differ."""
    where = {image.numpy().tobytes(): i for i, image in enumerate(among.images)}
    return [where[image.numpy().tobytes()] for image in images.images]


@pytest.mark.parametrize("limit", [None, 60])
@pytest.mark.parametrize("trusted", [True, False])
def test_each_image_gets_the_label_that_it_was_given(
    configure: Configure, clean: ImageSet, content: Content, tmp_path: Path, limit: int | None, trusted: bool
) -> None:
    """This holds also if a limit and a validation part leave only some of the images."""
    path = save(content, tmp_path / "human.pt")
    human = {"corruption.labels": "human-worst", "corruption.labels_file": str(path), "corruption.data": "none"}
    config = configure(human | {"data.limit": limit, "val.trusted": trusted})
    data: CorruptedSet = corrupted_set(config, Store(tmp_path / "crafted"))
    rows = positions(data.train, clean)
    assert len(rows) == (limit or 120) * 0.8
    assert data.train.labels.tolist() == content["worse_label"][rows].tolist()
    assert data.true_labels.tolist() == content["clean_label"][rows].tolist()
    held_out = positions(data.val, clean)
    column = "clean_label" if trusted else "worse_label"
    assert data.val.labels.tolist() == content[column][held_out].tolist()
    manifest, corrupted = data.manifest["labels"], rows if trusted else rows + held_out
    wrong = content["worse_label"][corrupted] != content["clean_label"][corrupted]
    assert manifest["noise_rate"] == pytest.approx(wrong.mean())
    assert manifest["kind"] == "human-worst"
    assert np.allclose(np.sum(manifest["transition"], axis=1), 1)


def test_a_run_is_known_by_the_content_of_the_file_not_by_its_path_or_a_rate(
    configure: Configure, content: Content, tmp_path: Path
) -> None:
    first, second = save(content, tmp_path / "one.pt"), tmp_path / "two.pt"
    second.write_bytes(first.read_bytes())
    human = {"corruption.labels": "human-worst", "corruption.data": "none"}
    config = configure(human | {"corruption.labels_file": str(first)})
    assert config.corruption.rate is None
    assert configure(human | {"corruption.labels_file": str(second)}).digest() == config.digest()
    other = save(content | {"worse_label": content["aggre_label"]}, tmp_path / "three.pt")
    assert configure(human | {"corruption.labels_file": str(other)}).digest() != config.digest()
    with pytest.warns(UserWarning, match=r"^corruption.rate=0.3 is not used: .*corruption.labels=human-worst$"):
        assert configure(human | {"corruption.labels_file": str(first), "corruption.rate": 0.3}) == config


def test_a_stored_configuration_needs_no_file_but_a_new_one_does(
    configure: Configure, content: Content, tmp_path: Path
) -> None:
    path = save(content, tmp_path / "human.pt")
    human = {"corruption.labels": "human-worst", "corruption.labels_file": str(path), "corruption.data": "none"}
    config = configure(human)
    data = corrupted_set(config, Store(tmp_path / "crafted"))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    path.unlink()
    stored = load_config(tmp_path / "config.json")
    assert stored.digest() == config.digest()
    assert torch.equal(corrupted_set(stored, Store(tmp_path / "crafted")).train.labels, data.train.labels)
    with pytest.raises(UserError, match=rf"^corruption.labels_file must be a readable file, got {path}: No such file"):
        configure(human)
    with pytest.raises(UserError, match=r"^corruption.labels_file must be a readable file"):
        corrupted_set(stored, Store(tmp_path / "another"))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_human_labels_need_their_file(configure: Configure) -> None:
    for kind in COLUMNS:
        with pytest.raises(UserError, match=rf"^corruption.labels={kind} needs corruption.labels_file, the .pt file"):
            configure({"corruption.labels": kind})


def test_another_order_or_another_set(clean: ImageSet, content: Content, tmp_path: Path) -> None:
    turned = {name: column[::-1].copy() for name, column in content.items()}
    shorter = {name: column[:100] for name, column in content.items()}
    uneven = content | {"worse_label": content["worse_label"][:100]}
    for index, other in enumerate((turned, shorter, uneven)):
        message = refusal("human-worst", clean, save(other, tmp_path / f"{index}.pt"))
        assert "is of another data set, or in another order: its true labels are not these" in message


def test_a_file_without_the_wanted_labels_says_what_it_has(clean: ImageSet, content: Content, tmp_path: Path) -> None:
    path = save(content, tmp_path / "human.pt")
    message = refusal("human-fine", clean, path)
    assert "has no human-fine labels; it has " in message
    assert set(message.split("it has ")[1].split(", ")) == set(CIFAR10N)
    del content["worse_label"]
    assert "has no human-worst labels; it has human-aggregate" in refusal(
        "human-worst", clean, save(content, tmp_path / "human.pt")
    )
    assert "it has none of them" in refusal("human-worst", clean, save({"x": [1]}, tmp_path / "human.pt"))
    without_true = {"worse_label": content["aggre_label"]}
    assert "has no human-worst labels" in refusal("human-worst", clean, save(without_true, tmp_path / "human.pt"))


def test_a_file_that_has_changed_since(clean: ImageSet, content: Content, tmp_path: Path) -> None:
    path = save(content, tmp_path / "human.pt")
    digest = file_digest(path, "test")
    save(content | {"worse_label": content["aggre_label"]}, path)
    with pytest.raises(UserError, match=rf"^corruption.labels_file={path} .*its content has changed$"):
        human_labels("human-worst", clean, path, digest)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0" * 500, b"clean_label 1 2 3\n" * 20, b"<!DOCTYPE html><html></html>", b"PK\x03\x04" + b"x" * 100],
    ids=["empty", "zeros", "text", "a web page", "a bad archive"],
)
def test_no_such_file_at_all(clean: ImageSet, tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "human.pt"
    path.write_bytes(raw)
    assert "cannot be read as CIFAR-N's .pt file: " in refusal("human-worst", clean, path)


def test_a_list_is_not_a_file_of_named_labels(clean: ImageSet, tmp_path: Path) -> None:
    assert refusal("human-worst", clean, save([1, 2], tmp_path / "human.pt")).endswith(
        "must hold named labels, got list"
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_file(clean: ImageSet, content: Content, tmp_path: Path, zipped: bool) -> None:
    """A file that is cut off anywhere, or has other bytes, is refused in one line, or the labels are intact."""
    path = save(content, tmp_path / "human.pt", _use_new_zipfile_serialization=zipped)
    raw, rng = path.read_bytes(), np.random.RandomState(0)
    damaged = [raw[:cut] for cut in (1, 10, len(raw) // 2, len(raw) - 1)]
    for at in rng.randint(1500, size=60):
        damaged.append(raw[:at] + bytes([raw[at] ^ (1 << rng.randint(8))]) + raw[at + 1 :])
    refused = []
    for index, wrong in enumerate(damaged):
        path = tmp_path / f"{index}.pt"
        path.write_bytes(wrong)
        try:
            noise = read("human-worst", clean, path)
        except UserError as error:
            refused.append(str(error))
        else:
            assert 0 <= noise.labels.min() <= noise.labels.max() < 4
    assert len(refused) > 20
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    "column",
    [np.full(120, 7), np.full(120, -1), None, ["?"] * 120, [[1, 2], [3]]],
    ids=["beyond the last class", "before the first", "nothing", "words", "ragged"],
)
def test_labels_that_are_no_classes(clean: ImageSet, content: Content, tmp_path: Path, column: Any) -> None:
    refusal("human-worst", clean, save(content | {"worse_label": column}, tmp_path / "human.pt"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_no_code_in_the_file_is_run(clean: ImageSet, content: Content, tmp_path: Path, zipped: bool) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "it ran",)

    evil = content | {"worse_label": Evil()}
    path = save(evil, tmp_path / "human.pt", _use_new_zipfile_serialization=zipped)
    refusal("human-worst", clean, path)
    assert not (tmp_path / "it ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "it ran").exists(), "it would have"
