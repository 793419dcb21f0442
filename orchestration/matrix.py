"""Grids: which cells a table or figure of the paper has. YAML overlays on one base of named points -> ordered cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from erat.config import RunConfig, Section, build
from erat.errors import UserError, unknown_name
from orchestration.spaces import FOLDER, SearchSpace, load_space, ten_digits
from orchestration.sweep import SweepSpec, unfilled

GRIDS = FOLDER / "grids"
Points = dict[str, dict[str, Any]]  # name -> dotted keys that make it


class GridSpec(Section):
    """One grid as its file has it.

    Attributes:
        axes: name of an axis -> names of the base's points, or points of its own, outermost first.
        paper_axes: more axes, outside the others, where the preset is not the embedded demo.
        paper: dotted keys, likewise.
        space: a search space whose points, in the data set's units, are one more axis, innermost.
    """

    name: str
    about: str
    axes: dict[str, list[str] | Points]
    paper_axes: dict[str, list[str] | Points] = Field(default_factory=dict)
    paper: dict[str, Any] = Field(default_factory=dict)
    space: str | None = None

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
    content: dict[str, Any] = yaml.safe_load((GRIDS / f"{name}.yaml").read_text())
    return content


def grid_names() -> list[str]:
    """All grids that come with the project."""
    return sorted(file.stem for file in GRIDS.glob("*.yaml") if file.stem != "base")


def load_grid(name: str) -> GridSpec:
    """A grid by name, or by path to a YAML file.

    Raises:
        UserError: no such grid, or a file that is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else GRIDS / f"{name}.yaml"
    if not path.is_file() or path == GRIDS / "base.yaml":
        raise unknown_name("grid", name, grid_names())
    try:
        return GridSpec.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place}: {first['msg']}, got {first['input']!r}") from error


def specification(
    grid: GridSpec,
    preset: str,
    overrides: Mapping[str, Any],
    *,
    seeds: Sequence[int] = (0,),
    only: Mapping[str, Sequence[str]] | None = None,
    skip: Mapping[str, Sequence[str]] | None = None,
    fill: Callable[[RunConfig], RunConfig] = unfilled,
) -> SweepSpec:
    """The cells as a list of runs: the product of the axes in their order, seeds innermost.

    Args:
        seeds: of training; the corrupted set is the same for all.
        only, skip: axis -> names of the points to keep, or to leave out.
        fill: as of `SweepSpec`.

    Raises:
        UserError: an unknown axis or point, or nothing left.
    """
    axes = grid.resolved(preset)
    for words, chosen in (("--only", only or {}), ("--skip", skip or {})):
        for axis, names in chosen.items():
            if axis not in axes:
                raise UserError(f"{words} {axis}: {unknown_name('axis', axis, axes)}")
            for name in names:
                if name not in axes[axis]:
                    raise UserError(f"{words} {axis}={name}: {unknown_name('point', name, axes[axis])}")
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
    cells = [
        _scaled(
            {key: value for settings in chosen for key, value in settings.items()} | {"train.seed": seed}, preset, base
        )
        for chosen in product(*kept)
        for seed in seeds
    ]
    # Where an axis has no say (the kind of noise, of which there is none), its points are the same run.
    cells = list({repr(cell): cell for cell in cells}.values())
    if not cells:
        raise UserError("--only and --skip leave no cell")
    for key in overrides:
        if any(key in cell for cell in cells):
            raise UserError(f"{key} is what the grid {grid.name} varies; choose with --only, --skip or --seeds")
    runs = SearchSpace(name=grid.name, about=grid.about, baselines=cells, proposals=0)
    return SweepSpec(runs, preset, base, fill)


def _scaled(cell: dict[str, Any], preset: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """A cell in which `times`, a multiple of the poison's budget, is written out."""
    if "times" not in cell:
        return cell
    plain = {key: value for key, value in cell.items() if key != "times"}
    epsilon = build(preset, {**base, **plain}, quiet=True).corruption.epsilon
    if epsilon is None or cell["times"] == 1:
        return plain
    return plain | {"corruption.epsilon": ten_digits(cell["times"] * epsilon)}


def parse_choice(option: str, words: str | None) -> dict[str, list[str]]:
    """ "defense=erat,ce corruption=up" as axis -> names.

    Raises:
        UserError: a word that is not AXIS=NAME,NAME.
    """
    chosen: dict[str, list[str]] = {}
    for word in (words or "").split():
        axis, equals, names = word.partition("=")
        if not equals or not names:
            raise UserError(f"{option} must be AXIS=NAME,NAME (several with spaces between them), got {word!r}")
        chosen[axis] = names.split(",")
    return chosen
