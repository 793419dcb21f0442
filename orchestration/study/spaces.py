"""Search spaces: YAML files that say which keys are searched, the paper's own points, and how many proposals follow."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from erat.config import RunConfig, first_error
from erat.errors import UserError, shown, unknown_name
from erat.keys import all_keys, unknown_key
from erat.options import MOST_EPOCHS, Number, Section
from erat.registry import DATASETS
from orchestration.study import MOST_TRIALS
from orchestration.study.named import FOLDER, named_file
from orchestration.study.parameters import ChoiceParameter, FloatParameter, Parameter, read_parameter, ten_digits
from orchestration.study.registries import PRUNERS, SAMPLERS
from orchestration.study.rungs import doubt, rungs_of, settled_epoch
from orchestration.study.yaml_files import read_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

PAPER_UNITS = {"linf": 8 / 255, "l2": 0.5}  # customary budgets for CIFAR-10, to which the paper's values relate


# What is recorded of the search settings of a list of runs, which has no search. These are the defaults of the first
# version, so that the digest of a list, from which its default name is made, stays what it was.
_NO_SEARCH = {"proposals": 0, "generation": 2, "grace": 0.5}

Objective = Literal["val_accuracy", "cost"]


class Confirmation(Section):
    """How the best trials of a search are confirmed.

    Attributes:
        top: number of the best trials that are trained again.
        seeds: number of seeds of each of them in all, that of the search among them.
    """

    top: int = Field(3, ge=1, le=1000)
    seeds: int = Field(3, ge=2, le=99)


class SearchSpace(Section):
    """What a study tries.

    Attributes:
        name: name of the space.
        about: one line that describes it.
        parameters: dotted key -> range or choices for Optuna's proposals. A parameter with conditions must come after
            those that it depends on. If empty, there is no search, and the study consists of `baselines`.
        points: the paper's own settings. They run first and are never stopped early, because the paper's figure
            consists of them.
        proposals: default number of Optuna's proposals, which follow the points.
        sampler: name of what makes the proposals.
        pruner: name of what stops proposals early.
        window: trial n of the search is proposed from, and stopped against, the trials before n - `window` alone, so
            that this number, not the speed of the machine, decides what is tried. "auto" becomes twice the number of
            trials that run at a time when the study begins, but at most the number of proposals. If the study is
            extended with "auto", the further trials have a window of their own, found in the same way.
        startup: number of results before which proposals are drawn at random. "auto": the number of points if they are
            at least twice as many as the searched keys, and otherwise 10.
        grace: fraction of the epochs, in [0, 1], before which the pruner "median" stops no proposal.
        rungs: epochs at which a pruner such as "halving" compares the trials of a block; ascending. "auto": those that
            follow from the schedule.
        block: number of successive proposals that "halving" compares with each other.
        confirm: how the best trials are confirmed with further seeds. "auto": top 3 with 3 seeds with the preset
            "paper", and "none", not at all, with the others.
        objective: what the search optimises: validation accuracy, or that and the cost, in seconds of an epoch.
        baselines: overrides of each listed run. The listed runs are for comparison with the search, or, without a
            search, are the whole study.
    """

    name: str = Field(min_length=1, max_length=60, pattern=r"^\w[\w.-]*$")
    about: str
    parameters: dict[str, SerializeAsAny[Parameter]] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(default_factory=list)
    proposals: int = Field(2, ge=0, le=MOST_TRIALS)
    sampler: str = "tpe"
    pruner: str = "median"
    window: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_TRIALS)] = "auto"
    startup: Literal["auto"] | Annotated[int, Field(ge=0, le=MOST_TRIALS)] = "auto"
    grace: Number = Field(0.5, ge=0, le=1)
    rungs: Literal["auto"] | list[Annotated[int, Field(ge=1, le=MOST_EPOCHS)]] = "auto"
    block: int = Field(24, ge=2, le=MOST_TRIALS)
    confirm: Literal["auto", "none"] | Confirmation = "auto"
    objective: list[Objective] = Field(["val_accuracy"], min_length=1, max_length=2)
    baselines: list[dict[str, Any]] = Field(default_factory=list)

    @field_validator("parameters", mode="before")
    @classmethod
    def _kinds(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        allowed = all_keys()
        for key in content:
            if key not in allowed:
                raise unknown_key(str(key), allowed)
        return {key: read_parameter(key, entry) for key, entry in content.items()}

    @field_validator("points")
    @classmethod
    def _typed(cls, points: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
        """Convert each value of the points to the type of its parameter."""
        parameters: Mapping[str, Parameter] = info.data.get("parameters", {})
        return [
            {
                key: _read_point(f"points.{place}.{key}", parameters[key], key, value) if key in parameters else value
                for key, value in point.items()
            }
            for place, point in enumerate(points)
        ]

    @field_validator("baselines", mode="wrap")
    @classmethod
    def _as_they_are(cls, runs: Any, handler: ValidatorFunctionWrapHandler) -> list[dict[str, Any]]:
        """Return the listed runs without a copy of each, because a ledger may have 100,000 of them."""
        sound = type(runs) is list and all(type(run) is dict and all(type(key) is str for key in run) for run in runs)
        made: list[dict[str, Any]] = list(runs) if sound else handler(runs)
        return made

    @field_validator("sampler", "pruner")
    @classmethod
    def _registered(cls, name: str, info: ValidationInfo) -> str:
        (SAMPLERS if info.field_name == "sampler" else PRUNERS).require(name)
        return name

    @field_validator("window", "startup", mode="before")
    @classmethod
    def _auto_or_number(cls, value: Any, info: ValidationInfo) -> Any:
        least = 1 if info.field_name == "window" else 0
        if value != "auto" and (type(value) is not int or not least <= value <= MOST_TRIALS):
            allowed = f"auto or a whole number in [{least}, {MOST_TRIALS}]"
            raise UserError(f"{info.field_name} must be {allowed}, got {shown(value)}")
        return value

    @field_validator("rungs", mode="before")
    @classmethod
    def _ascending(cls, rungs: Any) -> Any:
        if rungs == "auto":
            return rungs
        epochs = isinstance(rungs, list | tuple) and all(type(epoch) is int for epoch in rungs)
        if not epochs or any(a >= b for a, b in itertools.pairwise([0, *rungs, MOST_EPOCHS + 1])):
            allowed = f"auto or ascending epochs in [1, {MOST_EPOCHS}], such as [30, 60]"
            raise UserError(f"rungs must be {allowed}, got {shown(rungs)}")
        return rungs

    @field_validator("confirm", mode="before")
    @classmethod
    def _numbers(cls, confirm: Any) -> Any:
        if confirm in ("auto", "none") or isinstance(confirm, Confirmation):
            return confirm
        if not isinstance(confirm, Mapping):
            raise UserError(
                f"confirm must be none, auto, or a mapping such as {{top: 3, seeds: 3}}, got {shown(confirm)}"
            )
        try:
            return Confirmation.model_validate(dict(confirm))
        except ValidationError as error:
            raise UserError(first_error(error, "confirm")) from error

    @field_validator("objective")
    @classmethod
    def _accuracy_first(cls, objective: list[Objective]) -> list[Objective]:
        if objective not in (["val_accuracy"], ["val_accuracy", "cost"]):
            raise UserError(f"objective must be [val_accuracy] or [val_accuracy, cost], got {objective}")
        return objective

    @model_serializer(mode="wrap")
    def _content(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.parameters:
            return content
        kept = ("name", "about", "parameters", "points", "baselines")
        return {key: content[key] for key in kept} | _NO_SEARCH

    @model_validator(mode="after")
    def _known_keys(self) -> SearchSpace:
        allowed = all_keys()
        if not self.parameters and not (self.baselines and self.proposals == 0):
            raise UserError("parameters must name what is searched; without any, give baselines and proposals: 0")
        known = frozenset(allowed)
        for entry in self.baselines:
            if not known.issuperset(entry):
                raise unknown_key(next(key for key in entry if key not in known), allowed)
        for key in self.parameters:
            self._check_conditions(key)
        for point in self.points:
            needed = [key for key in self.parameters if self._counts(key, point, elsewhere=False)]
            taken = [key for key in self.parameters if self._counts(key, point, elsewhere=True)]
            if not set(needed) <= point.keys() <= set(taken):
                raise UserError(f"a point must give {', '.join(needed)}; got {', '.join(point)}")
        return self

    def _check_conditions(self, key: str) -> None:
        """Raise `UserError` if a condition of `key` depends on a later parameter, or on a value that cannot occur."""
        before = list(self.parameters)[: list(self.parameters).index(key)]
        for other, values in self.parameters[key].when.items():
            place = f"parameters.{key}.when"
            if other == key or (other in self.parameters and other not in before):
                raise UserError(f"{place}: {other} must stand before {key} among the parameters")
            if other in self.parameters:
                try:
                    self.parameters[other].possible(other, values)
                except UserError as error:
                    raise UserError(f"{place}: {error}") from error

    def _counts(self, key: str, point: Mapping[str, Any], *, elsewhere: bool) -> bool:
        """Return whether a key is searched in a trial with these values.

        Args:
            key: dotted key of a parameter.
            point: dotted key -> value in the trial.
            elsewhere: whether conditions on keys that are not searched are taken to hold.
        """
        return all(
            point.get(other, ...) in values and self._counts(other, point, elsewhere=elsewhere)
            if other in self.parameters
            else elsewhere
            for other, values in self.parameters[key].when.items()
        )

    def active(self, key: str, values: Mapping[str, Any]) -> bool:
        """Return whether this key is searched in a trial whose earlier keys have these values.

        This is only correct for a space that `settled` returned.
        """
        return self._counts(key, values, elsewhere=False)

    def settled(self, fixed: Mapping[str, Any]) -> SearchSpace:
        """Return the space after all conditions on keys that are not searched have been decided.

        A parameter whose conditions do not hold is removed, and the points that become equal are merged.

        Args:
            fixed: dotted key -> value of the configuration that all trials start from.

        Raises:
            UserError: No parameter is left to search.
        """
        kept: dict[str, Parameter] = {}
        for key, parameter in self.parameters.items():
            inside = {other: values for other, values in parameter.when.items() if other in self.parameters}
            outside = parameter.when.keys() - inside.keys()
            if all(fixed.get(other) in parameter.when[other] for other in outside) and inside.keys() <= kept.keys():
                kept[key] = parameter.model_copy(update={"when": inside}) if outside else parameter
        if kept == self.parameters:
            return self
        if not kept:
            conditions = {other: fixed.get(other) for each in self.parameters.values() for other in each.when}
            said = ", ".join(f"{other}={value}" for other, value in conditions.items() if other not in self.parameters)
            raise UserError(f"the space {self.name} searches nothing where {said}: no condition (when) holds")
        points = [{key: value for key, value in point.items() if key in kept} for point in self.points]
        distinct = {repr(point): point for point in points if point}
        try:
            return self.model_validate(dict(self) | {"parameters": kept, "points": list(distinct.values())})
        except ValidationError as error:
            raise UserError(f"the space {self.name}: {first_error(error)}") from error

    def scheduled(self, base: RunConfig, preset: str) -> SearchSpace:
        """Return the space with the values of `rungs` and `confirm` that "auto" stands for.

        Args:
            base: the configuration that all trials start from, whose schedule decides the rungs.
            preset: name of the preset; the paper's confirms the winners.

        A rung before warm-up and ramp are over is warned of, and so is a schedule that leaves no epoch for a rung.

        Raises:
            UserError: A rung lies beyond the last epoch.
        """
        update: dict[str, Any] = {}
        if self.confirm == "auto":
            update["confirm"] = Confirmation() if preset == "paper" and "train.seed" not in self.parameters else "none"
        if self.reads("rungs"):
            update["rungs"] = rungs = rungs_of(base) if self.rungs == "auto" else self.rungs
            if late := [rung for rung in rungs if rung >= base.train.epochs]:
                raise UserError(f"rungs must be below the last epoch, {base.train.epochs}, got {late[0]}")
            if (said := doubt(self.pruner, rungs, settled_epoch(base), base.train.epochs)) is not None:
                warnings.warn(said, stacklevel=2)
        return self.model_copy(update=update)

    def reads(self, setting: str) -> bool | None:
        """Return whether the pruner reads a setting, one of `abilities.PRUNING`; None if it does not say."""
        settings = PRUNERS.settings(self.pruner)
        return None if settings is None else setting in settings

    @property
    def columns(self) -> list[str]:
        """Return the dotted keys in which trials differ: those searched, or, without a search, those of the runs."""
        return list(self.parameters) or list(dict.fromkeys(key for entry in self.baselines for key in entry))

    def scale(self, data_name: str) -> dict[str, float]:
        """Return dotted key -> factor from the paper's units to those of the data set of this name."""
        epsilon = DATASETS.facts(data_name).epsilon
        units = {key: p.unit if isinstance(p, FloatParameter) else None for key, p in self.parameters.items()}
        return {key: epsilon[unit] / PAPER_UNITS[unit] if unit else 1.0 for key, unit in units.items()}

    def distributions(self, data_name: str) -> dict[str, BaseDistribution]:
        """Return dotted key -> Optuna's distribution in the data set's units, in the order of the parameters."""
        factors = self.scale(data_name)
        return {key: parameter.distribution(factors[key]) for key, parameter in self.parameters.items()}

    def scaled_points(self, data_name: str) -> list[dict[str, Any]]:
        """Return the paper's points in the units of the data set of this name."""
        factors = self.scale(data_name)
        return [
            {key: value if factors[key] == 1 else ten_digits(value * factors[key]) for key, value in point.items()}
            for point in self.points
        ]

    def examples(self, data_name: str) -> list[dict[str, Any]]:
        """Return trials that a study may make, so that they can be checked before it begins.

        They contain the points, the ends and the middle of every range, every choice and every conditional key.
        """
        if not self.parameters:
            return []
        factors = self.scale(data_name)
        samples = {key: parameter.samples(factors[key]) for key, parameter in self.parameters.items()}
        tried = [{key: values[place % len(values)] for key, values in samples.items()} for place in range(3)]
        for key, parameter in self.parameters.items():
            if parameter.when or len(samples[key]) > 3:
                tried += [tried[0] | self._demands(key) | {key: value} for value in samples[key]]
        found = [*self.scaled_points(data_name), *({k: v for k, v in t.items() if self.active(k, t)} for t in tried)]
        return list({repr(sorted(example.items())): example for example in found}.values())

    def _demands(self, key: str) -> dict[str, Any]:
        """Return values of other searched keys for which the conditions of this key hold."""
        demands: dict[str, Any] = {}
        for other, values in self.parameters[key].when.items():
            demands |= self._demands(other) | {other: values[0]}
        return demands

    def check(self, values: Mapping[str, Any]) -> None:
        """Check that the values of a trial from the ledger are still among the choices of the parameters.

        Raises:
            UserError: A value is none of the choices; the message names it.
        """
        for key, value in values.items():
            if isinstance(parameter := self.parameters.get(key), ChoiceParameter):
                parameter.possible(key, [value])


def _read_point(place: str, parameter: Parameter, key: str, value: Any) -> Any:
    try:
        return parameter.read(key, value)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def load_space(name: str) -> SearchSpace:
    """Return the search space of this name in search_spaces/, or the one in the YAML file at this path.

    Raises:
        UserError: There is no such space, or the file is not valid YAML, has an unknown key or has an invalid range.
    """
    path = named_file(name, FOLDER, "space", "--space")
    return parse_space(read_yaml(path), str(path))


def parse_space(content: Any, where: str) -> SearchSpace:
    """Return the search space that the content of a YAML file describes.

    Args:
        content: the content, as `read_yaml` returns it.
        where: the file's name for error messages.

    Raises:
        UserError: The content does not describe a valid search space.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must hold a mapping, got {type(content).__name__}")
    for key in content:
        if key == "generation":
            raise UserError(f"{where}: unknown key 'generation': a search has a window now (auto, or a number)")
        if key not in SearchSpace.model_fields:
            raise UserError(f"{where}: {unknown_name('key', str(key), SearchSpace.model_fields)}")
    try:
        return SearchSpace.model_validate(dict(content))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        reason = first_error(error)
        raise UserError(f"{where}: {reason if reason.startswith(place) else f'{place}: {reason}'}") from error
