"""The samplers and pruners by name. An entry is imported when it is first used, so that listing names costs nothing."""

from __future__ import annotations

from typing import Any

from erat.registry import Registry
from orchestration.study.abilities import ANY, Abilities


class Samplers(Registry[Any]):
    """Samplers by name."""

    def abilities(self, name: str) -> Abilities:
        """Return what a sampler can do: its `abilities`, or if it says nothing, anything. Raises as `__getitem__`."""
        found: Abilities = self._known(name, lambda sampler: getattr(sampler, "abilities", ANY))
        return found


class Pruners(Registry[Any]):
    """Pruners by name."""

    def settings(self, name: str) -> tuple[str, ...] | None:
        """Return the settings of a space that a pruner reads, its `settings`. Raises as `__getitem__`."""
        found: tuple[str, ...] | None = self._known(name, lambda pruner: pruner.settings)
        return found


SAMPLERS: Samplers = Samplers(
    "sampler",
    {
        "tpe": ("orchestration.search.samplers:TPE", "orchestration.study.abilities:ANY"),
        "gp": ("orchestration.search.samplers:GP", "orchestration.study.abilities:GP"),
        "cmaes": ("orchestration.search.samplers:CMAES", "orchestration.study.abilities:CMAES"),
        "qmc": ("orchestration.search.samplers:QMC", "orchestration.study.abilities:QMC"),
        "random": ("orchestration.search.samplers:Random", "orchestration.study.abilities:RANDOM"),
        "grid": ("orchestration.search.grid:Grid", "orchestration.study.abilities:GRID"),
    },
)

PRUNERS: Pruners = Pruners(
    "pruner",
    {
        "median": ("orchestration.search.pruners:Median", "orchestration.study.abilities:MEDIAN"),
        "halving": ("orchestration.search.pruners:Halving", "orchestration.study.abilities:HALVING"),
        "none": ("orchestration.search.pruners:Never", "orchestration.study.abilities:NEVER"),
    },
)
