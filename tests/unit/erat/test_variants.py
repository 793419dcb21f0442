"""Tests names for settings: each is the same run as its settings written out, and explicit settings override it."""

from __future__ import annotations

from typing import Any

import pytest

from erat.config import build
from erat.errors import UserError
from erat.keys import known_keys
from erat.registry import DEFENSES
from erat.variants import VARIANTS, Variant, defense_names, expand, registered, title_of
from orchestration.report.published import published

TABLE_VI = {
    "erat_inf": ("ERAT_inf", {"norms": "linf"}),
    "erat_2": ("ERAT_2", {"norms": "l2"}),
    "erat_ce_score": ("ERAT w/ CE", {"score": "ce"}),
    "erat_no_rb": ("ERAT w/o RB", {"rebalance": False}),
    "erat_no_uni": ("ERAT w/o Uni", {"uniform": False}),
    "erat_no_aug": ("ERAT w/o Aug", {"strong": False}),
    "erat_no_at": ("ERAT w/o AT", {"adversarial": False}),
    "erat_no_ss": ("ERAT w/o SS", {"selection": False}),
}


def spelled_out(variant: Variant) -> dict[str, Any]:
    return {"defense.name": variant.defense} | {f"defense.{key}": value for key, value in variant.options.items()}


@pytest.mark.parametrize("preset", ["demo", "paper"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_the_run_that_its_settings_make(name: str, preset: str) -> None:
    variant = VARIANTS[name]
    config = build(preset, {"defense.name": name})
    assert config == build(preset, spelled_out(variant))
    assert config.digest() == build(preset, spelled_out(variant)).digest()
    assert config.digest() != build(preset, {"defense.name": variant.defense}).digest(), "and no other one"
    assert config.defense.name == variant.defense


def test_no_two_variants_are_the_same_run() -> None:
    digests = {name: build("demo", {"defense.name": name}).digest() for name in defense_names()}
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize("name", VARIANTS)
def test_its_settings_are_keys_of_its_defense_and_of_that_type(name: str) -> None:
    variant = VARIANTS[name]
    options = build("demo", {"defense.name": name}).defense
    for key, value in variant.options.items():
        assert f"defense.{key}" in known_keys(variant.defense)
        got = getattr(options, key)
        assert (got, type(got)) == (value, type(value)), "or it would have no title"
    assert known_keys(name) == known_keys(variant.defense)


def test_what_is_said_beside_a_variant_wins() -> None:
    options: Any = build("demo", {"defense.name": "erat_inf", "defense.norms": "l2", "defense.eta": 0.3}).defense
    assert (options.norms, options.eta) == ("l2", 0.3)
    assert build("demo", {"defense.name": "erat_inf", "defense.norms": "l2"}).digest() == (
        build("demo", {"defense.name": "erat_2"}).digest()
    )
    options = build("demo", {"defense.name": "ueraser", "defense.worst_of": 2}).defense
    assert (options.strong, options.worst_of) == (True, 2)


def test_overrides_without_a_variant_stay_as_they_are() -> None:
    for overrides in ({}, {"defense.eta": 0.3}, {"defense.name": "ce", "train.lr": 0.1}):
        assert expand(overrides) == overrides


def test_expanding_leaves_the_given_overrides_alone() -> None:
    given = {"defense.name": "erat_inf", "train.lr": 0.1}
    assert expand(given) == {"defense.name": "erat", "defense.norms": "linf", "train.lr": 0.1}
    assert given == {"defense.name": "erat_inf", "train.lr": 0.1}
    assert expand(expand(given)) == expand(given)


def test_a_variant_has_the_presets_of_its_defense() -> None:
    overrides = {"data.name": "cifar100"}
    assert build("paper", {"defense.name": "erat_no_at"} | overrides).flat()["defense.warmup_epochs"] == 30


def test_a_variant_has_no_other_defense_s_keys() -> None:
    with pytest.raises(UserError, match=r"^unknown key 'defense\.eta'"):
        build("demo", {"defense.name": "elr", "defense.eta": 0.1})


# --- names -----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_near_matches_among_defenses_and_variants() -> None:
    with pytest.raises(UserError, match=r"^unknown defense 'erat_int': did you mean erat_inf.*\? allowed: .*unicon$"):
        build("demo", {"defense.name": "erat_int"})
    with pytest.raises(UserError, match=r"^unknown defense 'dividemx': did you mean dividemix or .*at_dividemix"):
        registered("dividemx")


def test_names_are_all_defenses_and_all_variants_and_none_twice() -> None:
    names = defense_names()
    assert set(names) == {*DEFENSES.names(), *VARIANTS}
    assert len(set(names)) == len(names)
    assert {registered(name) for name in names} == set(DEFENSES.names())


# --- titles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_of_a_variant_has_its_title(name: str) -> None:
    variant = VARIANTS[name]
    assert title_of(build("demo", {"defense.name": name}).flat()) == variant.title
    assert title_of(build("demo", spelled_out(variant)).flat()) == variant.title


@pytest.mark.parametrize("name", DEFENSES.names())
def test_a_defense_as_it_is_has_no_title_of_a_variant(name: str) -> None:
    for poison in ("none", "up", "uhp"):
        overrides = {"defense.name": name, "corruption.data": poison}
        assert title_of(build("demo", overrides, quiet=True).flat()) is None


def test_two_settings_have_both_titles_and_a_lost_one_none() -> None:
    flat = build("demo", {"defense.name": "erat_inf", "defense.rebalance": False}).flat()
    assert title_of(flat) == "ERAT∞, ERAT w/o RB"
    assert title_of(build("demo", {"defense.name": "erat_inf", "defense.norms": "both"}).flat()) is None
    assert title_of({"defense.norms": "l2"}) == "ERAT2", "ERAT is what is meant where nothing is said"
    assert title_of({}) is None


def test_titles_tell_variants_apart() -> None:
    titles = [variant.title for variant in VARIANTS.values()]
    assert len(set(titles)) == len(titles)


# --- Table VI --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE_VI)
def test_the_ablations_of_table_vi(name: str) -> None:
    title, options = TABLE_VI[name]
    variant = VARIANTS[name]
    assert (variant.defense, variant.options) == ("erat", options)
    assert variant.title == title.replace("_inf", "∞").replace("_2", "2")


def test_table_vi_has_these_eight_and_no_more() -> None:
    printed = {row.method for row in published() if row.table == "VI"}
    assert printed - {"ERAT"} == {title for title, _ in TABLE_VI.values()}
    assert len(TABLE_VI) == 8
