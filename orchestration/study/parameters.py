"""What a search space says of one dotted key: a range of numbers, a range of whole numbers, or choices; and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_serializer, model_validator

from erat.config import first_error
from erat.errors import UserError, shown
from erat.options import Number, Section
from orchestration.study.overrides import as_key

if TYPE_CHECKING:  # Optuna loads slowly: only verbs that search pay
    from optuna.distributions import BaseDistribution

MOST_CHOICES = 1000
MOST_WHOLE = 10**9
_NUMBER: TypeAdapter[float] = TypeAdapter(Number)


class Parameter(Section):
    """How one dotted key is searched.

    Attributes:
        when: dotted key -> values of it. The key is searched in trials in which each of these keys has one of its
            values, and keeps its fixed value in the others. Empty: in all.
    """

    when: dict[str, list[Any]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty_conditions(self, handler: Any) -> dict[str, Any]:
        """Leave `when` out where there is none, so that spaces of before there was one keep their identity."""
        content: dict[str, Any] = handler(self)
        if not self.when:
            content.pop("when")
        return content

    def distribution(self, factor: float) -> BaseDistribution:
        """Return Optuna's view of it. `factor` leads from the paper's units to those of the data set."""
        raise NotImplementedError

    def samples(self, factor: float) -> list[Any]:
        """Return a few values that a trial may have, the extremes among them."""
        raise NotImplementedError

    def read(self, key: str, value: Any) -> Any:
        """Return the value of `key` in a point of the file as the configuration has it.

        Raises:
            UserError: it is no such value.
        """
        raise NotImplementedError

    def possible(self, key: str, values: Sequence[Any]) -> None:
        """Refuse values of `key` that a condition names and no trial has.

        Raises:
            UserError: there is one; what there is.
        """
        raise UserError(f"{key} must have choices or be a range of whole numbers to be a condition")


class FloatParameter(Parameter):
    """A range of numbers."""

    low: Number
    high: Number
    log: bool = False
    unit: Literal["linf", "l2"] | None = Field(None, description="scale by the data set's customary budget")

    @model_validator(mode="after")
    def _ordered(self) -> FloatParameter:
        if not self.low < self.high:
            raise UserError(f"low must be below high, got low {self.low:g} and high {self.high:g}")
        if self.low < 0:
            raise UserError(f"low must be 0 or more, got {self.low}")
        if self.log and self.low == 0:
            raise UserError("low must be above 0 where log is true, got 0")
        return self

    def distribution(self, factor: float) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(ten_digits(self.low * factor), ten_digits(self.high * factor), log=self.log)

    def samples(self, factor: float) -> list[Any]:
        """Return both ends of the range, and a number between them that is not round."""
        low, high = ten_digits(self.low * factor), ten_digits(self.high * factor)
        return [low + share * (high - low) for share in (0.0, 0.382, 1.0)]

    def read(self, key: str, value: Any) -> float:
        try:
            return _NUMBER.validate_python(value)
        except ValidationError as error:
            raise UserError(first_error(error).removeprefix(": ")) from error


class IntParameter(Parameter):
    """A range of whole numbers, both ends included."""

    type: Literal["int"]
    low: int = Field(le=MOST_WHOLE)
    high: int = Field(le=MOST_WHOLE)
    step: int = Field(1, ge=1, le=MOST_WHOLE)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntParameter:
        if not self.low < self.high:
            raise UserError(f"low must be below high, got low {self.low} and high {self.high}")
        if self.low < 0:
            raise UserError(f"low must be 0 or more, got {self.low}")
        if self.log and self.low == 0:
            raise UserError("low must be above 0 where log is true, got 0")
        if self.log and self.step > 1:
            raise UserError(f"step must be 1 where log is true, got {self.step}")
        if (self.high - self.low) % self.step:
            last = self.high - (self.high - self.low) % self.step
            raise UserError(
                f"high must be low plus a multiple of step ({self.step}), for example {last}, got {self.high}"
            )
        return self

    def distribution(self, factor: float) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def samples(self, factor: float) -> list[Any]:
        """Return both ends of the range, and the whole number in its middle."""
        return [self.low, self.low + (self.high - self.low) // self.step // 2 * self.step, self.high]

    def read(self, key: str, value: Any) -> int:
        whole = (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
        if not whole:
            raise UserError(f"it must be a whole number, got {shown(value)}")
        return int(value)

    def possible(self, key: str, values: Sequence[Any]) -> None:
        for value in values:
            if not (self.low <= value <= self.high and (value - self.low) % self.step == 0):
                steps = f" in steps of {self.step}" if self.step > 1 else ""
                raise UserError(f"{key} must be a whole number in [{self.low}, {self.high}]{steps}, got {shown(value)}")


class ChoiceParameter(Parameter):
    """One of several values, without an order."""

    choices: list[Any] = Field(min_length=2, max_length=MOST_CHOICES)

    @model_validator(mode="after")
    def _distinct(self) -> ChoiceParameter:
        for place, choice in enumerate(self.choices):
            if choice in self.choices[:place]:
                raise UserError(f"choices must differ, got {shown(choice)} twice")
        return self

    def distribution(self, factor: float) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)

    def samples(self, factor: float) -> list[Any]:
        return list(self.choices)

    def read(self, key: str, value: Any) -> Any:
        value = as_key(key, value)
        self.possible(key, [value])
        return value

    def possible(self, key: str, values: Sequence[Any]) -> None:
        for value in values:
            if value not in self.choices:
                raise UserError(f"{key} must be one of {', '.join(map(str, self.choices))}, got {shown(value)}")


def ten_digits(value: float) -> float:
    """Ten significant digits: enough for any budget, few enough to read and to paste."""
    return float(f"{value:.10g}")


def read_parameter(key: str, content: Any) -> Parameter:
    """Return the parameter that a space's file describes.

    Raises:
        UserError: it is none; where, what, got and allowed.
    """
    if isinstance(content, Parameter):
        return content
    place = f"parameters.{key}"
    if not isinstance(content, Mapping):
        raise UserError(f"{place} must be a range {{low, high}} or {{choices: [...]}}, got {shown(content)}")
    kinds: dict[str, type[Parameter]] = {"float": FloatParameter, "int": IntParameter}
    values = dict(content)
    kind: type[Parameter] = ChoiceParameter
    if "choices" not in values:
        name = values.get("type", "float")
        if not isinstance(name, str) or name not in kinds:
            raise UserError(f"{place}.type must be float or int, got {shown(name)}")
        kind = kinds[name]
        if kind is FloatParameter:
            values.pop("type", None)
    try:
        if "when" in values:
            values["when"] = _conditions(values["when"])
        if isinstance(values.get("choices"), list):
            values["choices"] = [_placed("choices", as_key, key, choice) for choice in values["choices"]]
        return kind.model_validate(values)
    except ValidationError as error:
        dot = "." if error.errors()[0]["loc"] else ": "
        raise UserError(f"{place}{dot}{first_error(error)}") from error
    except UserError as error:
        raise UserError(f"{place}.{error}") from error


def _conditions(content: Any) -> dict[str, list[Any]]:
    """Return dotted key -> values, each as the configuration has it; one value may stand without a list."""
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"when must map dotted keys to values, got {shown(content)}")
    found = {}
    for key, given in content.items():
        values = given if isinstance(given, list) else [given]
        if not values:
            raise UserError(f"when: {key} must have at least one value, got none")
        found[str(key)] = [_placed("when", as_key, str(key), value) for value in values]
    return found


def _placed(place: str, read: Any, key: str, value: Any) -> Any:
    """Call `read`, and say of what it refuses where it stands."""
    try:
        return read(key, value)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
