"""Read the KEY=VALUE words of the command line. Each value is converted from text to the type of its key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from erat.config import first_error
from erat.errors import UserError, shown
from erat.keys import all_keys, field_of, known_keys, unknown_key
from erat.paths import require_text
from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES
from erat.variants import defense_names, registered

MOST_TEXT = 4096  # characters in a text or path
MOST_NUMBER = 100  # characters in any other single value; a list may have 20 times as many
NOTHING = ("none", "null")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WHOLE, _DECIMAL = re.compile(r"[-+]?\d+"), re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def parse_overrides(words: Sequence[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE words, and return dotted key -> value.

    The value of a key that holds text or a path stays text, whatever it looks like. For other keys, numbers, true and
    false are converted. `none` is read as None if the key may be None, and `[30,60]` or `30,60` as a list if the key
    takes a list.

    Raises:
        UserError: A word is not KEY=VALUE, a key is given twice, or a value is too long.
    """
    texts: dict[str, str] = {}
    for word in words or []:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"expected KEY=VALUE, got {shown(word)}")
        if key == "preset":
            raise UserError("the preset is not a key: give --preset demo, medium, paper or official")
        if key in texts:
            raise UserError(f"{shown(key)} is given twice")
        require_text(word, shown(key))
        texts[key] = text
    parts = texts.get("defense.name", "erat"), texts.get("corruption.data", "none")
    return {key: read_text(key, text, *parts) for key, text in texts.items()}


def read_text(key: str, text: str, defense: str, corruption: str = "none") -> Any:
    """Convert text to a value of a key. Return the text itself if the key is unknown.

    Args:
        key: dotted key.
        text: the value as text.
        defense, corruption: names of these parts in the configuration, on which the types of keys depend.

    Raises:
        UserError: As for `read_value`.
    """
    field = field_of(key, defense, corruption)
    return text if field is None else read_value(key, text, field)  # the caller checks whether the key exists


def read_value(key: str, text: str, field: FieldInfo) -> Any:
    """Convert text to a value of a field of the configuration. Return text that fits none of its types unchanged.

    Args:
        key: dotted key of the field, for error messages.
        text: the value as text.
        field: the field.

    Raises:
        UserError: The text has more than 4,096 characters (a field of text), 2,000 (a list) or 100 (anything else).
    """
    types = types_of(field.annotation)
    words = [word for kind in types if get_origin(kind) is Literal for word in get_args(kind)]
    textual = bool(words) or str in types
    most = MOST_TEXT if textual else MOST_NUMBER * 20 if takes_many(types) else MOST_NUMBER
    if len(text) > most:
        raise UserError(f"{key} must have at most {most:,} characters, got {len(text):,}: {shown(text)}")
    lower = text.strip().lower()
    if NoneType in types and lower not in words and (lower in NOTHING or lower == ""):
        return None
    if textual:
        return text
    if bool in types and lower in BOOLEANS:
        return BOOLEANS[lower]
    if takes_many(types):
        inside = re.sub(r"^[\[(](.*)[\])]$", r"\1", text.strip()).strip()
        return [_number(part.strip()) for part in inside.split(",")] if inside else []
    return _number(text)


def types_of(annotation: Any) -> list[Any]:
    """Return the members of a union type, including those of nested unions; any other type is its only member."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in types_of(member)]
    if hasattr(annotation, "__metadata__"):  # Annotated
        return types_of(annotation.__origin__)
    return [annotation]


def takes_many(types: Sequence[Any]) -> bool:
    """Return whether one of the types is a list or a tuple."""
    return any(get_origin(kind) in (tuple, list) for kind in types)


def _number(text: str) -> int | float | str:
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def fields_of(key: str) -> dict[str, FieldInfo]:
    """Return name of a defense -> the field of a dotted key, for all defenses whose configuration has the key."""
    fields = DEFENSES.each(lambda name: (name, field_of(key, name) if key in known_keys(name) else None))
    return {name: field for name, field in sorted(fields) if field is not None}


def as_key(key: str, value: Any) -> Any:
    """Convert a value from a YAML file to the type of a key: the text 8/255 to a number, or 1 to true.

    Args:
        key: dotted key.
        value: the value; text, a number, true or false.

    Raises:
        UserError: There is no such key, or no defense accepts the value for it.
    """
    if not isinstance(value, str | bool | int | float):
        raise UserError(f"{key} must be text, a number, true or false, got {shown(value)}")
    if key == "defense.name":
        registered(str(value))
        return value
    if not fields_of(key):
        raise unknown_key(key, all_keys())
    refused: ValidationError | None = None
    for kind in _kinds_of(key):
        try:
            return kind.validate_python(value)
        except ValidationError as error:
            refused = refused or error
    assert refused is not None, "a key has a field"
    raise UserError(f"{key}{first_error(refused)}") from refused


# Allowed values of keys that name a part. Parts are registered while the program runs, so no type can list them.
_NAMES: dict[str, Callable[[], list[str]]] = {
    "data.name": DATASETS.names,
    "corruption.data": lambda: ["none", *CORRUPTIONS.names()],
    "corruption.source": BACKBONES.names,
    "model.name": BACKBONES.names,
    "defense.name": defense_names,
}


def words_of(key: str, field: FieldInfo) -> list[str]:
    """Return the words that a key accepts: names of parts, members of a choice, or true and false; otherwise none."""
    if key in _NAMES:
        return _NAMES[key]()
    kinds = types_of(field.annotation)
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return words or (["true", "false"] if bool in kinds else [])


@cache
def _kinds_of(key: str) -> list[TypeAdapter[Any]]:
    """Return the validators of a key's values, one for each different declaration of the key by a defense."""
    distinct = {repr((field.annotation, field.metadata)): field for field in fields_of(key).values()}
    kinds: list[Any] = [Annotated[field.annotation, field] for field in distinct.values()]
    return [TypeAdapter(kind) for kind in kinds]


def typed(setting: Any) -> str:
    """Write a value so that its key reads it back from a command line.

    Floats keep every digit, so that the digest stays the same.
    """
    if hasattr(setting, "item"):  # numpy's numbers have a repr such as np.float64(...)
        setting = setting.item()
    if isinstance(setting, str):
        return setting
    if isinstance(setting, float):
        return repr(setting)
    return json.dumps(list(setting) if isinstance(setting, tuple) else setting)
