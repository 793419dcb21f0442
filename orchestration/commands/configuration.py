"""Implements `config`: lists every key of a configuration from the models, for a terminal, as Markdown, or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import getdoc
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from erat.config import RunConfig, build
from erat.defaults import corruption_options
from erat.errors import unknown_name
from erat.keys import field_of, known_keys, unknown_key
from erat.presets import PRESETS
from erat.registry import CORRUPTIONS, DEFENSES, Registry
from erat.variants import registered
from orchestration.study.overrides import types_of, words_of

FORMATS = ("text", "md")
WIDTH = 100  # characters per line of text
_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "none"}


@dataclass(frozen=True)
class Entry:
    """A key of the configuration.

    Attributes:
        key: the dotted key.
        type: the type of its value, in words.
        default: the default that the preset fills in; None if the key is left open.
        allowed: the range, or the words that it takes; empty if the type says everything.
        meaning: the description of the key.
        parts: the defenses or data corruptions that have the key in this form; empty if all configurations have it.
    """

    key: str
    type: str
    default: Any
    allowed: str
    meaning: str
    parts: tuple[str, ...]


def entries(preset: str = "demo", defense: str | None = None) -> list[Entry]:
    """Return all keys, or those of configurations with `defense`, in the order of the models.

    A key of a defense or of a data corruption has one entry for each different form in which these have it.

    Raises:
        UserError: the preset or the defense is not known.
    """
    if defense is not None:
        registered(defense)
    chosen = build(preset, {"defense.name": defense} if defense else {}, quiet=True)
    defenses = [chosen.defense.name] if defense else _starting_with(chosen.defense.name, _sound(DEFENSES, known_keys))
    of_defense = {name: build(preset, {"defense.name": name}, quiet=True).flat() for name in defenses}
    of_defense[chosen.defense.name] = chosen.flat()
    kinds = _sound(CORRUPTIONS, CORRUPTIONS.known)
    of_corruption = {name: build(preset, {"corruption.data": name}, quiet=True).flat() for name in kinds}
    keys = dict.fromkeys(key for name in defenses for key in known_keys(name))
    sections = list(RunConfig.model_fields)
    found: list[Entry] = []
    for key in sorted(keys, key=lambda key: sections.index(key.partition(".")[0])):
        section, _, name = key.partition(".")
        flats, whole = {chosen.defense.name: chosen.flat()}, 1
        fields = {chosen.defense.name: field_of(key, chosen.defense.name, chosen.corruption.data)}
        if section == "defense" and name != "name":
            flats = {part: flat for part, flat in of_defense.items() if key in flat}
            fields, whole = {part: field_of(key, part) for part in flats}, len(defenses)
        elif owners := [kind for kind in of_corruption if key == f"corruption.{name}" and name in _own_keys(kind)]:
            flats = {kind: of_corruption[kind] for kind in owners}
            fields = {kind: field_of(key, chosen.defense.name, kind) for kind in owners}
            whole = 0
        found += _ways(key, flats, fields, whole)
    return found


def _own_keys(kind: str) -> list[str]:
    return corruption_options(kind).own_keys()


def _ways(
    key: str, flats: Mapping[str, Mapping[str, Any]], fields: Mapping[str, FieldInfo | None], whole: int
) -> list[Entry]:
    """Return an entry for each form of a key, with the parts that have it so, or with no parts if all `whole` agree."""
    ways: dict[Entry, list[str]] = {}
    for name, field in fields.items():
        default = flats[name].get(key)
        default = tuple(default) if isinstance(default, list) else default
        if field is not None:
            ways.setdefault(_entry(key, field, default), []).append(name)
    return [replace(way, parts=() if len(of) == whole else tuple(sorted(of))) for way, of in ways.items()]


def _sound(registry: Registry[Any], read: Callable[[str], Any]) -> list[str]:
    """Return the names of the parts whose knowledge can be read, sorted."""
    return sorted(registry.each(lambda name: (read(name), name)[1]))


def _starting_with(first: str, names: Sequence[str]) -> list[str]:
    return [first, *(name for name in names if name != first)]


def _entry(key: str, field: FieldInfo, default: Any) -> Entry:
    meaning = " ".join((field.description or "").split())
    words = words_of(key, field)
    is_choice = bool(words) and bool not in types_of(field.annotation)
    return Entry(
        key, _type(field, is_choice), default, _range(field) or (", ".join(words) if is_choice else ""), meaning, ()
    )


def _type(field: FieldInfo, is_choice: bool) -> str:
    names = []
    for kind in types_of(field.annotation):
        if get_origin(kind) is tuple:
            names.append(f"list of {_TYPES[types_of(get_args(kind)[0])[0]]}s")
        elif get_origin(kind) is Literal or (kind is str and is_choice):
            names.append("choice")
        else:
            names.append(_TYPES[kind])
    return " or ".join(names)


def _range(field: FieldInfo) -> str:
    """Return the range of a number, or of each in a list: "[0, 1]", "(0, 1)" without its ends, "≥ 1"; "" if none."""
    marks = list(field.metadata)
    for kind in types_of(field.annotation):
        if get_origin(kind) is tuple:
            marks += getattr(get_args(kind)[0], "__metadata__", ())
    bounds = [bound for mark in marks for bound in ([mark] if not isinstance(mark, FieldInfo) else mark.metadata)]
    low = next((bound for bound in bounds if isinstance(bound, Ge | Gt)), None)
    high = next((bound for bound in bounds if isinstance(bound, Le | Lt)), None)
    lowest = _number(low.ge if isinstance(low, Ge) else low and low.gt)
    highest = _number(high.le if isinstance(high, Le) else high and high.lt)
    if low is not None and high is not None:
        return f"{'[' if isinstance(low, Ge) else '('}{lowest}, {highest}{']' if isinstance(high, Le) else ')'}"
    if low is not None:
        return f"{'≥' if isinstance(low, Ge) else '>'} {lowest}"
    return f"{'≤' if isinstance(high, Le) else '<'} {highest}" if high is not None else ""


def _number(value: Any) -> str:
    """Return a bound or a default in the form in which people write it: 2^32, 10^7, 8/255."""
    if isinstance(value, int) and value > 10**6:
        power = next((f"{base}^{n}" for base in (2, 10) for n in range(6, 70) if base**n == value), None)
        return power or str(value)
    if isinstance(value, float):
        plain, levels = f"{value:.10g}", round(value * 255)
        return f"{levels}/255" if len(plain) > 8 and abs(levels / 255 - value) < 1e-12 else plain
    return str(value)


def written(value: Any) -> str:
    """Return a value in the form in which it is written after KEY=."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(written, value)) or "[]"
    return _number(value)


