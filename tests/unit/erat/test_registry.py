"""The registries: lazy, without doubles, and helpful about names that they lack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import erat.registry
from erat.errors import UserError
from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES, Registry


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


def test_listing_names_loads_no_torch() -> None:
    code = "import sys, erat.registry as r; assert r.DEFENSES.names(); assert 'torch' not in sys.modules"
    root = Path(erat.registry.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
