"""Grids: which cells a table or figure of the paper has. YAML overlays on one base of named points -> ordered cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import Field, ValidationError, model_validator

from erat.config import RunConfig, all_keys, build, field_of, first_error, unknown_key
from erat.errors import UserError, shown, unknown_name
from erat.options import Section, parse_fraction
from orchestration.study.named import GRIDS, named_file
from orchestration.study.overrides import read_value
from orchestration.study.parameters import ten_digits
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec, unfilled
from orchestration.study.yaml_files import read_yaml

MOST_CELLS = 200_000  # of one grid
MOST_TIMES = 1000  # the paper's largest multiple of a budget is 4
Points = dict[str, dict[str, Any]]  # name -> dotted keys that make it


class GridSpec(Section):
    """One grid as its file has it.

    Attributes:
        axes: name of an axis -> names of the base's points, or points of its own, outermost first.
        paper_axes: more axes, outside the others, where the preset is not the embedded demo.
        paper: dotted keys, likewise.
        space: a search space whose points, in the data set's units, are one more axis, innermost.
    """

    name: str = Field(min_length=1, max_length=60, pattern=r"^\w[\w.-]*$")
    about: str
    axes: dict[str, list[str] | Points]
    paper_axes: dict[str, list[str] | Points] = Field(default_factory=dict)
    paper: dict[str, Any] = Field(default_factory=dict)
    space: str | None = None

    @model_validator(mode="after")
    def _known_keys(self) -> GridSpec:
        allowed = {"times", *all_keys()}
        for axis, points in {**self.axes, **self.paper_axes}.items():
            if not points:
                raise UserError(f"axis {shown(axis)} must have at least one point, got none")
            for settings in points.values() if isinstance(points, dict) else ():
                for key, value in settings.items():
                    if key not in allowed:
                        raise unknown_key(key, sorted(allowed))
                    if key == "times" and not (isinstance(value, int | float) and 0 <= value <= MOST_TIMES):
                        raise UserError(f"times must be a number in [0, {MOST_TIMES}], got {shown(value)}")
        for key in self.paper:
            if key not in allowed:
                raise unknown_key(key, sorted(allowed))
        return self

    def resolved(self, preset: str) -> dict[str, Points]:
        """The axes with their points.

        Raises:
            UserError: a name that the base does not have.
        """
        base = _read("base")["axes"]
        chosen = self.axes if preset == "demo" else self.paper_axes | self.axes
        return {axis: _points(axis, entries, base) for axis, entries in chosen.items()}


def _points(axis: str, entries: Sequence[str] | Points, base: Mapping[str, Points]) -> Points:
    if isinstance(entries, dict):
        return entries
    known = base.get(axis, {})
    for name in entries:
        if name not in known:
            raise unknown_name(axis, name, known)
    return {name: known[name] for name in entries}


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(GRIDS / f"{name}.yaml")
    return content


def load_grid(name: str) -> GridSpec:
    """A grid by name, or by path to a YAML file.

    Raises:
        UserError: no such grid, or a file that is none.
    """
    path = named_file(name, GRIDS, "grid", "--grid")
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold a mapping, got {type(content).__name__}")
    try:
        return GridSpec.model_validate(dict(content))
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from error


def specification(
    grid: GridSpec,
    preset: str,
    overrides: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (0,),
    only: Mapping[str, Sequence[str]] | None = None,
    skip: Mapping[str, Sequence[str]] | None = None,
    fill: Callable[[RunConfig], RunConfig] = unfilled,
) -> StudySpec:
    """The cells as a list of runs: the product of the axes in their order, seeds innermost.

    Args:
        seeds: of training; the corrupted set is the same for all.
        only, skip: axis -> names of the points to keep, or to leave out; or dotted key -> values that it must, or
            must not, have in a cell.
        fill: as of `StudySpec`.

    Raises:
        UserError: an unknown axis, point, key or value, too many cells, or nothing left.
    """
    axes = grid.resolved(preset)
    for words, chosen in (("--only", only or {}), ("--skip", skip or {})):
        _check_choice(words, chosen, axes)
    base = (grid.paper if preset != "demo" else {}) | dict(overrides)
    if grid.space is not None:
        space = load_space(grid.space)
        points = space.scaled_points(build(preset, base, quiet=True).data.name)
        axes[grid.space] = {f"point {number}": dict(point) for number, point in enumerate(points)}
    kept = [
        [
            settings
            for name, settings in points.items()
            if name in (only or {}).get(axis, points) and name not in (skip or {}).get(axis, ())
        ]
        for axis, points in axes.items()
    ]
    count = math.prod(map(len, kept)) * len(seeds)
    if count > MOST_CELLS:
        raise UserError(
            f"a grid must have at most {MOST_CELLS:,} cells, got {count:,}; choose points of its axes with --only"
        )
    cells = [
        _scaled(
            {key: value for settings in chosen for key, value in settings.items()} | {"train.seed": seed}, preset, base
        )
        for chosen in product(*kept)
        for seed in seeds
    ]
    # Where an axis has no say (the kind of noise, of which there is none), its points are the same run.
    cells = list({repr(cell): cell for cell in cells}.values())
    whole = cells
    for words, picked, keep in (("--only", only, True), ("--skip", skip, False)):
        cells = _with_values(cells, whole, words, picked or {}, keep)
    if not cells:
        raise UserError("--only and --skip leave no cell")
    for key in overrides:
        if any(key in cell for cell in cells):
            raise UserError(f"{key} is what the grid {grid.name} varies; choose with --only, --skip or --seeds")
    return StudySpec.listing(grid.name, grid.about, cells, preset, base, fill)


def _scaled(cell: dict[str, Any], preset: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """A cell in which `times`, a multiple of the poison's budget, is written out."""
    if "times" not in cell:
        return cell
    plain = {key: value for key, value in cell.items() if key != "times"}
    epsilon = build(preset, {**base, **plain}, quiet=True).corruption.epsilon
    if epsilon is None or cell["times"] == 1:
        return plain
    return plain | {"corruption.epsilon": ten_digits(cell["times"] * epsilon)}


