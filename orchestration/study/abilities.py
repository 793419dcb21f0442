"""What each sampler and pruner can do, so that a space can be checked without loading Optuna or NumPy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Abilities:
    """What a sampler can do.

    Attributes:
        ranges: the smallest number of ranges of numbers that it needs.
        conditions: whether it can search keys that only some trials have.
        objectives: the largest number of objectives.
        countable: whether it needs a finite number of values of each key.
        startup: whether it draws at random before it has `startup` results, a setting of the space.
    """

    ranges: int = 0
    conditions: bool = True
    objectives: int = 2
    countable: bool = False
    startup: bool = True


ANY = Abilities()
GP = Abilities(conditions=False)  # Optuna's process is over the keys that all trials have; the others would be random
CMAES = Abilities(ranges=2, conditions=False, objectives=1)  # its matrix has the ranges that all trials have
QMC = Abilities(conditions=False, startup=False)  # a sequence is in a fixed number of dimensions
GRID = Abilities(countable=True, startup=False)
RANDOM = Abilities(startup=False)

# The settings of a space that a pruner reads, out of these three.
PRUNING = ("grace", "rungs", "block")
MEDIAN = ("grace",)
HALVING = ("rungs", "block")
NEVER: tuple[str, ...] = ()
