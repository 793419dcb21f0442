"""Tests the fingerprint of an image set, and the identity of runs, crafted sets and source networks with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from erat.config import RunConfig, build, load_config
from erat.corruption.pipeline import corrupted_set, stored_parts
from erat.corruption.source import Traits, source_parameters
from erat.corruption.store import Store
from erat.data import fingerprint as module
from erat.data.fingerprint import (
    NO_FILE,
    Cache,
    Fingerprints,
    Page,
    digest_of,
    fingerprint_of,
    of_arrays,
    stamp_of,
)
from erat.data.loading import load, load_parts
from erat.data.places import with_fingerprint
from erat.data.sources import mnist
from erat.data.types import CorruptedSet, ImageSet, SourceFacts
from erat.engine.trainer import Trainer
from erat.errors import UserError
from erat.keys import has_key
from erat.options import DataConfig
from erat.presets import values_before
from erat.registry import CORRUPTIONS, DATASETS
from orchestration.run.execute import execute_run
from orchestration.search.launch import run_train
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger

PLAIN = {"corruption.data": "none", "corruption.labels": "none", "defense.name": "ce", "model.name": "small"}


def folder_at(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Make a folder with two classes of six noise images each in every part."""
    random = np.random.RandomState(0)
    for part in parts:
        for name in ("cat", "dog"):
            for number in range(6):
                path = root / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.randint(0, 255, (12, 12), np.uint8)).save(path)
    return root


def arrays(count: int = 24) -> dict[str, Any]:
    random = np.random.RandomState(1)
    return {"images": random.randint(0, 255, (count, 12, 12), np.uint8), "labels": np.arange(count) % 2}


def run_of(root: Path | str, cache: Cache | None = None, **more: Any) -> str:
    """Return the digest of a run on the images at `root`."""
    keys = {"data.name": "folder", "data.root": str(root), **PLAIN, **more}
    return Fingerprints(cache)(build("demo", keys)).digest()


def paint(path: Path, value: int) -> None:
    pixels = np.array(Image.open(path))
    pixels[3, 3] = value
    Image.fromarray(pixels).save(path)


