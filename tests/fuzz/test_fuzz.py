"""No input makes a traceback, a hang, a wrong exit status, or a file outside ERAT_HOME."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from tests.fuzz.groups import COUNTS, known, possible, strategies
from tests.fuzz.sandbox import Input, Sandbox
from tests.fuzz.stored import make_bases

PROFILE = os.environ.get("ERAT_FUZZ", "ci")
SHARE = 16  # of the inputs, one in so many is tried where slow tests are left out
MORE = 10 if PROFILE == "long" else 1


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One process that all inputs are copies of."""
    opened = Sandbox()
    try:
        make_bases(opened)
        yield opened
    finally:
        opened.close()


def check(sandbox: Sandbox, tried: Input) -> None:
    """Run an input; what is wrong comes with the command line, the files and the end of what was said."""
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
    _generate(group, sandbox, max(3, COUNTS[group] // SHARE))


def _generate(group: str, sandbox: Sandbox, count: int) -> None:
    @settings(settings.get_profile(PROFILE), max_examples=count)
    @given(strategies(sandbox)[group])
    def one(tried: Input) -> None:
        check(sandbox, tried)

    one()
