"""Say which dotted keys a configuration has, and what field stands behind each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from erat.defaults import corruption_field, corruption_options
from erat.errors import UserError, listed, shown
from erat.options import CorruptionOptions, fields_of
from erat.registry import CORRUPTIONS, DEFENSES
from erat.sections import Sections
from erat.variants import defense_names, registered


def unknown_key(key: str, allowed: Sequence[str]) -> UserError:
    """Return the error for a dotted key that does not exist, with near matches and the keys that its section has."""
    section = key.split(".")[0] + "."
    whole = [name for name in allowed if name.partition(".")[2] == key]
    near = whole or get_close_matches(key[:100], allowed, n=3, cutoff=0.6)
    there = [name for name in allowed if name.startswith(section)]
    sections = sorted({f"{name.split('.')[0]}.*" for name in allowed})
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown key {shown(key)}: {hint}allowed: {listed(there or sections)}")


@cache
def known_keys(defense: str) -> tuple[str, ...]:
    """Return all dotted keys of a configuration with this defense or variant, and with any data corruption."""
    corruption = list(CorruptionOptions().model_dump())
    corruption += [key for keys in CORRUPTIONS.each(lambda kind: corruption_options(kind).own_keys()) for key in keys]
    sections: dict[str, Iterable[str]] = {name: _fields(name) for name in Sections.model_fields}
    sections["corruption"] = dict.fromkeys(corruption)
    sections["defense"] = fields_of(DEFENSES.options(registered(defense)))
    return tuple(f"{section}.{name}" for section, fields in sections.items() for name in fields)


def all_keys() -> list[str]:
    """Return the dotted keys that a configuration with any of the defenses can have, sorted."""
    return sorted({key for keys in DEFENSES.each(known_keys) for key in keys})


def has_key(key: str, defense: str) -> bool:
    """Return whether a dotted key is among `known_keys`; parts that must be loaded for their options are asked last."""
    section, _, name = key.partition(".")
    if section == "defense":
        return name in fields_of(DEFENSES.options(registered(defense)))
    return field_of(key, defense) is not None


def field_of(key: str, defense: str, corruption: str = "none") -> FieldInfo | None:
    """Return the field of a dotted key, or None if no configuration has such a key.

    If the given defense or data corruption lacks the key, the field is that of the first one that has it. Parts that
    must be loaded for their options are asked last.
    """
    section, _, name = key.partition(".")
    if section == "corruption":
        return corruption_field(name, corruption)
    if section != "defense":
        return _fields(section).get(name)

    def read(one: str) -> FieldInfo | None:
        return fields_of(DEFENSES.options(one)).get(name)

    mine = read(registered(defense)) if defense in defense_names() else None
    return mine if mine is not None else next((field for field in DEFENSES.each(read) if field is not None), None)


def _fields(section: str) -> Mapping[str, FieldInfo]:
    """Return the fields of a section that is the same in all configurations; empty if it is not a section."""
    sections = fields_of(Sections)
    kind = sections[section].annotation if section in sections else None
    return fields_of(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