# --- what changes the digest, and what does not -----------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "a pixel of training": lambda root: paint(root / "train/cat/0.png", 1),
    "a pixel of testing": lambda root: paint(root / "test/dog/5.png", 1),
    "a label": lambda root: (root / "train/cat/0.png").rename(root / "train/dog/00.png"),
    "a class name": lambda root: [(root / part / "cat").rename(root / part / "lynx") for part in ("train", "test")],
    "an image less": lambda root: (root / "train/cat/3.png").unlink(),
    "an image more": lambda root: shutil.copy(root / "train/cat/3.png", root / "train/cat/9.png"),
    "a copy in the test set": lambda root: shutil.copy(root / "train/cat/3.png", root / "test/cat/9.png"),
    "the order": lambda root: (root / "train/cat/0.png").rename(root / "train/cat/9.png"),
    "the test part": lambda root: (root / "test").rename(root / ".hidden"),
    "trusted images": lambda root: shutil.copytree(root / "test", root / "trusted"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_images_is_another_run(tmp_path: Path, change: str) -> None:
    root = folder_at(tmp_path / "own")
    before = run_of(root)
    CHANGES[change](root)
    assert run_of(root) != before


def test_the_same_images_elsewhere_are_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_at(tmp_path / "own")
    before = run_of(root)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelt in ("own", "./own/", "own/../own", "~/own", tmp_path / "link"):
        assert run_of(spelt) == before
    shutil.copytree(root, tmp_path / "copy")
    shutil.move(root, tmp_path / "elsewhere")
    assert run_of(tmp_path / "copy") == run_of(tmp_path / "elsewhere") == before


def test_no_file_s_name_counts_but_by_its_order(tmp_path: Path) -> None:
    root = folder_at(tmp_path)
    before = run_of(root)
    (root / "train/cat/0.png").rename(root / "train/cat/00.png")
    assert run_of(root) == before


def npz(path: Path, **changed: Any) -> Path:
    np.savez(path, **{**arrays(), **changed})
    return path


def _other_pixel(images: Any) -> Any:
    return np.where(np.arange(images.size).reshape(images.shape) == 77, 255 - images, images)


NPZ_CHANGES: dict[str, dict[str, Any]] = {
    "a pixel": {"images": _other_pixel(arrays()["images"])},
    "a label": {"labels": np.where(np.arange(24) == 5, 0, arrays()["labels"])},
    "class names": {"class_names": np.array(["cat", "dog"])},
    "an image less": {"images": arrays()["images"][:-1], "labels": arrays()["labels"][:-1]},
    "the shape": {"images": arrays()["images"].reshape(24, 9, 16)},
    "a test part": {"test_images": arrays()["images"][:4], "test_labels": arrays()["labels"][:4]},
    "colour": {"images": np.repeat(arrays()["images"][..., None], 3, axis=-1)},
    "the order": {"images": arrays()["images"][::-1], "labels": arrays()["labels"][::-1]},
}


@pytest.mark.parametrize("change", NPZ_CHANGES)
def test_any_change_of_arrays_is_another_run(tmp_path: Path, change: str) -> None:
    assert run_of(npz(tmp_path / "a.npz")) != run_of(npz(tmp_path / "b.npz", **NPZ_CHANGES[change]))


def test_the_same_arrays_packed_otherwise_are_the_same_run(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "b.npz", **arrays())
    assert run_of(npz(tmp_path / "a.npz")) == run_of(tmp_path / "b.npz")


def listed(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    path.write_text("\n".join(["path,label,part", *(",".join(row) for row in rows)]) + "\n")
    return path


def test_a_list_is_known_by_its_labels_parts_and_the_bytes_it_names(tmp_path: Path) -> None:
    root = folder_at(tmp_path)
    rows = [
        (path.relative_to(tmp_path).as_posix(), path.parent.name, path.parent.parent.name)
        for path in sorted(root.rglob("*.png"), key=lambda path: (path.parts[-3] != "train", path))
    ]
    whole = run_of(listed(tmp_path / "a.csv", rows))
    assert whole == run_of(root), "the same images, labels and parts"
    flipped = [(rows[0][0], "dog", rows[0][2]), *rows[1:]]
    moved = [(rows[0][0], rows[0][1], "test"), *rows[1:]]
    runs = {run_of(listed(tmp_path / f"{n}.csv", each)) for n, each in enumerate([rows, flipped, moved, rows[1:]])}
    assert len(runs) == 4
    paint(tmp_path / rows[0][0], 1)
    assert run_of(tmp_path / "a.csv") not in runs


def test_a_parquet_file_is_known_by_the_bytes_in_it(tmp_path: Path) -> None:
    import pyarrow  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]

    files = []
    for row in range(8):
        buffer = BytesIO()
        Image.fromarray(arrays()["images"][row]).save(buffer, "PNG")
        files.append(buffer.getvalue())

    def written(name: str, images: list[bytes]) -> Path:
        labels = ["cat", "dog"] * 4
        pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), tmp_path / name)
        return tmp_path / name

    before = run_of(written("a.parquet", files))
    assert run_of(written("b.parquet", files)) == before
    assert run_of(written("c.parquet", [*files[:-1], files[0]])) != before


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_fingerprint_of_arrays_sees_every_part_of_them(data: st.DataObject) -> None:
    """A change of any one value, name or part gives another fingerprint; the same values give the same one."""
    count = data.draw(st.integers(2, 6))
    pixels = torch.randint(0, 255, (count, 1, 3, 3), dtype=torch.uint8)
    parts = (ImageSet(pixels, torch.arange(count) % 2, ("a", "b")), ImageSet(pixels[:1], torch.zeros(1).long(), ("a",)))
    which = data.draw(st.integers(0, 1))
    changed = parts[which]
    what = data.draw(st.sampled_from(["pixel", "label", "name", "fewer", "trusted", "swapped"]))
    other: Any = [parts[0], parts[1], None]
    if what == "pixel":
        other[which] = replace(changed, images=changed.images.clone().add_(1))
    elif what == "label":
        other[which] = replace(changed, labels=changed.labels + 1)
    elif what == "name":
        other[which] = replace(changed, class_names=("c", *changed.class_names[1:]))
    elif what == "fewer":
        other[which] = changed.take(torch.arange(len(changed) - 1))
    elif what == "trusted":
        other[2] = changed
    else:
        other[:2] = parts[1], parts[0]
    assert of_arrays((parts[0], parts[1], None)) != of_arrays(tuple(other))
    assert of_arrays((parts[0], parts[1], None)) == of_arrays((replace(parts[0]), replace(parts[1]), None))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.sampled_from([8, 12]), limit=st.integers(4, 12))
