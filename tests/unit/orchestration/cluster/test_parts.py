"""Tests that parts which a program registered itself are packed for another process and are found there when needed."""

from __future__ import annotations

import threading

import pytest

import erat
from erat import plugins
from orchestration.cluster import parts, session
from orchestration.run.preemption import prepare
from tests.public import no_other_parts

__all__ = ["no_other_parts"]


def test_a_part_arrives_when_it_is_asked_for() -> None:
    class Local(erat.Defense):
        Options = erat.DefenseOptions

    with erat.temporary_registrations():
        erat.register_defense("local", Local)
        packed = parts.pack()
    assert [(kind, name) for kind, name, _ in packed] == [("defense", "local")]
    assert "local" not in erat.DEFENSES
    parts.expect(packed)
    assert not plugins.loading()
    assert erat.DEFENSES["local"].__name__ == "Local"
    assert erat.build("demo", {"defense.name": "local"}).defense.name == "local"
    assert not parts.pack(), "what arrived is not sent on"


def test_what_registers_itself_when_it_is_imported_is_not_registered_twice(recwarn: pytest.WarningsRecorder) -> None:
    erat.register_backbone("mine", "erat.models.small:small")
    packed = parts.pack()
    parts.expect(packed)
    assert erat.BACKBONES.names().count("mine") == 1
    assert not recwarn


def test_a_part_that_was_sent_takes_the_place_of_one_that_a_plugin_registers() -> None:
    with erat.temporary_registrations():
        erat.register_backbone("mine", "erat.models.resnet:resnet18")
        packed = parts.pack()
    plugins.expect("plugin", lambda: erat.register_backbone("mine", "erat.models.small:small"))
    parts.expect(packed)
    assert erat.BACKBONES["mine"].__name__ == "resnet18"


def test_where_its_options_are_travels_with_a_part() -> None:
    with erat.temporary_registrations():
        erat.register_defense("mine", "no_such_module:Mine", known="erat.defenses.options:CrossEntropyOptions")
        packed = parts.pack()
    parts.expect(packed)
    assert erat.DEFENSES.options("mine").__name__ == "CrossEntropyOptions"


def test_what_cannot_travel_says_so_before_anything_runs() -> None:
    source = type("Held", (), {"facts": erat.SourceFacts({}, False, "digits"), "load": len, "lock": threading.Lock()})()
    source.held = threading.Lock()
    erat.register_dataset("held", source)
    with pytest.raises(erat.UserError, match=r"^data set 'held' cannot be sent to Ray's workers \(TypeError: "):
        parts.pack()


def test_what_does_not_arrive_is_named_where_it_is_missed() -> None:
    parts.expect([("backbone", "lost", b"no pickle")])
    before = list(plugins.faults)
    try:
        with (
            pytest.warns(UserWarning, match="backbone 'lost' of the program that started this run could not be loaded"),
            pytest.raises(erat.UserError, match=r"unknown backbone 'lost'.*could not be loaded"),
        ):
            erat.BACKBONES["lost"]
    finally:
        plugins.faults[:] = before


def test_workers_are_prepared_as_ever_where_there_is_nothing_to_send() -> None:
    assert session._setup() is prepare
    erat.register_backbone("mine", "erat.models.small:small")
    assert session._setup() is not prepare
