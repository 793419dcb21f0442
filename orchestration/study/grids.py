"""Grids: the runs of a table or figure of the paper.

A grid is a YAML file that names points of the axes in base.yaml, or defines points itself. It is expanded into an
ordered list of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import Field, ValidationError, model_validator

from erat.config import RunConfig, build, first_error
from erat.errors import UserError, shown, unknown_name
from erat.keys import all_keys, field_of, has_key, unknown_key
from erat.options import MOST_EPOCHS, Section, parse_fraction
from erat.presets import OF_THE_PAPER
from orchestration.study.named import GRIDS, named_file
from orchestration.study.overrides import read_value
from orchestration.study.parameters import ten_digits
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec, unfilled
from orchestration.study.yaml_files import read_yaml

MOST_CELLS = 200_000  # runs in one grid
MOST_TIMES = 1000  # the paper's largest multiple of a budget is 4
Points = dict[str, dict[str, Any]]  # name of a point -> its dotted keys and their values


class GridSpec(Section):
    """One grid, with the content of its YAML file.

    Attributes:
        name: name of the grid.
        about: one line that describes it.
        axes: name of an axis -> names of points in base.yaml, or the points themselves; the outermost axis is first.
        more: name of an axis -> names of further points in base.yaml, which run only if `only` names them.
        least_epochs: with `compute_of`, the fewest epochs of a run; None: `train.epochs` as everywhere.
        compute_of: name of a point of the axis "defense": every run takes so many epochs that its floating-point
            operations, as counted by `memory`, are those of this point in `least_epochs` epochs, or `least_epochs` if
            these are more.
        paper_axes: further axes, outside the others, which are used with the presets of the paper's data sets.
        paper: dotted key -> value for all runs, with the presets of the paper's data sets.
        space: name of a search space whose points, in the data set's units, are one more axis, the innermost.
    """

    name: str = Field(min_length=1, max_length=60, pattern=r"^\w[\w.-]*$")
    about: str
    axes: dict[str, list[str] | Points]
    more: dict[str, list[str]] = Field(default_factory=dict)
    least_epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS)
    compute_of: str | None = None
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
        for axis in self.more:
            if not isinstance(self.axes.get(axis), list):
                raise UserError(f"more.{axis} must be an axis that lists names of points, got {shown(axis)}")
        if (self.least_epochs is None) != (self.compute_of is None):
            raise UserError("least_epochs and compute_of go together: give both or none")
        return self

    def resolved(self, preset: str) -> dict[str, Points]:
        """Return the axes for a preset: name of an axis -> name of a point -> its dotted keys.

        Raises:
            UserError: base.yaml has no point of a name that the grid uses.
        """
        base = _read("base")["axes"]
        chosen = self.paper_axes | self.axes if preset in OF_THE_PAPER else self.axes
        return {axis: _points(axis, entries, base) for axis, entries in chosen.items()}

    def chosen(self, preset: str, only: Mapping[str, Sequence[str]]) -> dict[str, Points]:
        """Return the axes like `resolved`, with those of the points in `more` that `only` names."""
        axes, base = self.resolved(preset), _read("base")["axes"]
        for axis, names in self.more.items():
            if axis in axes:
                axes[axis] = axes[axis] | _points(axis, [name for name in names if name in only.get(axis, ())], base)
        return axes


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
    """Return the grid of this name, or the one in the YAML file at this path.

    Raises:
        UserError: There is no such grid, or the file does not describe a valid grid.
    """
    path = named_file(name, GRIDS, "grid", "--grid")
    return parse_grid(read_yaml(path), str(path))


def parse_grid(content: Any, where: str) -> GridSpec:
    """Return the grid that the content of a YAML file describes.

    Args:
        content: the content, as `read_yaml` returns it.
        where: the file's name for error messages.

    Raises:
        UserError: The content does not describe a valid grid.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must hold a mapping, got {type(content).__name__}")
    try:
        return GridSpec.model_validate(dict(content))
    except ValidationError as error:
        raise UserError(f"{where}: {first_error(error)}") from error


