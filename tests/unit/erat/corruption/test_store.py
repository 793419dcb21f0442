"""Tests the store: entries are made once, complete or not at all, checked when read, shared and read-only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erat.corruption.store import Arrays, Entry, Expected, Form, Store, _checksum
from erat.errors import StoreError, UserError, is_storage_fault
from tests.forks import prepared

WANTED = {"part": "images", "kind": "up", "epsilon": 0.1}


def make() -> tuple[Arrays, dict[str, Any]]:
    return {"images": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": np.array([2, 1, 0])}, {"noise_rate": 0.5}


def never() -> tuple[Arrays, dict[str, Any]]:
    raise AssertionError("made again")


def left_over(root: Path) -> list[str]:
    """Return the files in the store other than locks."""
    return [path.name for path in root.iterdir() if path.suffix != ".lock"]


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_made_once_and_read_afterwards(tmp_path: Path) -> None:
    first = Store(tmp_path / "crafted").fetch(WANTED, make)
    again = Store(tmp_path / "crafted").fetch(dict(reversed(WANTED.items())), never)
    for entry in (first, again):
        assert sorted(entry.arrays) == ["images", "labels"]
        np.testing.assert_array_equal(entry.arrays["images"], make()[0]["images"])
        assert entry.manifest["noise_rate"] == 0.5
        assert entry.manifest["parameters"] == WANTED
        assert entry.manifest["path"] == str(entry.path)
    assert again.manifest["checksum"] == first.manifest["checksum"]
    assert left_over(tmp_path / "crafted") == [first.path.name]


def test_other_parameters_are_another_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fetch(WANTED, make)
    assert WANTED in store
    other = WANTED | {"epsilon": 0.2}
    assert other not in store
    store.fetch(other, lambda: ({"images": np.zeros(1)}, {}))
    assert len(left_over(tmp_path)) == 2
    assert store.fetch(WANTED, never).arrays["images"].shape == (3, 4)


def test_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    images = Store(tmp_path).fetch(WANTED, make).arrays["images"]
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0] = 7


def test_a_checksum_covers_content_names_and_nothing_else(tmp_path: Path) -> None:
    def checksum(store: str, arrays: Arrays, **fields: Any) -> str:
        entry: Entry = Store(tmp_path / store).fetch(WANTED, lambda: (arrays, fields))
        return str(entry.manifest["checksum"])

    base = checksum("a", {"x": np.arange(3)}, when="now")
    assert checksum("b", {"x": np.arange(3)}, when="then") == base
    assert checksum("c", {"y": np.arange(3)}) != base
    assert checksum("d", {"x": np.arange(1, 4)}) != base


def test_a_workspace_lies_beside_its_entry_and_goes_when_that_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    workspace = store.workspace(WANTED)
    assert workspace != store.workspace(WANTED | {"epsilon": 0.2})
    assert workspace.parent == tmp_path

    def interrupted() -> tuple[Arrays, dict[str, Any]]:
        workspace.mkdir()
        (workspace / "state.pt").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch(WANTED, interrupted)
    assert (workspace / "state.pt").read_bytes() == b"half"
    assert WANTED not in store
    store.workspace(WANTED | {"epsilon": 0.2}).mkdir()
    entry = store.fetch(WANTED, make)
    assert sorted(left_over(tmp_path)) == sorted([store.workspace(WANTED | {"epsilon": 0.2}).name, entry.path.name])


# --- two at once -----------------------------------------------------------------------------------------------------


def fetch_slowly(root: str, record: str, barrier: Barrier) -> None:
    """Run one of two processes that want the same entry at the same time."""

    def slowly() -> tuple[Arrays, dict[str, Any]]:
        with Path(record).open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return make()

    barrier.wait(timeout=300)
    entry = Store(Path(root)).fetch(WANTED, slowly)
    np.testing.assert_array_equal(entry.arrays["images"], make()[0]["images"])


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    context = prepared()
    barrier = context.Barrier(2)
    record = tmp_path / "record"
    arguments = (str(tmp_path / "crafted"), str(record), barrier)
    processes = [context.Process(target=fetch_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert record.read_text() == "made\n"


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_maker_leaves_nothing_and_holds_no_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        Store(tmp_path).fetch(WANTED, lambda: (_ for _ in ()).throw(RuntimeError("no luck")))
    assert left_over(tmp_path) == []
    assert WANTED not in Store(tmp_path)
    Store(tmp_path).fetch(WANTED, make)


def test_a_failure_half_way_through_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []

    def save_one(file: Any, array: Any) -> None:
        saved.append(array)
        if len(saved) == 2:
            raise KeyboardInterrupt
        file.write(b"something")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_one)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).fetch(WANTED, make)
    assert left_over(tmp_path) == []


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = Store(tmp_path).path(WANTED)
    part = tmp_path / f".{path.name}.part"
    part.mkdir()
    (part / "rubbish.npy").write_bytes(b"half")
    assert sorted(Store(tmp_path).fetch(WANTED, make).arrays) == ["images", "labels"]


def damage_pixel(path: Path) -> None:
    raw = bytearray((path / "images.npy").read_bytes())
    raw[-1] ^= 1
    (path / "images.npy").write_bytes(raw)


def cut_off(path: Path) -> None:
    raw = (path / "images.npy").read_bytes()
    (path / "images.npy").write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize(
    "damage",
    [
        damage_pixel,
        cut_off,
        lambda path: (path / "labels.npy").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text('{"checksum": '),
        lambda path: (path / "manifest.json").write_text(json.dumps({"no": "checksum"})),
    ],
    ids=["pixel", "cut off", "array gone", "manifest gone", "manifest cut off", "no checksum"],
)
def test_damage_is_seen_said_and_mended(tmp_path: Path, damage: Any) -> None:
    store = Store(tmp_path)
    path = store.fetch(WANTED, make).path
    damage(path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged.*made again"):
        entry = store.fetch(WANTED, make)
    np.testing.assert_array_equal(entry.arrays["images"], make()[0]["images"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.fetch(WANTED, never)


def put(name: str, array: Any) -> Any:
    """Return a function that puts another array in place, with a checksum that fits."""

    def damage(path: Path) -> None:
        np.save(path / f"{name}.npy", array)
        sealed(path)

    return damage


def put_bytes(content: bytes) -> Any:
    def damage(path: Path) -> None:
        (path / "images.npy").write_bytes(content)
        sealed(path)

    return damage


def header(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def sealed(path: Path, **fields: Any) -> None:
    """Write the checksum that fits the present content."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"checksum": _checksum(path)} | fields))


