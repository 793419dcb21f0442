"""Search spaces: YAML files that say what is searched, the paper's own points, and how many proposals follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from erat.config import all_keys, field_of, first_error, unknown_key
from erat.errors import UserError, unknown_name
from erat.options import Number, Section
from erat.paths import user_path
from erat.registry import DATASETS
from orchestration.study import MOST_TRIALS
from orchestration.study.yaml_files import read_yaml

if TYPE_CHECKING:
    from optuna.distributions import FloatDistribution

FOLDER = Path(__file__).resolve().parents[2] / "search_spaces"
PAPER_UNITS = {"linf": 8 / 255, "l2": 0.5}  # the budgets customary for CIFAR-10, in which the paper states its own


class Parameter(Section):
    """A range of one dotted key."""

    low: Number
    high: Number
    log: bool = False
    unit: Literal["linf", "l2"] | None = Field(None, description="scale by the data set's customary budget")

    @model_validator(mode="after")
    def _ordered(self) -> Parameter:
        if not self.low < self.high:
            raise UserError(f"low must be below high, got low {self.low:g} and high {self.high:g}")
        if self.low < 0:
            raise UserError(f"low must be 0 or more, got {self.low}")
        if self.log and self.low == 0:
            raise UserError("low must be above 0 where log is true, got 0")
        return self


class SearchSpace(Section):
    """What a sweep tries.

    Attributes:
        parameters: dotted key -> range for Optuna's proposals; none: a list of runs, its baselines, and no search.
        points: the paper's own settings, run first and never stopped early: they are its figure.
        proposals: how many of Optuna's follow by default.
        generation: proposals are made so many at a time, each batch knowing all trials before it and none of its own.
            That, not the speed of the machine, decides what is proposed and what is stopped.
        grace: share of the epochs before a proposal may be stopped early.
        baselines: overrides that are run beside the search for comparison.
    """

    name: str = Field(min_length=1, max_length=60, pattern=r"^\w[\w.-]*$")
    about: str
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    points: list[dict[str, Number]] = Field(default_factory=list)
    proposals: int = Field(2, ge=0, le=MOST_TRIALS)
    generation: int = Field(2, ge=1, le=MOST_TRIALS)
    grace: Number = Field(0.5, ge=0, le=1)
    baselines: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _known_keys(self) -> SearchSpace:
        for key in self.parameters:
            if field_of(key, "erat") is None:
                raise unknown_key(key, all_keys())
        if not self.parameters and not (self.baselines and self.proposals == 0):
            raise UserError("parameters must name what is searched; without any, give baselines and proposals: 0")
        for entry in self.baselines:
            for key in entry:
                if field_of(key, "erat") is None:
                    raise unknown_key(key, all_keys())
        for point in self.points:
            if point.keys() != self.parameters.keys():
                raise UserError(f"a point must give {', '.join(self.parameters)}; got {', '.join(point)}")
        return self

    @property
    def columns(self) -> list[str]:
        """The dotted keys that tell the trials apart: those searched, or in a list of runs those that it sets."""
        return list(self.parameters) or list(dict.fromkeys(key for entry in self.baselines for key in entry))

    def scale(self, data_name: str) -> dict[str, float]:
        """Dotted key -> factor from the paper's units to this data set's."""
        epsilon = DATASETS.facts(data_name).epsilon
        return {
            key: epsilon[parameter.unit] / PAPER_UNITS[parameter.unit] if parameter.unit else 1.0
            for key, parameter in self.parameters.items()
        }

    def distributions(self, data_name: str) -> dict[str, FloatDistribution]:
        """Optuna's view of the ranges."""
        from optuna.distributions import FloatDistribution  # here: whoever only reads studies need not load it

        return {
            key: FloatDistribution(low, high, log=self.parameters[key].log)
            for key, (low, high) in self._ranges(data_name).items()
        }

    def _ranges(self, data_name: str) -> dict[str, tuple[float, float]]:
        factors = self.scale(data_name)
        return {
            key: (ten_digits(parameter.low * factors[key]), ten_digits(parameter.high * factors[key]))
            for key, parameter in self.parameters.items()
        }

    def scaled_points(self, data_name: str) -> list[dict[str, float]]:
        """The paper's points in this data set's units."""
        factors = self.scale(data_name)
        return [
            {key: value if factors[key] == 1 else ten_digits(value * factors[key]) for key, value in point.items()}
            for point in self.points
        ]

    def examples(self, data_name: str) -> list[dict[str, float]]:
        """What a sweep may try: the points, both ends of the ranges, and a number between them that is not round."""
        if not self.parameters:
            return []
        ranges = self._ranges(data_name).items()
        between = [{key: low + share * (high - low) for key, (low, high) in ranges} for share in (0.0, 0.382, 1.0)]
        return [*self.scaled_points(data_name), *between]


def ten_digits(value: float) -> float:
    """Ten significant digits: enough for any budget, few enough to read and to paste."""
    return float(f"{value:.10g}")


def load_space(name: str) -> SearchSpace:
    """A space by name (from search_spaces/) or by path to a YAML file.

    Raises:
        UserError: no such space, broken YAML, an unknown key or a bad range.
    """
    path = named_file(name, FOLDER, "space", "--space")
    return parse_space(read_yaml(path), str(path))


def named_file(name: str, folder: Path, what: str, option: str) -> Path:
    """Return the YAML file that comes with the project under this name, or that lies at this path.

    Raises:
        UserError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        path = user_path(name, option)
        if not path.exists():
            raise UserError(f"{option}: the file {name} does not exist")
        return path
    known = sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "base")
    if name not in known:
        raise unknown_name(what, name, known)
    return folder / f"{name}.yaml"


def parse_space(content: Any, where: str) -> SearchSpace:
    """A space from what its YAML says.

    Raises:
        UserError: as `load_space`.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must hold a mapping, got {type(content).__name__}")
    for key in content:
        if key not in SearchSpace.model_fields:
            raise UserError(f"{where}: {unknown_name('key', str(key), SearchSpace.model_fields)}")
    try:
        return SearchSpace.model_validate(dict(content))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        reason = first_error(error)
        raise UserError(f"{where}: {reason if reason.startswith(place) else f'{place}: {reason}'}") from error
