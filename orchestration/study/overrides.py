"""KEY=VALUE words of the command line: each value is read as its key's type wants it, and is text until then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from erat.config import field_of
from erat.errors import UserError, shown
from erat.paths import require_text

MOST_TEXT = 4096  # characters of a path
MOST_NUMBER = 100  # characters of anything else
NOTHING = ("none", "null")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE, _DECIMAL = re.compile(r"[-+]?\d+"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def parse_overrides(words: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE words as a mapping.

    The value of a key that holds text or a path is text, whatever it looks like. Elsewhere numbers, true and false are
    read; `none` is no value where a key may have none; `[30,60]` or `30,60` is a list where a key takes one.

    Raises:
        UserError: a word that is not KEY=VALUE, a key given twice, or a value that is too long.
    """
    texts: dict[str, str] = {}
    for word in words or []:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"expected KEY=VALUE, got {shown(word)}")
        if key == "preset":
            raise UserError("the preset is not a key: give --preset demo, --preset paper or --preset official")
        if key in texts:
            raise UserError(f"{shown(key)} is given twice")
        require_text(word, shown(key))
        texts[key] = text
    parts = texts.get("defense.name", "erat"), texts.get("corruption.data", "none")
    return {key: _value(key, text, *parts) for key, text in texts.items()}


def _value(key: str, text: str, defense: str, corruption: str) -> Any:
    field = field_of(key, defense, corruption)
    return text if field is None else read_value(key, text, field)  # whether there is such a key is for others to say


def read_value(key: str, text: str, field: FieldInfo) -> Any:
    """Return what `text` says for a field of the configuration; text that fits no type of it is returned as it is.

    Raises:
        UserError: it is longer than any value of the key.
    """
    types = _types(field.annotation)
    words = [word for kind in types if get_origin(kind) is Literal for word in get_args(kind)]
    textual = bool(words) or str in types
    most = MOST_TEXT if textual else MOST_NUMBER * 20 if _takes_many(types) else MOST_NUMBER
    if len(text) > most:
        raise UserError(f"{key} must have at most {most:,} characters, got {len(text):,}: {shown(text)}")
    lower = text.strip().lower()
    if NoneType in types and lower not in words and (lower in NOTHING or lower == ""):
        return None
    if textual:
        return text
    if bool in types and lower in BOOLEANS:
        return BOOLEANS[lower]
    if _takes_many(types):
        inside = re.sub(r"^[\[(](.*)[\])]$", r"\1", text.strip()).strip()
        return [_number(part.strip()) for part in inside.split(",")] if inside else []
    return _number(text)


def _types(annotation: Any) -> list[Any]:
    """The members of a union, of unions inside it, too."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _types(member)]
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _types(annotation.__origin__)
    return [annotation]


def _takes_many(types: Sequence[Any]) -> bool:
    return any(get_origin(kind) in (tuple, list) for kind in types)


def _number(text: str) -> int | float | str:
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text
