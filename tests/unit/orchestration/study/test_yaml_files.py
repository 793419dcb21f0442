"""Tests YAML files from users: size limits, encodings, repeated keys."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from erat.errors import UserError
from orchestration.study.yaml_files import read_yaml

LETTERS = "abcdefghij"
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1, 2", "is not valid YAML: "),
        ("name: Gr\u00fc\u00dfe".encode("latin-1"), "it is not UTF-8 at byte 8"),
        (b"[" * 3000, "nest"),
        (b"- " * 3000 + b"x", "nested more than 30 deep"),
        (BOMB.encode(), "holds more than 200,000 values"),
        (b"a: &a [*a]", "an alias holds itself"),
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' is given twice in line 3"),
        (b"a: " + b"9" * 5000, "is not valid YAML"),
        (b"a: 2024-13-45", "is not valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"a: 1" + b":1" * 100_000, "a value that is no text has 200,001 characters"),
        (b"a: !!bool maybe", "is not valid YAML"),
        (b"a: !!timestamp x", "is not valid YAML"),
        (b"a: !!int ''", "is not valid YAML"),
        (b"a: 1" + b":1" * 400 + b".5", "is not valid YAML"),
        (b"? [a, b]\n: 1\n", "a key must be plain text"),
        (b"#" * (2**20 + 1), "it is larger than 1,048,576 bytes"),
        (b"a: b\0c", "is not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "is not valid YAML"),
    ],
)
def test_refused_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500 + len(str(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, said in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe.yaml", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UserError, match=said):
            read_yaml(path)


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &base {train.lr: 0.1}\nruns: [*base, {<<: *base, train.seed: 1}]\nempty:\n")
    assert read_yaml(path) == {
        "base": {"train.lr": 0.1},
        "runs": [{"train.lr": 0.1}, {"train.lr": 0.1, "train.seed": 1}],
        "empty": None,
    }
    path.write_text("")
    assert read_yaml(path) is None
