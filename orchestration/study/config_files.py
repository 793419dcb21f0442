"""YAML files of configuration keys, which `--config` reads and `--show-config` prints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from erat.config import build
from erat.errors import UserError, shown, unknown_name
from erat.keys import all_keys, unknown_key
from erat.options import EVERYWHERE
from erat.paths import require_text, user_path
from erat.presets import PRESETS
from erat.variants import VARIANTS
from orchestration.study.overrides import parse_overrides, read_text
from orchestration.study.yaml_files import read_texts

DEFAULT_PRESET = "demo"
# Most other values depend on these keys, so the other values of a file are compared after these have been set.
_DECISIVE = ("defense.name", "data.name", "corruption.data", "corruption.labels", "model.name")


# Keys of a file that are not meant for another defense, data set, folder or poison, if a word names one.
_OF_A_PART: dict[str, tuple[str, ...]] = {
    "defense.name": ("defense.",),
    "data.name": ("data.",),
    "data.root": ("data.root", "data.fingerprint"),
    "corruption.data": (
        *("corruption.data", "corruption.norm", "corruption.epsilon", "corruption.granularity", "corruption.source"),
        *(f"corruption.{key}" for key in EVERYWHERE),
    ),
}


@dataclass(frozen=True)
class Asked:
    """The configuration that a command line asks for.

    Attributes:
        preset: name of the preset, whose values are the starting point.
        overrides: dotted key -> value, applied on top of the preset.
    """

    preset: str
    overrides: dict[str, Any]


def asked(words: Sequence[str] | None, file: str | None, preset: str | None, *, apart: Collection[str] = ()) -> Asked:
    """Combine KEY=VALUE words, a file and a preset. Words take precedence over the file, the file over the preset.

    The file's keys of the defense, the data set or the poison are ignored if a word names another one. Values of the
    file that equal the preset's are not returned as overrides, because they must not reach trials of a study with
    another defense.

    Args:
        words: KEY=VALUE words.
        file: path of a YAML file of keys; None if there is none.
        preset: name of a preset. None: that of the file, or else `DEFAULT_PRESET`.
        apart: keys of words whose values are not values of a configuration (such as a list of names). They are kept,
            but not used when the file is compared with the preset.

    Raises:
        UserError: A word or the file cannot be read, a key is unknown, or a value is out of range.
    """
    given = parse_overrides(words)
    if file is None:
        return Asked(preset or DEFAULT_PRESET, given)
    of_file, values = read_config(file)
    chosen = preset or of_file or DEFAULT_PRESET
    if chosen not in PRESETS:
        raise unknown_name("preset", chosen, PRESETS)
    whole = {key: value for key, value in given.items() if key not in apart}
    try:
        values = _needed(
            file, chosen, values, {}
        )  # what a complete file has from its own data set or norm goes with that
    except UserError:  # it may be complete only with the words
        return Asked(chosen, _needed(file, chosen, _without_parts(values, given), whole) | given)
    values = _without_parts(values, given)
    build(chosen, {**values, **whole}, quiet=True)  # a bad word is refused here
    return Asked(chosen, values | given)


def _without_parts(values: dict[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file without those of a defense, data set or poison that a word replaces by another."""
    for key, of_part in _OF_A_PART.items():
        own = values.get(key, "erat" if key == "defense.name" else words.get(key))
        if key in words and words[key] != own:
            values = {name: value for name, value in values.items() if not name.startswith(of_part)}
    return values


def read_config(file: str) -> tuple[str | None, dict[str, Any]]:
    """Read a YAML file of configuration keys, which may be nested or dotted.

    Returns:
        The preset that the file names, or None; and dotted key -> value, read as the value of a KEY=VALUE word.

    Raises:
        UserError: The file does not exist, is not YAML, does not hold a mapping, has an unknown key, or has a key
            twice.
    """
    path = user_path(file, "--config")
    content = read_texts(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold a mapping of keys to values, got {type(content).__name__}")
    texts: dict[str, Any] = {}
    _flatten(path, content, "", texts)
    preset = texts.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise UserError(f"{path}: {unknown_name('preset', str(preset), PRESETS)}")
    allowed = all_keys()
    parts = str(texts.get("defense.name", "erat")), str(texts.get("corruption.data", "none"))
    values = {}
    for key, text in texts.items():
        try:
            values[key] = _read(key, text, *parts)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if key not in allowed and key not in _ALSO:
            raise UserError(f"{path}: {unknown_key(key, allowed)}")
    return preset, values


def read_plain(file: str, what: str) -> dict[str, Any]:
    """Read a YAML file of configuration keys for a command that takes no preset; return dotted key -> value.

    Args:
        file: path of the file.
        what: the command's name for the error message.

    Raises:
        UserError: As for `read_config`, or the file names a preset.
    """
    preset, values = read_config(file)
    if preset is not None:
        raise UserError(f"{file}: {what} has settings of its own and takes no preset, got {preset}")
    return values


_ALSO = ("train.gpus_per_worker",)  # accepted as another name of a key


def _flatten(path: Path, tree: Mapping[str, Any], above: str, flat: dict[str, Any]) -> None:
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            _flatten(path, value, f"{key}.", flat)
        elif key in flat:
            raise UserError(f"{path}: {shown(key)} is given twice")
        else:
            flat[key] = value


def _read(key: str, text: Any, defense: str, corruption: str) -> Any:
    if isinstance(text, list):
        if not all(isinstance(part, str) for part in text):
            raise UserError(f"{key} must be a value or a list of values, got {shown(text)}")
        text = f"[{','.join(text)}]"
    if text is None:
        return None
    require_text(text, shown(key))
    return read_text(key, text, defense, corruption)


def _needed(file: str, preset: str, values: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file that do not follow from the preset and the words already.

    Raises:
        UserError: The values do not make a valid configuration. The message names the file if its values alone do not.
    """
    try:
        goal = build(preset, {**values, **words}, quiet=True).flat()
    except UserError as error:
        try:
            build(preset, values, quiet=True)
        except UserError as own:
            raise UserError(f"{file}: {own}") from own
        raise error
    needed = {key: value for key, value in values.items() if key not in goal or str(value) in VARIANTS}
    for chosen in (_DECISIVE, tuple(values)) * 2:
        try:
            now = build(preset, {**needed, **words}, quiet=True).flat()
        except UserError:
            return dict(values)
        needed |= {key: values[key] for key in chosen if key in values and now.get(key) != goal.get(key)}
    return needed if build(preset, {**needed, **words}, quiet=True).flat() == goal else dict(values)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of dotted keys as a mapping of sections: `{"a.b": 1}` becomes `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            tree.setdefault(section, {})[name] = value
        else:
            tree[key] = value
    return tree


def as_yaml(flat: Mapping[str, Any]) -> str:
    """Return a mapping of dotted keys as YAML text that `read_config` can read."""
    return yaml.safe_dump(nested(flat), sort_keys=False, allow_unicode=True)
