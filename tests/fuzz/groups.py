"""Lists the groups of the fuzz suite, how many inputs each gets, and the inputs that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import commands, stored
from tests.fuzz.named import named
from tests.fuzz.sandbox import Input, Outcome, Sandbox

CORPUS = Path(__file__).parent / "corpus"
# The number of generated inputs in the whole suite; the named and kept inputs are added to these.
COUNTS = {
    **{"keys": 650, "data": 400, "ledger": 350, "grids": 170, "spaces": 130},
    **{"crafted": 110, "verbs": 130, "cells": 110, "disk": 50},
}
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long", database=None, deadline=None, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)
)


def strategies(sandbox: Sandbox) -> Mapping[str, st.SearchStrategy[Input]]:
    """Return the strategy of each group; the sandbox must have its bases already."""
    found = {
        **{"keys": commands.keys(), "grids": commands.grids(), "spaces": commands.spaces(), "verbs": commands.verbs()},
        **{"data": stored.data(), "ledger": stored.ledgers(sandbox), "crafted": stored.crafted(sandbox)},
        **{"cells": stored.cells(sandbox), "disk": stored.disks(sandbox)},
    }
    assert found.keys() == COUNTS.keys()
    return found


def known() -> list[Input]:
    """Return the named inputs, and those kept in `corpus/`, which are always tried once they have been found."""
    kept = (Input.from_json(json.loads(file.read_text())) for file in sorted(CORPUS.glob("*.json")))
    return [*named(), *kept]


def try_all(
    sandbox: Sandbox,
    strategy: st.SearchStrategy[Input],
    count: int,
    profile: str,
    note: Callable[[Input, Outcome], None],
) -> None:
    """Generate inputs, run all of them, even if some fail, and call `note` with each and its outcome."""

    @settings(settings.get_profile(profile), max_examples=count)
    @given(strategy)
    def one(tried: Input) -> None:
        if possible(sandbox, tried):
            note(tried, sandbox.run(tried))

    one()


def possible(sandbox: Sandbox, given_input: Input) -> bool:
    """Return whether this system lets tests mount the file systems that the input needs."""
    return sandbox.mounts or not (given_input.disk or given_input.read_only)