def replace_by_pipe(path: Path) -> None:
    (path / "images.npy").unlink()
    os.mkfifo(path / "images.npy")


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


EXPECTED = Expected({"images": Form("|u1", (3, 4)), "labels": Form("<i8", (3,), below=3)}, ("noise_rate",))
DAMAGE: dict[str, tuple[Any, str]] = {
    "dtype": (put("images", np.zeros((3, 4), np.float32)), r"images.npy must be \|u1 \(3, 4\), got <f4 \(3, 4\)"),
    "shape": (put("images", np.zeros((4, 3), np.uint8)), r"images.npy must be"),
    "Fortran's order": (put("images", np.asfortranarray(np.zeros((3, 4), np.uint8))), "Fortran"),
    "pickled objects": (put("images", np.array([[{}] * 4] * 3, dtype=object)), "images.npy: .*[Oo]bject"),
    "records": (put("images", np.zeros((3, 4), [("a", "u1")])), "images.npy must be"),
    "byte order": (put("labels", np.zeros(3, ">i8")), "labels.npy must be"),
    "a class that there is none of": (put("labels", np.array([0, 1, 3])), r"labels must be in \[0, 3\), got 0 to 3"),
    "a class below 0": (put("labels", np.array([0, -1, 2])), r"labels must be in"),
    "36 TiB": (put_bytes(header("(36000000000000,)") + b"x"), "images.npy"),
    "a shape beyond all": (put_bytes(header("(" + "9" * 400 + ",)")), "images.npy"),
    "a header that is code": (put_bytes(header("__import__('os').getcwd()")), "images.npy"),
    "a deep header": (put_bytes(header("(" * 5000)), "images.npy"),
    "no array": (put_bytes(b"PK\x03\x04"), "images.npy"),
    "nothing": (put_bytes(b""), "images.npy"),
    "more than its array": (put_bytes(header("(3, 4)") + b"x" * 13), "longer than its array"),
    "a pipe": (replace_by_pipe, "images.npy is not a file"),
    "an array too many": (put("more", np.zeros(3)), "its arrays must be images, labels, got images, labels, more"),
    "no folder": (replace_by_file, "it is not a folder"),
    "a manifest that is a list": (lambda path: (path / "manifest.json").write_text("[]"), "input should be"),
    "a checksum that is a number": (lambda path: sealed(path, checksum=5), "checksum: input should be a valid string"),
    "parameters that are none": (lambda path: sealed(path, parameters=[]), "parameters: "),
    "another set's": (lambda path: sealed(path, parameters=WANTED | {"epsilon": 0.2}), "its manifest is another set's"),
    "a rate that is none": (lambda path: sealed(path, noise_rate="half"), "noise_rate: "),
    "a rate above 1": (lambda path: sealed(path, noise_rate=1.5), "noise_rate: "),
    "latin-1": (lambda path: (path / "manifest.json").write_bytes("é".encode("latin-1")), "invalid JSON"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_set_of_another_form_is_made_again(tmp_path: Path, damage: Any, reason: str) -> None:
    store = Store(tmp_path)
    path = store.fetch(WANTED, make, EXPECTED).path
    damage(path)
    with pytest.warns(UserWarning, match=rf"^{path} is damaged \(.*{reason}.*\): it is made again$") as said:
        entry = store.fetch(WANTED, make, EXPECTED)
    assert len(said) == 1
    assert len(str(said[0].message).splitlines()) == 1
    np.testing.assert_array_equal(entry.arrays["labels"], make()[0]["labels"])
    store.fetch(WANTED, never, EXPECTED)


def test_a_manifest_that_lacks_what_is_read_of_it_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fetch(WANTED, lambda: (make()[0], {}))
    with pytest.warns(UserWarning, match="its manifest lacks noise_rate"):
        store.fetch(WANTED, make, EXPECTED)


def test_weights_must_be_finite(tmp_path: Path) -> None:
    store, expected = Store(tmp_path), Expected({"weight": Form("<f4", (2,))})
    weight = np.array([1, 2], np.float32)
    path = store.fetch(WANTED, lambda: ({"weight": weight}, {})).path
    put("weight", np.array([1, np.nan], np.float32))(path)
    with pytest.warns(UserWarning, match="weight holds numbers that are not finite"):
        store.fetch(WANTED, lambda: ({"weight": weight}, {}), expected)


def test_a_damaged_set_in_a_store_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Store(tmp_path).fetch(WANTED, make).path
    damage_pixel(path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("erat.corruption.store.held", refuse)
    with pytest.raises(
        StoreError, match=rf"^{path} is damaged \(its checksum does not fit\), and the store .* cannot be written: Read"
    ):
        Store(tmp_path).fetch(WANTED, make)


def test_an_array_that_does_not_fit_on_the_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy says "12 requested and 0 written", without the system's error number."""

    def refuse(file: Any, array: Any) -> None:
        raise OSError("12 requested and 0 written")

    monkeypatch.setattr(np, "save", refuse)
    with pytest.raises(OSError, match="requested"):
        Store(tmp_path).fetch(WANTED, make)
    monkeypatch.setattr("erat.corruption.store.FULL_BYTES", 2**62)
    with pytest.raises(StoreError, match="cannot be written: No space left on device") as caught:
        Store(tmp_path).fetch(WANTED, make)
    assert is_storage_fault(caught.value), "a run that meets it has not failed"
    assert left_over(tmp_path) == []


def test_a_damaged_entry_is_not_there_and_a_missing_one_is_no_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert WANTED not in store
        path = store.fetch(WANTED, make).path
        assert WANTED in store
    damage_pixel(path)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged.*made again"):
        assert WANTED not in store
    damage_pixel(path)  # the same bit again
    assert WANTED in store


def test_a_file_in_the_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / "crafted").write_text("not a folder")
    for root in (tmp_path / "crafted", tmp_path / "crafted" / "deeper"):
        with pytest.raises(UserError, match=rf"^the store {root} cannot be written: "):
            Store(root).fetch(WANTED, make)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written: refused"):
        Store(tmp_path).fetch(WANTED, make)
    assert left_over(tmp_path) == []


def test_other_errors_are_not_dressed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="the disk is broken") as caught:
        Store(tmp_path).fetch(WANTED, make)
    assert not isinstance(caught.value, UserError)
