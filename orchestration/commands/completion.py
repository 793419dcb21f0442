"""Provides the words that the shell offers for the word under the cursor.

It must be quick and silent: it does not load torch, and it prints no error while the user types.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import typer

Offer = str | tuple[str, str]  # a word, or a word and its meaning


def _silent(offers: Callable[..., Iterable[Offer]]) -> Callable[[typer.Context, str], list[Offer]]:
    """Wrap a completer so that it offers nothing if it fails, and only words that start with the incomplete one."""

    @wraps(offers)
    def offered(ctx: typer.Context, incomplete: str) -> list[Offer]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = list(offers(ctx, incomplete))
        except Exception:
            return []
        return [one for one in found if (one if isinstance(one, str) else one[0]).startswith(incomplete)]

    offered.__annotations__ = {"ctx": typer.Context, "incomplete": str}
    return offered


@_silent
def presets(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of presets."""
    from erat.presets import PRESETS

    return PRESETS


@_silent
def spaces(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of search spaces."""
    from orchestration.study.named import FOLDER, names_in

    return names_in(FOLDER)


@_silent
def grids(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of grids."""
    from orchestration.study.named import GRIDS, names_in

    return names_in(GRIDS)


@_silent
def samplers(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of samplers."""
    from orchestration.study.registries import SAMPLERS

    return SAMPLERS.names()


@_silent
def pruners(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of pruners."""
    from orchestration.study.registries import PRUNERS

    return PRUNERS.names()


@_silent
def automatic(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the only word that an option takes beside numbers."""
    return ["auto"]


@_silent
def confirmations(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer ways to confirm the best trials."""
    return [("3x3", "the best 3 with 3 seeds each"), ("none", "no confirmation"), ("auto", "3x3 with --preset paper")]


@_silent
def studies(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of the sweeps and matrices in the ledger."""
    from orchestration.storage.workspace import Workspace
    from orchestration.study.ledger import Ledger

    return Ledger(Workspace.from_environment(reading=True, make=False).ledger).studies


@_silent
def runs(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the digests of the runs that have left a trained model."""
    from orchestration.storage.workspace import Workspace

    cells = Workspace.from_environment(reading=True, make=False).run_directory("x").parent
    return sorted(file.parents[1].name for file in cells.glob("*/artifacts/model.pt"))


@_silent
def defenses(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the names of defenses and their variants."""
    from erat.variants import defense_names

    return defense_names()


@_silent
def keys(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer the dotted keys."""
    from erat.keys import all_keys

    return all_keys()


@_silent
def overrides(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Offer KEY= for every key, then the words that the key takes.

    bash treats the two sides of an equals sign as separate words and replaces only the second.
    """
    from erat.keys import all_keys, field_of
    from orchestration.study.overrides import words_of

    given = " ".join(map(str, ctx.params.get("overrides") or []))
    before = given.replace(" = ", "=").removesuffix(" =").split()
    defense = next((word.partition("=")[2] for word in before if word.startswith("defense.name=")), "erat")
    key, equals, _ = incomplete.partition("=")
    start = f"{key}="
    if before and "=" not in before[-1]:  # the word under the cursor, or the one before it, is the sign
        return _words(before[-1], defense, field_of, words_of)
    if equals:
        return [start + word for word in _words(key, defense, field_of, words_of)]
    fields = {key: field_of(key, defense) for key in all_keys()}
    return [(f"{key}=", field.description or "") for key, field in fields.items() if field is not None]


def _words(key: str, defense: str, field_of: Any, words_of: Any) -> list[str]:
    field = field_of(key, defense)
    return [] if field is None else words_of(key, field)
