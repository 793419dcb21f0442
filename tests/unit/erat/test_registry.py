"""Tests the registries: they load lazily, refuse duplicates, and suggest names for one that is not known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import erat.registry
from erat.config import build
from erat.errors import UserError
from erat.keys import all_keys, has_key
from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES, Registry

ROOT = Path(erat.registry.__file__).parents[1]


def test_a_part_is_imported_when_it_is_asked_for() -> None:
    registry: Registry[object] = Registry("part", {"pi": "math:pi", "gone": "no_such_module:thing"})
    assert registry.names() == ["gone", "pi"]
    assert registry["pi"] == 3.141592653589793
    with pytest.raises(ModuleNotFoundError):
        registry["gone"]


def test_a_double_name_is_an_error_that_names_both() -> None:
    registry: Registry[object] = Registry("part", {"pi": "math:pi"})
    with pytest.raises(ValueError, match=r"part 'pi' is registered twice: math:pi and math:tau"):
        registry.add("pi", "math:tau")
    assert registry["pi"] == 3.141592653589793


def test_an_object_itself_can_be_registered() -> None:
    registry: Registry[object] = Registry("part", {})
    registry.add("mine", 42)
    assert registry["mine"] == 42
    assert "mine" in registry
    assert "yours" not in registry
    with pytest.raises(ValueError, match="registered twice"):
        registry.add("mine", 43)


def test_an_unknown_name_lists_near_ones_first_and_then_all() -> None:
    registry: Registry[object] = Registry("part", {"alpha": "math:pi", "beta": "math:tau"})
    with pytest.raises(UserError, match=r"^unknown part 'alpah': did you mean alpha\? allowed: alpha, beta$"):
        registry["alpah"]
    with pytest.raises(UserError, match=r"^unknown part 'zzz': allowed: alpha, beta$"):
        registry["zzz"]


@pytest.mark.parametrize("registry", [BACKBONES, CORRUPTIONS, DATASETS, DEFENSES], ids=lambda registry: registry.kind)
def test_every_registered_part_loads(registry: Registry[object]) -> None:
    for name in registry.names():
        assert registry[name] is registry[name]


def test_corruptions_and_defenses_know_their_names() -> None:
    assert {name: CORRUPTIONS[name].kind for name in CORRUPTIONS.names()} == {n: n for n in CORRUPTIONS.names()}
    for name in DEFENSES.names():
        assert DEFENSES[name].Options.model_fields["name"].default == name


def test_what_is_known_beside_a_part_is_what_the_part_has() -> None:
    assert all(DEFENSES.options(name) is DEFENSES[name].Options for name in DEFENSES.names())
    assert all(DATASETS.facts(name) is DATASETS[name].facts for name in DATASETS.names())


def test_a_part_without_a_place_for_what_is_known_is_asked(register: Callable[..., None]) -> None:
    class Mine(DEFENSES["ce"]):  # type: ignore[misc]
        class Options(DEFENSES.options("ce")):  # type: ignore[misc]
            name: str = "mine"
            courage: int = 3

    register(DEFENSES, "mine", Mine)
    assert DEFENSES.options("mine") is Mine.Options
    assert build("demo", {"defense.name": "mine", "defense.courage": "4"}).flat()["defense.courage"] == 4
    assert has_key("defense.courage", "mine")
    assert not has_key("defense.courage", "ce")
    assert "defense.courage" in all_keys()
    for registry in (DATASETS, CORRUPTIONS, DEFENSES):
        assert sorted(registry.by_weight()) == registry.names()


def test_a_part_that_must_be_loaded_for_its_options_is_asked_last() -> None:
    register = "r.DEFENSES.add('anna', 'no_such_module:Anna'); r.CORRUPTIONS.add('bert', 'no_such_module:BERT')"
    asked = "[k.field_of(key, 'erat') for key in ('defense.eta', 'corruption.width', 'train.lr')]"
    code = (
        f"import erat.registry as r, erat.config as c, erat.keys as k; {register}; assert all({asked}); c.build('demo')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_listing_names_loads_no_torch() -> None:
    code = "import sys, erat.registry as r; assert r.DEFENSES.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