def _check_choice(words: str, chosen: Mapping[str, Sequence[str]], axes: Mapping[str, Points]) -> None:
    for axis, names in chosen.items():
        if "." in axis and axis in all_keys():
            continue
        if axis not in axes:
            raise UserError(f"{words} {axis}: {unknown_name('axis', axis, axes)}, or a dotted key")
        for name in names:
            if name not in axes[axis]:
                raise UserError(f"{words} {axis}={name}: {unknown_name('point', name, axes[axis])}")


def _with_values(
    cells: list[dict[str, Any]],
    whole: Sequence[Mapping[str, Any]],
    words: str,
    chosen: Mapping[str, Sequence[str]],
    keep: bool,
) -> list[dict[str, Any]]:
    """Keep the cells in which each dotted key has one of the values, or leave these out.

    Args:
        whole: the cells of all points that were chosen by name, which say what values there are.

    Raises:
        UserError: no cell gives the key such a value.
    """
    for key, texts in chosen.items():
        if "." not in key:
            continue
        there = {str(cell[key]): cell[key] for cell in whole if key in cell}
        field = field_of(key, "erat")
        assert field is not None, "checked before"
        values = [parse_fraction(read_value(key, text, field)) for text in texts]
        for text, value in zip(texts, values, strict=True):
            if value not in there.values() and text not in there:
                if not there:
                    raise UserError(f"{words} {key}: no axis of this grid sets it; give {key}=VALUE for all cells")
                raise UserError(f"{words} {key}={text}: {unknown_name('value', text, there)}")
        cells = [cell for cell in cells if (key in cell and (cell[key] in values or str(cell[key]) in texts)) is keep]
    return cells


def parse_choice(option: str, choices: Sequence[str] | None) -> dict[str, list[str]]:
    """Read choices such as "defense=erat,ce corruption=up" as axis or dotted key -> names.

    An axis that is named several times is narrowed each time by --only, and each time more is left out by --skip.

    Raises:
        UserError: a word that is not AXIS=NAME,NAME, or an axis of which nothing is left.
    """
    if choices is not None and not all(choice.split() for choice in choices):
        raise UserError(f"{option} must not be empty: AXIS=NAME,NAME")
    chosen: dict[str, list[str]] = {}
    for word in (word for choice in choices or () for word in choice.split()):
        axis, equals, text = word.partition("=")
        names = [name for name in text.split(",") if name]
        if not equals or not names:
            raise UserError(f"{option} must be AXIS=NAME,NAME (several with spaces between them), got {shown(word)}")
        if axis in chosen and option == "--only":
            left = [name for name in chosen[axis] if name in names]
            if not left:
                raise UserError(f"{option} {axis} leaves nothing: {','.join(chosen[axis])} and {text} share no name")
            chosen[axis] = left
        else:
            chosen[axis] = [*chosen.get(axis, []), *names]
    return chosen
