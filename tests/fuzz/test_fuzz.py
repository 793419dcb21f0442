"""Tests that no input causes a traceback, a hang, a wrong exit status, or a file outside ERAT_HOME."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from tests.fuzz.groups import COUNTS, known, possible, strategies
from tests.fuzz.sandbox import Input, Outcome, Sandbox
from tests.fuzz.stored import make_bases

PROFILE = os.environ.get("ERAT_FUZZ", "ci")
SHARE = 64  # one in this many inputs is tried if slow tests are left out
MORE = 10 if PROFILE == "long" else 1


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """Provide the sandbox, whose one process is copied for every input."""
    opened = Sandbox()
    try:
        make_bases(opened)
        yield opened
    finally:
        opened.close()


def check(sandbox: Sandbox, tried: Input) -> None:
    """Run an input; a failure shows the command line, the files and the end of standard error."""
    if possible(sandbox, tried):
        outcome = sandbox.run(tried)
        faults = outcome.faults(tried)
        assert not faults, f"{tried}\n{faults}\n{outcome.err[-1500:]}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("group", COUNTS)
def test_known_inputs(group: str, sandbox: Sandbox) -> None:
    failed = []
    for tried in (one for one in known() if one.group == group):
        try:
            check(sandbox, tried)
        except AssertionError as error:
            failed.append(str(error))
    assert not failed, f"{len(failed)} failed:\n" + "\n".join(failed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", COUNTS)
def test_generated_inputs(group: str, sandbox: Sandbox) -> None:
    _generate(group, sandbox, COUNTS[group] * MORE)


@pytest.mark.parametrize("group", COUNTS)
def test_a_few_generated_inputs(group: str, sandbox: Sandbox) -> None:
    _generate(group, sandbox, max(2, COUNTS[group] // SHARE))


def _generate(group: str, sandbox: Sandbox, count: int) -> None:
    @settings(settings.get_profile(PROFILE), max_examples=count)
    @given(strategies(sandbox)[group])
    def one(tried: Input) -> None:
        check(sandbox, tried)

    one()


QUIET = Outcome(code=0, signal=None, hung=False, seconds=0.1, out="", err="", written=())
SAID = "error: no\n"
CHECKED = Input("verbs", ("status", "--json"), allowed=(0, 2))


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"out": "{}\n"}, set()),
        ({"code": 2, "err": f"warning: odd\n{SAID}"}, set()),
        ({"code": 1, "err": "Traceback (most recent call last):\nKeyError\n"}, {"traceback"}),
        ({"code": 70, "err": SAID}, {"traceback"}),
        ({"code": None, "hung": True}, {"hang"}),
        ({"code": None, "signal": 11}, {"signal"}),
        ({"code": 1, "err": SAID}, {"status"}),
        ({"code": 2, "err": SAID * 2}, {"text"}),
        ({"code": 2, "err": f"{SAID}more\n"}, {"text"}),
        ({"code": 2, "err": ""}, {"text"}),
        ({"code": 2, "err": f"error: {'x' * 1000}\n"}, {"text"}),
        ({"code": 2, "err": "error: \x1b[31m\n"}, {"text"}),
        ({"out": "hello\n{}\n"}, {"json"}),
        ({"out": "{}\n", "written": ("cwd/x",)}, {"outside"}),
    ],
)
def test_every_fault_is_seen(changes: dict[str, Any], kinds: set[str]) -> None:
    assert replace(QUIET, **changes).faults(CHECKED).keys() == kinds


def test_an_input_survives_being_kept() -> None:
    files = {"data/x": b"\xff\0", "data/y": "folder"}
    kept = Input("data", ("craft", "\udcff"), files, (2,), "swept", ("home/z",), 4096, True)
    assert Input.from_json(json.loads(json.dumps(kept.as_json()))) == kept


def test_there_are_enough_inputs_of_every_group() -> None:
    assert sum(COUNTS.values()) >= 2000
    assert {one.group for one in known()} >= COUNTS.keys() - {"crafted", "cells"}


def test_a_file_outside_the_home_is_noticed(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Input("verbs", ("report", "t", "--format", "csv", "--out", "here.csv"), base="swept"))
    assert "cwd/here.csv" in outcome.written
