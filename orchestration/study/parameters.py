"""Parameters of a search space: how one dotted key is searched.

A parameter is a range of numbers, a range of integers, or a list of choices, and may have conditions on other keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_serializer, model_validator

from erat.config import first_error
from erat.errors import UserError, shown
from erat.options import Number, Section
from orchestration.study.overrides import as_key

if TYPE_CHECKING:  # Optuna takes long to import, and only the commands that search need it
    from optuna.distributions import BaseDistribution

MOST_CHOICES = 1000
MOST_STEPS = 100_000  # of a range of numbers
MOST_WHOLE = 10**9
_NUMBER: TypeAdapter[float] = TypeAdapter(Number)


class Parameter(Section):
    """How one dotted key is searched.

    Attributes:
        when: the conditions: other dotted key -> some of its values. The parameter's own key is searched in trials in
            which each of these keys has one of the values given for it, and keeps its fixed value in all other trials.
            If empty, it is searched in every trial.
    """

    when: dict[str, list[Any]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, handler: Any) -> dict[str, Any]:
        """Leave out an empty `when` and a `step` of None: spaces from before these existed keep their identity."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if (key, value) not in (("when", {}), ("step", None))}

    def distribution(self, factor: float) -> BaseDistribution:
        """Return Optuna's distribution, scaled by `factor` from the paper's units to those of the data set."""
        raise NotImplementedError

    def samples(self, factor: float) -> list[Any]:
        """Return a few values that a trial may have, with the extremes among them, scaled as by `distribution`."""
        raise NotImplementedError

    def values(self, factor: float) -> Sequence[Any] | None:
        """Return all values that a trial may have, scaled as by `distribution`; None if they cannot be counted."""
        raise NotImplementedError

    def read(self, key: str, value: Any) -> Any:
        """Convert the value of `key` in a point of the YAML file to the configuration's type.

        Raises:
            UserError: The value is not of that type, or is none of the choices.
        """
        raise NotImplementedError

    def possible(self, key: str, values: Sequence[Any]) -> None:
        """Check that each of the values, which a condition on `key` names, can occur in a trial.

        Raises:
            UserError: A value cannot occur, or the parameter is a range of numbers; the message says what is allowed.
        """
        raise UserError(f"{key} must have choices or be a range of whole numbers to be a condition")


class FloatParameter(Parameter):
    """A range of real numbers.

    Attributes:
        low, high: ends of the range, with 0 <= low < high; with a step, high must be low plus a multiple of it.
        step: distance of two neighbouring values; None: any value of the range.
        log: whether values are drawn on a logarithmic scale, for which low must be above 0 and step None.
        unit: the norm whose budgets the range is given in, "linf" or "l2": the range is scaled by the ratio of the
            data set's customary budget to CIFAR-10's. None: the range is not scaled.
    """

    low: Number
    high: Number
    step: Number | None = Field(None, gt=0)
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
        if self.step is not None:
            self._divided(self.step)
        return self

    def _divided(self, step: float) -> None:
        if self.log:
            raise UserError(f"step must not be given where log is true, got {step:g}; choices can be any values")
        steps = (self.high - self.low) / step
        if steps > MOST_STEPS:
            raise UserError(f"step must make at most {MOST_STEPS} steps of the range, got {step:g}")
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
            last = self.low + max(1, int(steps)) * step
            raise UserError(
                f"high must be low plus a multiple of step ({step:g}), for example {last:g}, got {self.high:g}"
            )

    def distribution(self, factor: float) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        low, high = ten_digits(self.low * factor), ten_digits(self.high * factor)
        if self.step is None:
            return FloatDistribution(low, high, log=self.log)
        # Optuna counts in decimal places, and lowers a `high` that is not reached exactly.
        step = ten_digits(self.step * factor)
        exact = Decimal(str(low)) + self._steps * Decimal(str(step))
        return FloatDistribution(low, float(exact), step=step)

    @property
    def _steps(self) -> int:
        return round((self.high - self.low) / self.step) if self.step is not None else 0

    def samples(self, factor: float) -> list[Any]:
        """Return both ends of the range, and a number between them with many digits."""
        if (values := self.values(factor)) is not None:
            return [values[0], values[len(values) // 2], values[-1]]
        low, high = ten_digits(self.low * factor), ten_digits(self.high * factor)
        return [low + share * (high - low) for share in (0.0, 0.382, 1.0)]

    def values(self, factor: float) -> Sequence[float] | None:
        if self.step is None:
            return None
        low, step = ten_digits(self.low * factor), ten_digits(self.step * factor)
        return [ten_digits(low + place * step) for place in range(self._steps + 1)]

    def read(self, key: str, value: Any) -> float:
        try:
            return _NUMBER.validate_python(value)
        except ValidationError as error:
            raise UserError(first_error(error).removeprefix(": ")) from error


class IntParameter(Parameter):
    """A range of integers, both ends included.

    Attributes:
        low, high: ends of the range, with 0 <= low < high <= 10**9; high must be low plus a multiple of step.
        step: distance of two neighbouring values.
        log: whether values are drawn on a logarithmic scale, for which low must be above 0 and step must be 1.
    """

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
        """Return both ends of the range, and the value in its middle."""
        return [self.low, self.low + (self.high - self.low) // self.step // 2 * self.step, self.high]

    def values(self, factor: float) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

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
    """A list of values without an order, of which each trial has one.

    Attributes:
        choices: the values, 2 to 1,000, all different.
    """

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

    def values(self, factor: float) -> Sequence[Any]:
        return self.choices

    def read(self, key: str, value: Any) -> Any:
        value = as_key(key, value)
        self.possible(key, [value])
        return value

    def possible(self, key: str, values: Sequence[Any]) -> None:
        for value in values:
            if value not in self.choices:
                raise UserError(f"{key} must be one of {', '.join(map(str, self.choices))}, got {shown(value)}")


def ten_digits(value: float) -> float:
    """Round to ten significant digits: enough for any budget, and few enough to read and to copy."""
    return float(f"{value:.10g}")


def read_parameter(key: str, content: Any) -> Parameter:
    """Return the parameter that a search space's YAML file describes.

    Args:
        key: dotted key that the parameter searches.
        content: what the file has for this key.

    Raises:
        UserError: The content does not describe a valid parameter. The message names the place in the file, what is
            wrong, the value and what is allowed.
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
    """Read the conditions of a parameter: dotted key -> values, converted to the key's type.

    In the file, a single value may be given without a list.
    """
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
    """Return `read(key, value)`, and put `place` in front of the message of any `UserError` that it raises."""
    try:
        return read(key, value)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