def specification(
    grid: GridSpec,
    preset: str,
    overrides: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (0,),
    draws: Sequence[int] = (),
    only: Mapping[str, Sequence[str]] | None = None,
    skip: Mapping[str, Sequence[str]] | None = None,
    fill: Callable[[RunConfig], RunConfig] = unfilled,
) -> StudySpec:
    """Return the study that runs a grid: the product of the axes in their order, with the seeds innermost.

    Args:
        grid: the grid.
        preset: name of the preset, whose values are the starting point.
        overrides: dotted key -> value for all runs.
        seeds: seeds of training; the corrupted data set is the same for all of them.
        draws: seeds of the corruption, each of which makes another poison and other wrong labels and is run with all
            `seeds`; none: that of the configuration.
        only, skip: axis -> names of the points to keep, or to leave out; or dotted key -> values that it must have, or
            must not have, in a run.
        fill: see `StudySpec`.

    Raises:
        UserError: An axis, point, key or value is unknown, an override sets a key that the grid varies, there are more
            than `MOST_CELLS` runs, or no run is left.
    """
    axes = grid.chosen(preset, only or {})
    for words, chosen in (("--only", only or {}), ("--skip", skip or {})):
        _check_choice(words, chosen, axes)
    base = (grid.paper if preset in OF_THE_PAPER else {}) | dict(overrides)
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
    drawn: list[dict[str, Any]] = [{"corruption.seed": draw} for draw in draws] or [{}]
    count = math.prod(map(len, kept)) * len(seeds) * len(drawn)
    if count > MOST_CELLS:
        raise UserError(
            f"a grid must have at most {MOST_CELLS:,} cells, got {count:,}; choose points of its axes with --only"
        )
    cells = [
        _scaled(
            {key: value for settings in chosen for key, value in settings.items()} | draw | {"train.seed": seed},
            preset,
            base,
        )
        for chosen in product(*kept)
        for draw in drawn
        for seed in seeds
    ]
    # Some points of an axis may make the same run: without label noise, for example, its kind makes no difference.
    cells = list({repr(cell): cell for cell in cells}.values())
    whole = cells
    for words, picked, keep in (("--only", only, True), ("--skip", skip, False)):
        cells = _with_values(cells, whole, words, picked or {}, keep)
    if not cells:
        raise UserError("--only and --skip leave no cell")
    for key in overrides:
        if any(key in cell for cell in cells):
            raise UserError(
                f"{key} is what the grid {grid.name} varies; choose with --only, --skip, --seeds or --draws"
            )
    if grid.least_epochs is not None:
        if "train.epochs" in base:
            raise UserError(f"train.epochs is what the grid {grid.name} gives each run by its compute")
        cells = _of_equal_compute(grid, cells, preset, base)
    return StudySpec.listing(grid.name, grid.about, cells, preset, base, fill)


def _of_equal_compute(
    grid: GridSpec, cells: list[dict[str, Any]], preset: str, base: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the runs with the number of epochs that `GridSpec.compute_of` gives each of them.

    A run is compared with one that differs from it in its defense alone. Operations are counted as if all samples kept
    their labels, so a defense that selects takes fewer than that.
    """
    from orchestration.study.estimate import memory  # imported here, because it loads torch

    assert grid.least_epochs is not None and grid.compute_of is not None, "checked before"
    least, reference = grid.least_epochs, _points("defense", [grid.compute_of], _read("base")["axes"])[grid.compute_of]
    counted: dict[str, int] = {}

    def operations(settings: Mapping[str, Any]) -> int:
        costly = {key: value for key, value in settings.items() if not key.startswith("corruption.")}
        costly.pop("train.seed", None)
        if (known := repr(sorted(costly.items()))) not in counted:
            name = str(costly.get("defense.name", "erat"))
            fitting = {key: value for key, value in {**base, **costly}.items() if has_key(key, name)}
            counted[known] = memory(build(preset, fitting | {"train.epochs": least}, quiet=True)).flops
        return counted[known]

    found = []
    for cell in cells:
        others = {key: value for key, value in cell.items() if not key.startswith("defense.")}
        ratio = operations(others | reference) / operations(cell)
        found.append(cell | {"train.epochs": max(least, round(least * ratio))})
    return found


def _scaled(cell: dict[str, Any], preset: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with `times`, a multiple of the corruption's budget, replaced by that budget."""
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
    """Return the runs in which each dotted key has one of the chosen values, or those in which it has none of them.

    Args:
        cells: the runs to choose from, each given by its dotted keys.
        whole: all runs of the points that were chosen by name, from which the possible values of a key are taken.
        words: the option's name, `--only` or `--skip`, for error messages.
        chosen: dotted key -> values as text. Entries without a dot are names of axes and are ignored here.
        keep: whether the chosen values are kept (otherwise: left out).

    Raises:
        UserError: No run gives the key such a value.
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
    """Read choices such as "defense=erat,ce corruption=up" and return axis or dotted key -> names.

    If an axis is named several times, `--only` keeps the names that all of them share, and `--skip` leaves out the
    names of all of them.

    Args:
        option: `--only` or `--skip`.
        choices: the option's values; None if it was not given.

    Raises:
        UserError: A word is not AXIS=NAME,NAME, or `--only` leaves no name of an axis.
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
