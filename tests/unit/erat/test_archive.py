"""Tests archives: tensors and plain values are read without running code, and no damaged file is taken for intact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from erat.archive import read_archive, write_archive
from erat.errors import UserError

CONTENT = {"name": "Käfer", "list": [1, 2.5, None, True]}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 2, dtype=torch.float64),
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    write_archive(path, "test", CONTENT, tensors())
    return path


def test_what_is_written_is_read(archive: Path) -> None:
    content, read = read_archive(archive, "test")
    assert content == CONTENT
    assert read.keys() == tensors().keys()
    for name, value in tensors().items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value)


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    both = torch.arange(4)
    write_archive(tmp_path / "a", "test", {}, {"one": both, "two": both, "part": both[1:3]})
    assert read_archive(tmp_path / "a", "test")[1]["part"].tolist() == [1, 2]


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, header: str, body: bytes) -> Path:
    path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + body)
    return path


def test_every_flipped_byte_is_found(archive: Path) -> None:
    data = archive.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 60)):
        archive.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(UserError) as error:
            read_archive(archive, "test")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_part_of_a_file_is_refused(archive: Path, kept: int) -> None:
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(UserError, match="cannot be read as a file of kind test"):
        read_archive(archive, "test")


def test_a_name_that_stands_twice_is_refused(archive: Path) -> None:
    header, body = header_of(archive.read_bytes())
    first = json.dumps(header["weight"])
    text = json.dumps(header)
    twice = put(archive, f'{text[:-1]}, "weight": {first}}}', body)
    with pytest.raises(UserError, match=r"cannot be read|twice"):
        read_archive(twice, "test")


def test_what_claims_more_than_it_holds_is_refused_without_memory(archive: Path) -> None:
    header, body = header_of(archive.read_bytes())
    header["weight"] |= {"shape": [2**42], "data_offsets": [0, 2**44]}
    with pytest.raises(UserError, match="cannot be read"):
        read_archive(put(archive, json.dumps(header), body), "test")


def test_other_files_are_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="must be a file of kind other, got 'test'"):
        read_archive(archive, "other")
    with pytest.raises(UserError, match="got no such file"):
        read_archive(tmp_path / "absent", "test")
    with pytest.raises(UserError, match="got no regular file"):
        read_archive(Path("/dev/zero"), "test")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="got no regular file"):
        read_archive(tmp_path / "pipe", "test")
    torch.save({"a": 1}, tmp_path / "pickled.pt")
    with pytest.raises(UserError, match="cannot be read"):
        read_archive(tmp_path / "pickled.pt", "test")
    monkeypatch.setattr("erat.archive.MOST_BYTES", 10)
    with pytest.raises(UserError, match="must have at most 10 bytes"):
        read_archive(archive, "test")


def test_what_is_not_plain_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can hold plain values only"):
        write_archive(tmp_path / "a", "test", {"a": object()}, {})
    assert not (tmp_path / "a").exists()
