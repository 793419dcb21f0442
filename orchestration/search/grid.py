"""The sampler that tries every combination of a space once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from erat.errors import UserError
from erat.seeding import derive
from orchestration.search.observations import Observation
from orchestration.study import abilities
from orchestration.study.abilities import Abilities
from orchestration.study.parameters import ten_digits
from orchestration.study.sampling import alike, always, combinations


class Grid:
    """Every combination of choices, whole numbers and steps once, in an order drawn from the seed.

    The order is mixed so that the first trials, and the trials of a block, are from the whole grid. Combinations that
    the points give are left out. Optuna's own grid is not used, because it draws among what is left, which depends on
    the clock.

    Args:
        distributions, seed, active: as for `OptunaSampler`. Every distribution must be countable; see `sampling.check`.
        startup, objective: without meaning for a grid.
    """

    abilities: ClassVar[Abilities] = abilities.GRID

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        *,
        seed: int,
        startup: int = 0,
        active: Callable[[str, Mapping[str, Any]], bool] = always,
        objective: Sequence[str] = ("val_accuracy",),
    ) -> None:
        every = list(combinations({key: _values(kind) for key, kind in distributions.items()}, active))
        order = sorted(range(len(every)), key=lambda place: derive(seed, "grid", place))
        self._left = [every[place] for place in order]
        self._proposed = 0

    def given(self, number: int, params: Mapping[str, Any]) -> None:
        """Leave these values out, which were given ahead."""
        given = alike(params)
        self._left = [each for each in self._left if alike(each) != given]

    def propose(self, number: int, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the next combination, or the values that are known.

        Raises:
            UserError: The grid has no further combination.
        """
        self._proposed += 1
        if known is not None:
            return dict(known)
        if self._proposed > len(self._left):
            raise UserError(f"the grid has {len(self._left)} trials beside the points, got {self._proposed}")
        return dict(self._left[self._proposed - 1])

    def tell(self, number: int, observation: Observation) -> None:
        """Take no account of a trial."""


def _values(distribution: BaseDistribution) -> list[Any]:
    """Return all values of a distribution that is countable, ascending, or in the order of the choices."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    assert step is not None, "`sampling.check` lets no other range pass"
    values = [low + place * step for place in range(round((high - low) / step) + 1)]
    return [ten_digits(value) if isinstance(distribution, FloatDistribution) else value for value in values]