def test_size_and_limit_are_keys_of_their_own(tmp_path: Path, size: int, limit: int) -> None:
    root = tmp_path / "own.npz"
    if not root.exists():
        npz(root)
    config = DataConfig(name="folder", root=str(root))
    other = config.model_copy(update={"image_size": size, "limit": limit, "test_fraction": 0.4})
    assert fingerprint_of(other, Cache()) == fingerprint_of(config, Cache())
    load(other.model_copy(update={"fingerprint": fingerprint_of(config, Cache())}))


# --- digits, and sources of others ------------------------------------------------------------------------------------


def test_the_digits_keep_the_runs_that_they_had() -> None:
    """They are the digests from before there were fingerprints, so that no finished run of the demo is repeated."""
    before = {key: value for key, value in values_before("demo", {}).items() if has_key(key, "erat")}
    assert build("demo", before, quiet=True).digest() == "88a58b0f247ca402"
    assert "data.fingerprint" not in build("demo").identity()
    assert build("demo").data.fingerprint == fingerprint_of(build("demo").data, Cache())


def test_other_digits_are_not_trained_on_as_these(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels, digits = mnist._read()
    monkeypatch.setattr(mnist, "_read", lambda: (pixels ^ 1, digits))
    with pytest.raises(UserError, match=r"the images under data.name=mnist are not those.*got 441ab4947d60f4c0"):
        execute_run(build("demo", PLAIN | {"train.epochs": 1}), Workspace(tmp_path))
    theirs = fingerprint_of(build("demo").data, Cache())
    config = build("demo", PLAIN | {"data.fingerprint": theirs})
    load(config.data)
    assert config.digest() != build("demo", PLAIN).digest()


def test_a_source_of_one_s_own_has_its_fingerprint_from_load(toy: Any) -> None:
    config = build("demo", PLAIN | {"data.name": "toy"})
    assert not config.identified
    filled = Fingerprints()(config)
    load(filled.data)
    assert Fingerprints()(config).digest() == filled.digest()
    toy.signal = 61.0
    assert Fingerprints()(config).digest() != filled.digest()
    with pytest.raises(UserError, match="not those that this run was planned with"):
        load(filled.data)


# --- a run whose images are not named ---------------------------------------------------------------------------------


def test_no_run_begins_without_a_fingerprint(toy: Any, tmp_path: Path) -> None:
    config = build("demo", PLAIN | {"data.name": "toy"})
    with pytest.raises(AssertionError, match="filled in before"):
        execute_run(config, Workspace(tmp_path))
    assert not list(tmp_path.iterdir())
    assert config.digest() != Fingerprints()(config).digest()
    assert config.identity()["data.fingerprint"] is None, "which no run's identity has, of today or before"


def test_a_trainer_on_images_at_hand_needs_none(make_images: Any, tmp_path: Path) -> None:
    """Its checkpoint belongs to these images nevertheless."""
    config = build("demo", PLAIN | {"data.name": "folder", "train.epochs": 1, "train.batch_size": 8})

    def trainer(seed: int) -> Trainer:
        images = make_images(32, seed=seed)
        return Trainer(config, CorruptedSet(images, images.labels, images, images), folder=tmp_path)

    list(trainer(0).run())
    assert trainer(0).epochs_done == 1
    with pytest.raises(UserError, match="of another run"):
        trainer(1)


def test_a_configuration_keeps_it_on_disk(tmp_path: Path) -> None:
    config = Fingerprints()(build("demo", PLAIN | {"data.name": "folder", "data.root": str(npz(tmp_path / "a.npz"))}))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_config(tmp_path / "config.json").digest() == config.digest()


# --- what was loaded is what was planned with -------------------------------------------------------------------------


def test_images_that_changed_after_the_plan_are_not_trained_on(tmp_path: Path) -> None:
    root = folder_at(tmp_path / "own")
    keys = PLAIN | {"data.name": "folder", "data.root": str(root), "train.epochs": 1, "train.batch_size": 2}
    config = Fingerprints()(build("demo", keys))
    paint(root / "test/cat/0.png", 3)
    with pytest.raises(UserError, match=r"the images under data.root=.*own are not those that this run was planned"):
        execute_run(config, Workspace(tmp_path / "workspace"))
    assert not list((tmp_path / "workspace").rglob("checkpoint.pt"))


def test_a_fingerprint_that_a_user_gives_must_fit(tmp_path: Path) -> None:
    keys = PLAIN | {"data.name": "folder", "data.root": str(folder_at(tmp_path / "own"))}
    right = Fingerprints()(build("demo", keys))
    given = build("demo", keys | {"data.fingerprint": right.data.fingerprint})
    assert Fingerprints()(given) == right
    wrong = build("demo", keys | {"data.fingerprint": "0" * 16})
    with pytest.raises(UserError, match=f"data.fingerprint must be {right.data.fingerprint}, got 0000"):
        Fingerprints()(wrong)
    with pytest.raises(UserError, match="not those that this run was planned with"):
        run_train(wrong, Workspace(tmp_path / "workspace"), Ledger(tmp_path / "ledger"), address=None, force=False)


@pytest.mark.filterwarnings("ignore:.*no readable image")
def test_files_that_are_no_images_count_alike_before_and_after_they_are_read(tmp_path: Path) -> None:
    root = folder_at(tmp_path)
    (root / "train/cat/broken.png").write_bytes(b"no image")
    (root / "train/cat/gone.png").symlink_to(root / "nowhere")
    with (root / "train/cat/vast.png").open("wb") as file:
        file.truncate(2**43)  # sparse on the disk; reading it would take an hour
    config = Fingerprints()(build("demo", {"data.name": "folder", "data.root": str(root)}))
    load_parts(config.data)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as settled as soon as they are written."""
    monkeypatch.setattr(module, "SETTLED_NS", -(10**18))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the files that are read for their digests."""
    seen: list[Path] = []
    plain = module.digest_of

    def counted(source: Any) -> str:
        seen.append(source)
        return plain(source)

    monkeypatch.setattr(module, "digest_of", counted)
    return seen


def test_files_are_read_once(tmp_path: Path, settled: None, reads: list[Path]) -> None:
    root, cache = folder_at(tmp_path / "own"), Cache(tmp_path / "cache")
    first = run_of(root, cache)
    assert len(reads) == 24
    assert run_of(root, cache) == first == run_of(root)
    del reads[24:]
    paint(root / "train/cat/0.png", 3)
    assert run_of(root, cache) != first
    assert reads[24:] == [root / "train/cat/0.png"]


def test_a_file_with_its_old_size_and_time_is_read_again(tmp_path: Path, settled: None) -> None:
    """A program that sets a file's time back cannot set back the time at which its entry was changed."""
    root, cache = npz(tmp_path / "a.npz"), Cache(tmp_path / "cache")
    before, status = run_of(root, cache), root.stat()
    npz(root, **NPZ_CHANGES["a pixel"])
    os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (root.stat().st_size, root.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert run_of(root, cache) != before


def test_a_file_written_just_now_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    run_of(npz(tmp_path / "a.npz"), cache)
    assert not list(tmp_path.glob("cache/*.json"))


def test_arrays_are_not_read_again(tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, root = Cache(tmp_path / "cache"), npz(tmp_path / "a.npz")
    before = run_of(root, cache)
    monkeypatch.setattr("erat.data.sources.collection.list_images", lambda root: pytest.fail("read again"))
    assert run_of(root, cache) == before


@pytest.mark.parametrize("damage", ["", "x", "{}", "null\n{}", "\xff", "0" * 64 + '\n{"a": 5}'])
def test_a_damaged_cache_is_none(tmp_path: Path, settled: None, damage: str) -> None:
    root, cache = folder_at(tmp_path / "own"), Cache(tmp_path / "cache")
    before = run_of(root, cache)
    [page] = tmp_path.glob("cache/*.json")
    sound = page.read_text()
    for text in (damage, sound.replace(sound[-6], "0" if sound[-6] != "0" else "1")):
        page.write_text(text, encoding="latin-1")
        assert run_of(root, cache) == before


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, settled: None) -> None:
    (tmp_path / "file").write_text("")
    root = folder_at(tmp_path / "own")
    assert run_of(root, Cache(tmp_path / "file")) == run_of(root, Cache(tmp_path / "file" / "below")) == run_of(root)


def test_files_of_a_known_set_spare_loading_it(
    tmp_path: Path, settled: None, register: Callable[..., None], make_images: Any
) -> None:
    loads: list[int] = []

    class Filed:
        facts = SourceFacts(epsilon={"linf": 0.1, "l2": 1.0}, flip=False, policy="svhn")

        def files(self, config: DataConfig) -> list[Path]:
            return [Path(str(config.root)) / "data.bin"]

        def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
            loads.append(1)
            seed = int((Path(str(config.root)) / "data.bin").read_text())
            return make_images(20, seed=seed), make_images(20, seed=seed)

    register(DATASETS, "filed", Filed())
    cache = Cache(tmp_path / "cache")
    (tmp_path / "data.bin").write_text("1")
    config = DataConfig(name="filed", root=str(tmp_path))
    first = fingerprint_of(config, cache)
    assert fingerprint_of(config, cache) == first
    assert len(loads) == 1
    (tmp_path / "data.bin").write_text("2")
    assert fingerprint_of(config, cache) != first


def test_one_plan_looks_at_a_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    plain = fingerprint_of
    monkeypatch.setattr(module, "fingerprint_of", lambda *args: looked.append(1) or plain(*args))
    fill, root = Fingerprints(), npz(tmp_path / "a.npz")
    for seed in range(50):
        fill(build("demo", PLAIN | {"data.name": "folder", "data.root": str(root), "data.limit": 10 + seed % 3}))
    assert len(looked) == 1


def test_a_page_keeps_only_what_is_there(tmp_path: Path) -> None:
    page = Page({"old": "1", "here": "2"})
    assert page.look("here") == "2"
    assert page.look("new") is None
    assert dict(page) == {"here": "2"}


# --- what is made from a set: crafted images, labels, source networks -------------------------------------------------


def parts_of(**keys: Any) -> tuple[Any, Any]:
    return stored_parts([build("demo", keys)])[0]


def test_mirrored_views_make_another_source_network(make_images: Any) -> None:
    images = make_images(40)
    plain, mirrored = (build("demo", {"corruption.data": "ap", "data.flip": flip}) for flip in (False, True))
    assert source_parameters(Traits.of(images), plain) != source_parameters(Traits.of(images), mirrored)
    assert "flip" not in source_parameters(Traits.of(images), plain), "digits keep the entries that they had"
    assert parts_of(**{"corruption.data": "ap"})[0] != parts_of(**{"corruption.data": "ap", "data.flip": True})[0]
    assert parts_of(**{"corruption.data": "urp"})[0] == parts_of(**{"corruption.data": "urp", "data.flip": True})[0]


def test_other_bytes_of_the_same_pixels_make_another_source_network(make_images: Any) -> None:
    """The tenth that is held out from its training depends on the bytes of the files."""
    images, config = make_images(40), build("demo", {"corruption.data": "ap"})
    positions = [replace(images, positions=torch.rand(40, dtype=torch.float64)) for _ in range(2)]
    found = [source_parameters(Traits.of(each), config) for each in (images, *positions)]
    assert len({str(each) for each in found}) == 3


@pytest.mark.parametrize("what", ["pixel", "label", "names"])
def test_everything_made_from_a_set_is_of_that_set(make_images: Any, what: str) -> None:
    images = make_images(40)
    other = {
        "pixel": replace(images, images=images.images ^ 1),
        "label": replace(images, labels=images.labels.roll(1)),
        "names": replace(images, class_names=tuple("wxyz"[: images.num_classes])),
    }[what]
    config = build("demo", {"corruption.data": "ap"})
    assert source_parameters(Traits.of(images), config) != source_parameters(Traits.of(other), config)
    assert Traits.of(images) != Traits.of(other)


def test_asymmetric_labels_are_of_one_map(register: Callable[..., None], make_images: Any) -> None:
    """Two sources of the same images may differ in which classes look alike."""

    class Source:
        def __init__(self, similar: dict[int, int] | None) -> None:
            self.facts = SourceFacts({"linf": 0.1, "l2": 1.0}, False, "svhn", similar)

        def load(self, config: DataConfig) -> tuple[ImageSet, ImageSet]:
            return make_images(40), make_images(40)

    register(DATASETS, "one", Source({0: 1}))
    register(DATASETS, "two", Source({1: 0}))
    register(DATASETS, "three", Source(None))
    keys = {"corruption.data": "none", "corruption.labels": "asymmetric", "corruption.rate": 0.4}
    found = [str(parts_of(**keys, **{"data.name": name})[1]) for name in ("one", "two", "three")]
    assert len(set(found)) == 3
    assert "similar" not in parts_of(**keys)[1], "digits keep the entries that they had"


def test_the_entries_of_the_digits_are_named_as_before(tmp_path: Path) -> None:
    images, labels = parts_of()
    assert Store(tmp_path).path(images).name == "images-8a6c1997c816479a"
    assert Store(tmp_path).path(labels).name == "labels-5109ecbc78cfdbca"


def test_the_source_of_a_folder_is_trained_and_found_again(tmp_path: Path) -> None:
    root = npz(tmp_path / "a.npz", **{key: np.concatenate([value] * 2) for key, value in arrays().items()})
    keys = {"data.name": "folder", "data.root": str(root), "corruption.data": "ap", "corruption.source": "small"}
    config = build("demo", keys | {"corruption.source_epochs": 1, "corruption.steps": 1})
    store = Store(tmp_path / "store")
    for each in (config, Fingerprints()(config)):
        corrupted_set(each, store)
    assert len(list((tmp_path / "store").glob("source-*"))) == 1
    assert CORRUPTIONS["ap"].uses == "trained network"


def test_filling_leaves_all_else_as_it_is() -> None:
    config = build("paper")
    filled = with_fingerprint(config, "0123456789abcdef")
    assert isinstance(filled, RunConfig)
    changed = {key for key, value in filled.flat().items() if config.flat()[key] != value}
    assert changed == {"data.fingerprint"}
    assert (filled.identified, config.identified) == (True, False)


def test_a_table_may_name_what_can_be_no_file(tmp_path: Path) -> None:
    impossible = Path("a\0b.png")
    assert digest_of(impossible) == NO_FILE
    assert stamp_of([impossible]) is None
    with Cache(tmp_path / "kept").page(tmp_path) as page:
        assert page.digests([impossible]) == [NO_FILE]