def chosen(found: Sequence[Entry], words: Sequence[str]) -> list[Entry]:
    """Return the entries of these keys, or of all keys that start with these words.

    Raises:
        UserError: there is no such key; the message lists near matches.
    """
    kept: list[Entry] = []
    for word in words:
        here = [entry for entry in found if entry.key == word] or [e for e in found if e.key.startswith(word)]
        if not here:
            raise unknown_key(word, list(dict.fromkeys(entry.key for entry in found)))
        kept += [entry for entry in here if entry not in kept]
    return kept if words else list(found)


def as_text(found: Sequence[Entry]) -> str:
    """Return each key, the values that it takes and its meaning on separate lines."""
    lines = []
    for entry in found:
        having = f"; with {', '.join(entry.parts)}" if entry.parts else ""
        words = (f"{entry.type}: {entry.allowed}" if entry.allowed else entry.type, f"default {written(entry.default)}")
        lines += [entry.key, *_filled(f"{'; '.join(words)}{having}"), *_filled(entry.meaning)]
    return "\n".join(lines) + "\n"


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


# --- docs/configuration.md -------------------------------------------------------------------------------------------

_HEAD = """# Configuration

Every setting of a run is one dotted key. This page is written by `python orchestrate.py config --format md`, from the
models that check the values; `python orchestrate.py config KEY` shows the same in a terminal.

Keys are given as `KEY=VALUE` words, or in a YAML file by `--config FILE`, nested or dotted:

```yaml
preset: paper
data.root: /data
defense:
  name: erat
  eta: 0.3
corruption:
  epsilon: 8/255
```

Words win over the file, and the file over the preset; the file's `preset` counts unless `--preset` is given. What a
file says of the defense is left out where a word names another defense. `--show-config` prints what results, as YAML
that `--config` reads back to the same run, and does nothing else; the `config.json` in a run's folder can be read, too.

A number may be a fraction (`8/255`). `none` leaves a key open where it may be: it then follows from the data set or the
corruption. A list has commas (`train.milestones=30,60`). Pixels are in [0, 1], and every budget is in the same unit.
Defaults below are those of the preset `{preset}`, and `none` stands for a key that has no use there.
"""


def as_markdown(found: Sequence[Entry], preset: str = "demo") -> str:
    """Return a Markdown table per section; if all keys are listed, also what the presets differ in."""
    parts = [_HEAD.format(preset=preset)]
    for section in dict.fromkeys(entry.key.partition(".")[0] for entry in found):
        here = [entry for entry in found if entry.key.startswith(f"{section}.")]
        names = ["key", "type", "default", "allowed", "meaning"]
        lines = [[f"`{e.key}`", e.type, f"`{written(e.default)}`", e.allowed, e.meaning] for e in here]
        if section in ("defense", "corruption"):
            names.append("with")
            lines = [[*line, ", ".join(entry.parts) or "all"] for line, entry in zip(lines, here, strict=True)]
        parts.append(f"## {section}\n\n{_about(section)}\n\n{_table(names, lines)}")
    parts.append(f"## Presets\n\nWhat they set differently, with ERAT.\n\n{_table(*_presets())}")
    return "\n".join(parts)


def _about(section: str) -> str:
    """Return the first paragraph of the docstring of a section's model."""
    kind = RunConfig.model_fields[section].annotation
    return " ".join((getdoc(kind) or "").split("\n\n")[0].split())


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _presets() -> tuple[list[str], list[list[str]]]:
    flats = {name: build(name, quiet=True).flat() for name in PRESETS}
    keys = dict.fromkeys(key for flat in flats.values() for key in flat if key != "preset")
    values = {key: [written(flat.get(key)) for flat in flats.values()] for key in keys}
    return ["key", *flats], [[f"`{key}`", *of] for key, of in values.items() if len(set(of)) > 1]


def listing(words: Sequence[str], preset: str, defense: str | None, form: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the output of `config`: the text, and the same content for `--json`.

    Raises:
        UserError: a key, preset, defense or format is not known.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    found = chosen(entries(preset, defense), words)
    text = as_text(found) if form == "text" else as_markdown(found, preset)
    return text, [asdict(entry) for entry in found]
