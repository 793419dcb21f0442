"""Tests tables and arrays that claim a false size, or hold code: they are refused in one line, without using memory."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erat.data import bounded
from erat.data.listing import Listing, list_images
from erat.errors import UserError

LABELS = np.array([0, 1, 0, 1])
IMAGES = np.zeros((4, 8, 8), np.uint8)


def array(shape: tuple[int, ...], descr: str, content: bytes = b"") -> bytes:
    """Return a .npy file with the given header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def archive(path: Path, way: int = zipfile.ZIP_DEFLATED, **files: bytes | np.ndarray[Any, Any]) -> Path:
    with zipfile.ZipFile(path, "w", way) as target:
        for name, content in files.items():
            if not isinstance(content, bytes):
                file = io.BytesIO()
                np.save(file, content)
                content = file.getvalue()
            target.writestr(f"{name}.npy", content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        list_images(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "room", lambda: 100_000)


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    claims = archive(tmp_path / "a.npz", images=array((4, 2**20, 2**20, 9), "|u1"), labels=LABELS)
    assert "claims" in refusal(claims)
    claims = archive(tmp_path / "b.npz", images=array((-1, 8, 8), "|u1"), labels=LABELS)
    assert "npz" in refusal(claims)


def test_arrays_that_unpack_to_more_than_there_is_room_for(tmp_path: Path, small_room: None) -> None:
    bomb = archive(tmp_path / "a.npz", images=np.zeros((4, 200, 200), np.uint8), labels=LABELS)
    assert bomb.stat().st_size < 2000
    assert "must hold at most 100000 bytes of images and labels, got 160000" in refusal(bomb)
    both = archive(tmp_path / "b.npz", images=np.zeros((4, 120, 120), np.uint8), test_images=np.zeros((4, 120, 120)))
    assert "at most 100000 bytes" in refusal(both)
    unread = archive(tmp_path / "c.npz", images=IMAGES, labels=LABELS, notes=np.zeros(10**6))
    assert len(list_images(unread).items) == 4, "what is not asked for is not read"


def test_arrays_of_too_many_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_ROWS", 3)
    assert "must name at most 3 images, got 4" in refusal(archive(tmp_path / "a.npz", images=IMAGES, labels=LABELS))


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Mark:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    pickled = pickle.dumps(np.array([Mark()] * 4, dtype=object))
    path = archive(tmp_path / "a.npz", images=IMAGES, labels=array((4,), "|O", pickled))
    with np.load(path, allow_pickle=True) as arrays, suppress(Exception):
        assert len(arrays["labels"])
    assert marker.exists(), "numpy would run it"
    marker.unlink()
    assert "labels.npy holds objects" in refusal(path)
    assert not marker.exists()


def test_labels_that_are_none(tmp_path: Path) -> None:
    for labels, words in ((np.array([0, np.nan, 1, 0]), "finite"), (np.zeros(4, complex), "numbers or words")):
        assert words in refusal(archive(tmp_path / "a.npz", images=IMAGES, labels=labels))


@pytest.mark.parametrize("damage", ["twice", "encrypted", "text", "cut", "scalar", "header"])
def test_damaged_archives(tmp_path: Path, damage: str) -> None:
    path = archive(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    if damage == "twice":
        with zipfile.ZipFile(path, "a") as target, pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("labels.npy", array((4,), "<i8", LABELS.tobytes()))
    elif damage == "encrypted":
        for at in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
            content[at] |= 1
        path.write_bytes(content)
    elif damage == "scalar":
        archive(path, images=np.array(3), labels=LABELS)
    elif damage == "header":
        archive(path, images=b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, labels=LABELS)
    else:
        path.write_bytes(b"images" if damage == "text" else content[:150])
    assert str(path) in refusal(path)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_csv_of_endless_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,label\n" + "x" * 2**20)
    assert "line 2: a line must be shorter than 1048576 characters" in refusal(path)
    path.write_text("path,label\na.png," + "x" * 200_000)
    assert "readable CSV file" in refusal(path), "a field has at most 131072"
    path.write_text(",".join(f"column {k}" for k in range(9999)))
    assert len(refusal(path)) < 400
    monkeypatch.setattr(bounded, "MOST_ROWS", 3)
    path.write_text("path,label\n" + "a.png,x\n" * 4)
    assert "at most 3 images, got 4" in refusal(path)


@pytest.mark.parametrize("label", ["--5", "9" * 5000, "²", "x" * 100_000, "\x1b[2J"])
@pytest.mark.parametrize("row", ["a.png,{}", "~nosuchuser/x.png,{}", "a.png,1,{}"])
def test_odd_cells(tmp_path: Path, label: str, row: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"path,label,part\nb.png,0,\n{row.format(label)}\n", encoding="utf-8")
    if row.startswith("a.png,1"):
        words = refusal(path)
        assert "part must be train" in words and len(words) < 400 and "\x1b" not in words
    else:
        assert sorted(list_images(path).classes) == sorted(["0", label])


@pytest.mark.slow
def test_a_long_csv_is_not_held_as_a_whole(tmp_path: Path) -> None:
    """The field of 1 GB is sparse on the disk: the reader stops after a mebibyte of it."""
    path = tmp_path / "labels.csv"
    with path.open("wb") as file:
        file.write(b"path,label\n")
        file.truncate(2**30)
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom erat.data.listing import list_images\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    list_images(Path(sys.argv[1]))\nexcept ValueError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = Path(__file__).parents[4]
    said = subprocess.run(
        [sys.executable, "-c", script, path], cwd=root, capture_output=True, text=True, check=True, timeout=600
    )
    words, kilobytes = said.stdout.splitlines()
    assert "a line must be shorter" in words
    assert int(kilobytes) < 50_000


def parquet(path: Path, **columns: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_parquet_value_that_many_rows_share(tmp_path: Path, small_room: None) -> None:
    import pyarrow

    shared = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 500), pyarrow.array([b"x" * 20_000]))
    path = parquet(tmp_path / "a.parquet", image=shared, label=[0, 1] * 250)
    assert path.stat().st_size < 10_000
    assert "must hold at most 100000 bytes" in refusal(path)


def test_parquet_columns_of_another_shape(tmp_path: Path, small_room: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "one value per row" in refusal(parquet(tmp_path / "a.parquet", image=[[b"x"]] * 4, label=[0, 1] * 2))
    path = parquet(tmp_path / "b.parquet", image=[b"x"] * 4, label=[0, 1] * 2, notes=["y" * 10**6] * 4)
    listing: Listing = list_images(path)
    assert [item.label for item in listing.items] == ["0", "1", "0", "1"], "what is not asked for is not read"
    monkeypatch.setattr(bounded, "MOST_ROWS", 3)
    assert "at most 3 images" in refusal(path)


def test_room_is_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded.room.cache_clear()
    monkeypatch.setattr(bounded, "os", SimpleNamespace(sysconf={"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.get))
    assert bounded.room() == 20480
    bounded.room.cache_clear()


@pytest.mark.parametrize(("descr", "shape"), [("<U0", (1, 10**12)), ("|u1", (1, 2_000_000))])
def test_labels_of_another_shape_are_not_walked(descr: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    content = b"" if descr == "<U0" else b"\0" * shape[1]
    path = archive(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=array(shape, descr, content))
    said = refusal(path)
    assert "at most" in said or "one label per image, got 4 images and 2000000 labels" in said, said


def test_an_entry_without_its_ending_is_not_taken_for_an_array(tmp_path: Path) -> None:
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    path = archive(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 0, 1]))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("images", array((36 * 2**40,), "|u1"))
        file.writestr("labels", b"hello")
    assert len(list_images(path).items) == 4
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as file:
        file.writestr("images", b"x")
    assert "must have the columns images and labels" in refusal(tmp_path / "y.npz")


def test_parquet_of_text_for_bytes_and_labels_that_are_none(tmp_path: Path) -> None:
    listing = list_images(parquet(tmp_path / "x.parquet", image=[b"a", b"b", b"c"], label=[1.0, 2.0, float("nan")]))
    assert (len(listing.items), [(one.name, one.reason) for one in listing.skipped]) == (2, [("row 2", "no label")])
    encoded = [{"bytes": "aGVsbG8=", "path": "a.png"}, {"bytes": "x", "path": None}]
    assert "at least 2 classes" in refusal(parquet(tmp_path / "y.parquet", image=encoded, label=["a", "b"]))
