"""What the shell offers for the word under the cursor. Quick and silent: no torch, and no error while one types."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import typer

Offer = str | tuple[str, str]  # a word, or a word and its meaning


def _silent(offers: Callable[..., Iterable[Offer]]) -> Callable[[typer.Context, str], list[Offer]]:
    """Offer nothing where something is amiss; of what is offered only words that begin as the one begun."""

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
    """Names of presets."""
    from erat.presets import PRESETS

    return PRESETS


@_silent
def spaces(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Names of search spaces."""
    from orchestration.study.named import FOLDER, names_in

    return names_in(FOLDER)


@_silent
def grids(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Names of grids."""
    from orchestration.study.named import GRIDS, names_in

    return names_in(GRIDS)


@_silent
def studies(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Names of the sweeps and matrices in the ledger."""
    from orchestration.storage.workspace import Workspace
    from orchestration.study.ledger import Ledger

    return Ledger(Workspace.from_environment(reading=True, make=False).ledger).studies


@_silent
def defenses(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Names of defenses and their variants."""
    from erat.variants import defense_names

    return defense_names()


@_silent
def keys(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """Dotted keys."""
    from erat.config import all_keys

    return all_keys()


@_silent
def overrides(ctx: typer.Context, incomplete: str) -> Iterable[Offer]:
    """KEY= of every key, then the words that the key takes.

    bash takes the two sides of an equals sign for words of their own, and replaces the second alone.
    """
    from erat.config import all_keys, field_of
    from orchestration.study.overrides import words_of

    given = " ".join(map(str, ctx.params.get("overrides") or []))
    before = given.replace(" = ", "=").removesuffix(" =").split()
    defense = next((word.partition("=")[2] for word in before if word.startswith("defense.name=")), "erat")
    key, equals, _ = incomplete.partition("=")
    start = f"{key}="
    if before and "=" not in before[-1]:  # the sign is the word under the cursor, or the one before
        return _words(before[-1], defense, field_of, words_of)
    if equals:
        return [start + word for word in _words(key, defense, field_of, words_of)]
    fields = {key: field_of(key, defense) for key in all_keys()}
    return [(f"{key}=", field.description or "") for key, field in fields.items() if field is not None]


def _words(key: str, defense: str, field_of: Any, words_of: Any) -> list[str]:
    field = field_of(key, defense)
    return [] if field is None else words_of(key, field)
