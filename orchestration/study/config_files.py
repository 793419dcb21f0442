"""Files of configuration keys: what `--config` reads and `--show-config` prints."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from erat.config import all_keys, build, unknown_key
from erat.errors import UserError, shown, unknown_name
from erat.paths import require_text, user_path
from erat.presets import PRESETS
from erat.variants import VARIANTS
from orchestration.study.overrides import parse_overrides, read_text
from orchestration.study.yaml_files import read_texts

DEFAULT_PRESET = "demo"
# From these most other values follow: what a file says of the others is compared once these are settled.
_DECISIVE = ("defense.name", "data.name", "corruption.data", "corruption.labels", "model.name")


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        preset: the values to start from.
        overrides: dotted keys on top of them.
    """

    preset: str
    overrides: dict[str, Any]


def asked(words: Sequence[str] | None, file: str | None, preset: str | None, *, apart: Collection[str] = ()) -> Asked:
    """Return what KEY=VALUE words, a file and a preset ask for: words win over the file, the file over the preset.

    The preset of the file counts where none is given. What the file says of the defense is left out where a word names
    another defense. What it says as the preset does anyway is no override: it must not reach a trial of a study that
    has another defense.

    Args:
        apart: keys of the words that are no values of a configuration yet (a list of names).

    Raises:
        UserError: a word or a file that cannot be read, an unknown key, or a value out of range.
    """
    given = parse_overrides(words)
    if file is None:
        return Asked(preset or DEFAULT_PRESET, given)
    of_file, values = read_config(file)
    chosen = preset or of_file or DEFAULT_PRESET
    if chosen not in PRESETS:
        raise unknown_name("preset", chosen, PRESETS)
    if "defense.name" in given and given["defense.name"] != values.get("defense.name", "erat"):
        values = {key: value for key, value in values.items() if not key.startswith("defense.")}
    whole = {key: value for key, value in given.items() if key not in apart}
    return Asked(chosen, _needed(file, chosen, values, whole) | given)


def read_config(file: str) -> tuple[str | None, dict[str, Any]]:
    """Read a file of keys, nested or dotted: (its preset or none, dotted key -> value as KEY=VALUE words give it).

    Raises:
        UserError: no such file, no YAML, no mapping, an unknown key, or a key given twice.
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
    defense = str(texts.get("defense.name", "erat"))
    values = {}
    for key, text in texts.items():
        try:
            values[key] = _read(key, text, defense)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if key not in allowed and key not in _ALSO:
            raise UserError(f"{path}: {unknown_key(key, allowed)}")
    return preset, values


def read_plain(file: str, what: str) -> dict[str, Any]:
    """Read a file of keys for something that knows no presets. Raises as `read_config`, and where it names one."""
    preset, values = read_config(file)
    if preset is not None:
        raise UserError(f"{file}: {what} has settings of its own and takes no preset, got {preset}")
    return values


_ALSO = ("train.gpus_per_worker",)  # another name for a key


def _flatten(path: Path, tree: Mapping[str, Any], above: str, flat: dict[str, Any]) -> None:
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            _flatten(path, value, f"{key}.", flat)
        elif key in flat:
            raise UserError(f"{path}: {shown(key)} is given twice")
        else:
            flat[key] = value


def _read(key: str, text: Any, defense: str) -> Any:
    if isinstance(text, list):
        if not all(isinstance(part, str) for part in text):
            raise UserError(f"{key} must be a value or a list of values, got {shown(text)}")
        text = f"[{','.join(text)}]"
    if text is None:
        return None
    require_text(text, shown(key))
    return read_text(key, text, defense)


def _needed(file: str, preset: str, values: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a file that the preset and the words do not say already.

    Raises:
        UserError: no configuration has these values; the file is named where it is at fault.
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
    """Return dotted keys as sections."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            tree.setdefault(section, {})[name] = value
        else:
            tree[key] = value
    return tree


def as_yaml(flat: Mapping[str, Any]) -> str:
    """Return dotted keys and their values as YAML that `read_config` reads back."""
    return yaml.safe_dump(nested(flat), sort_keys=False, allow_unicode=True)
