"""What a search's sampler and pruner can do with a space, and the points of a grid. Nothing here needs Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from erat.errors import UserError
from orchestration.study import MOST_TRIALS
from orchestration.study.abilities import Abilities
from orchestration.study.parameters import ChoiceParameter
from orchestration.study.registries import SAMPLERS
from orchestration.study.spaces import Confirmation

if TYPE_CHECKING:
    from orchestration.study.spaces import SearchSpace


def check(space: SearchSpace) -> None:
    """Check that the sampler and the pruner of a search can do what the space asks for.

    Args:
        space: a space with parameters, whose conditions on other keys are settled.

    Raises:
        UserError: One cannot; the message says what the space has and what would do.
    """
    if (lack := _lack(space, SAMPLERS.abilities(space.sampler))) is not None:
        able = [name for name in sorted(SAMPLERS.own) if _lack(space, SAMPLERS.abilities(name)) is None]
        raise UserError(f"sampler {space.sampler} {lack}; this space can be searched by {', '.join(able)}")
    if len(space.objective) > 1 and space.pruner != "none":
        raise UserError(
            f"pruner must be none where the objective is {' and '.join(space.objective)}, got {space.pruner}: "
            "a pruner compares accuracies alone"
        )

    if isinstance(space.confirm, Confirmation) and "train.seed" in space.parameters:
        raise UserError("confirm repeats trials with other values of train.seed, which this space searches: use none")
    if space.rungs != "auto" and space.reads("rungs") is False:
        warnings.warn(f"the pruner {space.pruner} makes no use of rungs, got {space.rungs}", stacklevel=3)
    if space.reads("rungs") and "train.epochs" in space.parameters:
        raise UserError(f"pruner {space.pruner} needs trials of as many epochs; this space searches train.epochs")


def _lack(space: SearchSpace, able: Abilities) -> str | None:
    """Return what the space has that a sampler with these abilities cannot do; None if it can do all."""
    parameters = space.parameters
    ranges = [key for key, parameter in parameters.items() if not isinstance(parameter, ChoiceParameter)]
    if len(ranges) < able.ranges:
        return f"needs at least {able.ranges} ranges of numbers, got {', '.join(ranges) or 'none'}"
    conditional = [key for key, parameter in parameters.items() if parameter.when]
    if conditional and not able.conditions:
        return f"cannot search a key that only some trials have, got {conditional[0]} (when)"
    if len(space.objective) > able.objectives:
        return f"can optimise {able.objectives} objective, got {' and '.join(space.objective)}"
    if able.countable:
        endless = [key for key, parameter in parameters.items() if parameter.values(1.0) is None]
        if endless:
            return f"needs choices, whole numbers or a range with step, got the range {endless[0]} without step"
    return None


def grid_size(space: SearchSpace, data_name: str) -> int:
    """Return the number of trials of a grid search: the points, and the combinations that are none of the points.

    Args:
        space: a space that `check` let pass, with the sampler "grid".
        data_name: name of the data set.

    Raises:
        UserError: There are more than a study may have.
    """
    factors, points = space.scale(data_name), space.scaled_points(data_name)
    given = [alike(point) for point in points]
    values = {key: parameter.values(factors[key]) or [] for key, parameter in space.parameters.items()}
    size = len(points)
    for found in combinations(values, space.active):
        size += alike(found) not in given
        if size > MOST_TRIALS:
            raise UserError(f"a grid must have at most {MOST_TRIALS} trials; the space {space.name} has more")
    return size


def alike(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that are equal for a combination of the grid and a point that was written in another way."""
    return {key: float(f"{value:.8g}") if isinstance(value, float) else value for key, value in params.items()}


def always(key: str, values: Mapping[str, Any]) -> bool:
    """Return that a key is searched whatever the values of the others are: a space without conditions."""
    return True


def combinations(
    values: Mapping[str, Sequence[Any]], active: Callable[[str, Mapping[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
    """Yield all combinations of values, dotted key -> value, the last key changing fastest.

    Args:
        values: dotted key -> its values; a key comes after those that it depends on.
        active: returns whether a key is searched in a trial whose earlier keys have these values.
    """
    keys = list(values)

    def extend(made: dict[str, Any], place: int) -> Iterator[dict[str, Any]]:
        if place == len(keys):
            yield made
        elif not active(keys[place], made):
            yield from extend(made, place + 1)
        else:
            for value in values[keys[place]]:
                yield from extend(made | {keys[place]: value}, place + 1)

    return extend({}, 0)
