"""Tests user-defined parts: by decorator, by call, from an installed package; and the handling of a broken one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest

import erat
from erat import plugins
from erat.keys import all_keys, known_keys
from orchestration.commands.configuration import entries
from orchestration.study.overrides import fields_of
from tests.public import OWN, PARTS, installed, no_other_parts

__all__ = ["no_other_parts"]

ROOT = Path(__file__).parents[3]


class Mine(erat.Defense):
    """A defense that has no description."""

    Options = erat.DefenseOptions


def test_all_four_by_decorator_make_a_run(tmp_path: Path) -> None:
    exec(compile(PARTS, "parts", "exec", dont_inherit=True), {"__name__": "parts"})
    assert {"defense.smoothing", "corruption.rows"} <= set(all_keys())
    config = erat.build("demo", OWN | {"defense.smoothing": 0.3})
    result = erat.train(config)
    assert result.status == "done"
    other = erat.train(erat.build("demo", OWN | {"corruption.rows": 3}))
    assert other.checksum != result.checksum, "the corruption's own option has its say"


def test_a_name_by_call_by_text_and_undone() -> None:
    with erat.temporary_registrations():
        assert erat.register_defense("mine", Mine) is Mine
        assert erat.register_backbone("late", "no_such_module:thing") == "no_such_module:thing"
        assert erat.DEFENSES["mine"] is Mine
        assert "late" in erat.BACKBONES.names()
        with pytest.raises(
            erat.UserError, match="backbone 'late', registered as no_such_module:thing, cannot be loaded"
        ):
            erat.BACKBONES["late"]
        assert "defense.name" in known_keys("mine")
    assert "mine" not in erat.DEFENSES
    with pytest.raises(erat.UserError):
        known_keys("mine")


def test_a_taken_name_is_refused_unless_replaced() -> None:
    with pytest.raises(ValueError, match=r"defense 'erat' is registered twice: erat.defenses.erat:ERAT and .*:Mine"):
        erat.register_defense("erat", Mine)
    with pytest.raises(ValueError, match=r"defense 'elr' is registered twice: it is ELR already"):
        erat.register_defense("elr", Mine)
    erat.register_defense("mine", Mine)
    other = type("Other", (Mine,), {})
    with pytest.raises(erat.UserError, match="registered twice"):
        erat.register_defense("mine", other)
    erat.register_defense("mine", other, replace=True)
    assert erat.DEFENSES["mine"] is other
    with pytest.raises(erat.UserError, match="defense 'erat' comes with erat and cannot be replaced"):
        erat.register_defense("erat", Mine, replace=True)


def test_what_is_known_of_a_part_is_undone_with_it() -> None:
    erat.register_defense("mine", Mine)
    with erat.temporary_registrations():
        erat.register_defense(
            "mine", "erat.defenses.ce:CrossEntropy", known="erat.options:DefenseOptions", replace=True
        )
        assert erat.DEFENSES.options("mine") is erat.DefenseOptions
    assert erat.DEFENSES.options("mine") is Mine.Options


def test_a_part_that_cannot_be_loaded_leaves_the_others_usable() -> None:
    erat.register_defense("ghost", "no_such_module:Other")
    erat.register_corruption("shade", "no_such_module:Other")
    for ask in (all_keys, entries, lambda: known_keys("ce"), lambda: fields_of("defense.eta")):
        known_keys.cache_clear()
        with pytest.warns(
            UserWarning, match=r"'(ghost|shade)', registered as no_such_module:Other, .*; it is left out"
        ):
            assert ask()
    with pytest.raises(erat.UserError, match=r"unknown key 'defense\.eeta'"):
        erat.build("demo", {"defense.eeta": 3})
    with pytest.raises(erat.UserError, match="defense 'ghost', registered as no_such_module:Other, cannot be loaded"):
        erat.build("demo", {"defense.name": "ghost"})


def test_a_plugin_that_ends_the_program_is_one_line(looks_anew: Path) -> None:
    installed(looks_anew, "erat_test_exit", "import sys\nsys.exit(3)\n", "erat_test_exit")
    with pytest.warns(UserWarning, match=r"plugin erat_test_exit .* could not be loaded \(SystemExit: 3\)"):
        assert "small" in erat.BACKBONES.names()


def test_another_thread_s_part_is_not_taken_for_a_plugin_s(looks_anew: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        inside.set()
        assert go_on.wait(300)

    plugins.expect("slow loader", slow)
    loader = threading.Thread(target=erat.BACKBONES.names)
    loader.start()
    assert inside.wait(300)
    erat.register_backbone("mine", len)
    go_on.set()
    loader.join()
    assert set(erat.BACKBONES.added()) == {"mine"}


class _WrongName(erat.DefenseOptions):
    name: Literal["other"] = "other"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("register", "name", "part", "words"),
    [
        (erat.register_defense, "Mine!", Mine, "name of a defense must be lower-case letters"),
        (erat.register_corruption, "none", erat.DataCorruption, "and not none; got 'none'"),
        (erat.register_defense, "mine", dict, "must be a subclass of erat.Defense"),
        (erat.register_defense, "mine", type("Bare", (erat.Defense,), {}), "must have Options"),
        (erat.register_defense, "mine", type("Wrong", (Mine,), {"Options": _WrongName}), 'Literal\\["mine"\\]'),
        (erat.register_corruption, "mine", Mine, "must be an erat.DataCorruption"),
        (
            erat.register_corruption,
            "mine",
            type("Named", (erat.DataCorruption,), {"kind": "other"}),
            "must be its name, got 'other'",
        ),
        (erat.register_dataset, "mine", dict, "must have facts"),
        (erat.register_backbone, "mine", 3, "must be a function"),
    ],
    ids=["name", "none", "no-defense", "no-options", "other-options", "no-corruption", "kind", "no-set", "no-network"],
)
def test_what_cannot_be_is_refused(register: Any, name: str, part: Any, words: str) -> None:
    with pytest.raises(erat.UserError, match=words):
        register(name, part)


@pytest.fixture
def looks_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Provide a folder for installed packages, in which plugins have not been looked for yet."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_found", False)
    monkeypatch.setattr(plugins, "faults", [])
    return tmp_path


def test_an_installed_package_is_found_when_a_name_is_not_known(looks_anew: Path) -> None:
    installed(
        looks_anew, "erat_test_module", "import erat\nerat.register_backbone('theirs', len)\n", "erat_test_module"
    )
    assert erat.BACKBONES["small"]
    assert "erat_test_module" not in sys.modules, "nobody has asked for a name of its own"
    assert erat.BACKBONES["theirs"] is len
    assert not erat.BACKBONES.added(), "every process finds it by itself"


def test_an_entry_point_may_be_a_function_called_once(looks_anew: Path) -> None:
    code = "import erat\n\ndef enter():\n    erat.register_backbone('called', len)\n"
    installed(looks_anew, "erat_test_function", code, "erat_test_function:enter")
    assert "called" in erat.BACKBONES.names()
    assert "called" in erat.BACKBONES.names()


def test_a_broken_plugin_is_one_line_and_stops_nothing(looks_anew: Path) -> None:
    installed(looks_anew, "erat_test_broken", "import no_such_module\n", "erat_test_broken")
    installed(looks_anew, "erat_test_sound", "import erat\nerat.register_backbone('sound', len)\n", "erat_test_sound")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "sound" in erat.BACKBONES.names()
        assert "sound" in erat.BACKBONES.names()
    (warning,) = [str(found.message) for found in caught]
    assert warning == (
        "the plugin erat_test_broken (erat_test_broken) could not be loaded "
        "(ModuleNotFoundError: No module named 'no_such_module'); its parts are missing"
    )
    with pytest.raises(erat.UserError, match=r"unknown backbone 'theirs'.*; the plugin erat_test_broken .* could not"):
        erat.BACKBONES["theirs"]


@pytest.mark.slow
def test_the_command_finds_installed_parts_and_survives_a_broken_one(tmp_path: Path) -> None:
    site = installed(tmp_path / "site", "erat_test_parts", PARTS, "erat_test_parts")
    installed(site, "erat_test_bad", "1 / 0\n", "erat_test_bad")
    words = [f"{key}={value}" for key, value in OWN.items()]
    done = subprocess.run(
        [sys.executable, str(ROOT / "orchestrate.py"), "train", "--dry-run", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}", "ERAT_HOME": str(tmp_path / "workspace")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cells: 1" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "erat_test_bad" in line]
    assert "ZeroDivisionError" in line
    assert "Traceback" not in done.stderr
