"""Tests KEY=VALUE words: how each type of key reads a text; and `shown`, which puts input into messages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erat.config import build
from erat.errors import UserError, shown
from erat.keys import all_keys, field_of
from erat.paths import user_path
from orchestration.study.overrides import parse_overrides


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.root=photos #2", "photos #2"),
        ("data.root=2024", "2024"),
        ("data.root=none", None),
        ("data.root=./none", "./none"),
        ("data.limit=none", None),
        ("data.limit=null", None),
        ("data.limit=300", 300),
        ("data.flip=yes", True),
        ("data.flip=off", False),
        ("data.flip=none", None),
        ("defense.squeeze=none", "none"),  # the name of an option, not "no value"
        ("corruption.data=[up]", "[up]"),
        ("corruption.data={}", "{}"),
        ("corruption.rate=0.4", 0.4),
        ("corruption.epsilon=8/255", "8/255"),
        ("train.lr=1e-3", 0.001),
        ("train.milestones=[30, 60]", [30, 60]),
        ("train.milestones=30,60", [30, 60]),
        ("train.milestones=[]", []),
        ("train.milestones=30,,60", [30, "", 60]),  # refused by the key's type, not dropped
        ("train.seed=010", 10),  # never octal
        ("train.lr=1:30", "1:30"),  # never a number of base 60
        ("defense.jsd_log=2", "2"),
        ("nothing.known=3", "3"),
    ],
)
def test_a_value_is_read_as_its_key_wants_it(word: str, value: Any) -> None:
    assert parse_overrides([word]) == {word.partition("=")[0]: value}


def test_a_key_of_another_defense_is_read_too() -> None:
    assert parse_overrides(["defense.name=ce", "defense.beta=2"])["defense.beta"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.seed"], "expected KEY=VALUE, got 'train.seed'"),
        (["=1"], "expected KEY=VALUE"),
        (["train.seed=1", "train.seed=1"], "'train.seed' is given twice"),
        (["train.milestones=" + "[" * 3000], "train.milestones must have at most 2,000 characters, got 3,000"),
        (["data.root=photos\udcff"], "'data.root' must be UTF-8"),
        (["data.root=" + "x" * 5000], "data.root must have at most 4,096 characters"),
    ],
)
def test_what_cannot_be_read(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        parse_overrides(words)


@given(st.sampled_from(all_keys()), st.text(max_size=60))
def test_any_text_is_a_configuration_or_one_line(key: str, text: str) -> None:
    said = ""
    try:
        build("demo", parse_overrides([f"{key}={text}"]), quiet=True)
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
    assert len(said) < 1000


def test_every_key_has_a_field() -> None:
    assert all(field_of(key, "erat") is not None for key in all_keys())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b[2J\n", r"'a\x1b[2J\n'"),
        pytest.param(10**5000, "a whole number of about 5,000 digits", id="5,000 digits"),
        ([[[[[[1]]]]]], "[[[[...]]]]"),
        (3, "3"),
        (None, "None"),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_shown_costs_little_whatever_it_is_given() -> None:
    bomb: list[Any] = ["lol"]
    for _ in range(60):
        bomb = [bomb] * 9
    began = time.process_time()
    assert len(shown(bomb)) <= 80
    assert len(shown("x" * 10**7)) <= 80
    assert time.process_time() - began < 1, "2 ** 190 entries are not walked"


class TestPaths:
    def test_absolute_and_expanded(self) -> None:
        assert user_path("~/x", "k") == Path.home() / "x"
        assert user_path("x", "k") == Path.cwd() / "x"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a\0b", "NUL"),
            ("a\udcff", "UTF-8"),
            ("x" * 300, "255 a name"),
            ("~nosuchuser/x", "no such user"),
            ("a/" * 3000, "4096"),
        ],
    )
    def test_no_path(self, text: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            user_path(text, "data.root")
