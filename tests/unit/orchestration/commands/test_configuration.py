"""Tests `config`, which lists every key from the models; the page in docs/ is what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erat.config import build
from erat.errors import UserError
from erat.keys import all_keys
from erat.registry import DEFENSES
from orchestration.commands.configuration import Entry, as_markdown, as_text, entries, listing, written
from orchestration.study.overrides import parse_overrides

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def found() -> list[Entry]:
    return entries()


def of(found: list[Entry], key: str) -> dict[tuple[str, ...], Entry]:
    return {entry.parts: entry for entry in found if entry.key == key}


def test_every_key_has_a_type_and_a_meaning(found: list[Entry]) -> None:
    assert {entry.key for entry in found} == set(all_keys())
    assert not [entry.key for entry in found if not entry.meaning or not entry.type]
    assert not [entry.key for entry in found if "\n" in entry.meaning or len(entry.meaning) > 200]


def test_the_page_in_docs_is_current() -> None:
    """To write the page again: python orchestrate.py config --format md > docs/configuration.md"""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == as_markdown(entries())


@pytest.mark.parametrize(
    ("key", "kind", "allowed", "default"),
    [
        ("corruption.rate", "number or none", "[0, 1]", 0.6),
        ("val.fraction", "number", "(0, 0.9)", 0.1),
        ("train.lr", "number", "> 0", 0.1),
        ("train.batch_size", "whole number", "[2, 2^20]", 64),
        ("train.milestones", "list of whole numbers", "[0, 100000]", (60,)),
        ("train.schedule", "choice", "step, onecycle, cosine", "onecycle"),
        ("data.flip", "true or false or none", "", False),
        ("storage.path", "text or none", "", None),
        ("model.name", "choice", "medium, preact_resnet18, resnet18", "small"),
    ],
)
def test_a_key_of_all_runs(found: list[Entry], key: str, kind: str, allowed: str, default: Any) -> None:
    (entry,) = of(found, key).values()
    assert (entry.type, entry.default, entry.parts) == (kind, default, ())
    assert entry.allowed.startswith(allowed) if allowed else not entry.allowed


def test_a_key_of_defenses_says_which_have_it_and_how(found: list[Entry]) -> None:
    weights = of(found, "defense.lambda_u")
    assert {name for names in weights for name in names} == {"dividemix", "erat", "mspl", "unicon"}
    assert {names: entry.default for names, entry in weights.items()} == {
        ("dividemix",): 25.0,
        ("erat",): 25.0,
        ("mspl",): 1.0,
        ("unicon",): 30.0,
    }
    assert of(found, "defense.jpeg_quality").keys() == {()}, "all defenses have it alike"
    (attacking,) = of(found, "defense.steps")
    assert attacking == tuple(sorted(set(DEFENSES.names()) - {"ueraser_max"})), "all but one have it alike"


def test_a_key_of_data_corruptions_says_which_have_it_and_how(found: list[Entry]) -> None:
    widths, steps = of(found, "corruption.width"), of(found, "corruption.steps")
    assert {names: entry.default for names, entry in widths.items()} == {("l2c",): 16}
    assert {name for names in steps for name in names} == {
        "aa",
        "adaptive",
        "ap",
        "l2c",
        "pil",
        "rem",
        "tue",
        "uap",
        "uhp",
        "up",
    }
    assert steps["uap", "uhp"].default == 500
    assert "rounds" in steps["up",].meaning


def test_defaults_are_the_preset_s_and_the_defense_s() -> None:
    flat = build("official", {"defense.name": "unicon"}).flat()
    for entry in entries("official", "unicon"):
        if not entry.parts or "up" in entry.parts:  # those of the preset's data corruption
            value = flat[entry.key]
            assert entry.default == (tuple(value) if isinstance(value, list) else value), entry.key
        assert not entry.parts or entry.key.startswith("corruption.")
    assert not of(entries("demo", "ce"), "defense.eta")


def test_a_default_reads_back(found: list[Entry]) -> None:
    """What is shown can be given as input: `none`, 8/255, lists."""
    for preset in ("demo", "paper"):
        kind = build(preset).corruption.data
        mine = [entry for entry in entries(preset, "erat") if not entry.parts or kind in entry.parts]
        shown = {entry.key: entry.default for entry in mine}
        given = parse_overrides([f"{key}={written(value)}" for key, value in shown.items() if key != "preset"])
        assert build(preset, given, quiet=True).digest() == build(preset).digest()
    assert written(8 / 255) == "8/255"


def test_some_keys_by_name_or_prefix() -> None:
    assert [entry["key"] for entry in listing(["train.lr"], "demo", None, "text")[1]] == ["train.lr"]
    some = [entry["key"] for entry in listing(["train.lr_", "model"], "demo", None, "text")[1]]
    assert some == ["train.lr_rule", "train.lr_batch", "model.name"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["defense.etta"], "demo", None, "text"), "unknown key 'defense.etta': did you mean defense.eta"),
        ((["eta"], "demo", None, "text"), "did you mean defense.eta?"),
        ((["defense.eta"], "demo", "ce", "text"), "unknown key 'defense.eta'"),
        (([], "demo", "errat", "text"), "unknown defense 'errat': did you mean erat"),
        (([], "big", None, "text"), "unknown preset 'big'"),
        (([], "demo", None, "mdd"), "unknown format 'mdd': did you mean md?"),
    ],
)
def test_what_there_is_not(arguments: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        listing(*arguments)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_text_is_for_a_terminal(found: list[Entry]) -> None:
    text = as_text(found)
    assert max(map(len, text.splitlines())) <= 110
    assert "\ntrain.lr\n    number: > 0; default 0.1\n    learning rate" in text
    assert "default jpeg; with iss" in text
    assert all(f"\n{key}\n" in f"\n{text}" for key in all_keys())


def test_markdown_has_a_table_a_section_and_the_presets(found: list[Entry]) -> None:
    page = as_markdown(found)
    for section in ("data", "val", "corruption", "model", "defense", "train", "resources", "storage", "Presets"):
        assert f"\n## {section}\n" in page
    assert "| `train.epochs` | 16 | 16 | 100 | 100 |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `defense.")]
    assert {line.replace("\\|", "").count("|") for line in rows if line.count("|") > 6} == {7}
