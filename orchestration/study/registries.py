"""The samplers and pruners by name. An entry is imported when it is first used, so that listing names costs nothing."""

from __future__ import annotations

from typing import Any

from erat.registry import Registry

SAMPLERS: Registry[Any] = Registry(
    "sampler",
    {
        "tpe": "orchestration.search.samplers:TPE",
        "gp": "orchestration.search.samplers:GP",
        "cmaes": "orchestration.search.samplers:CMAES",
        "qmc": "orchestration.search.samplers:QMC",
        "random": "orchestration.search.samplers:Random",
        "grid": "orchestration.search.samplers:Grid",
    },
)

PRUNERS: Registry[Any] = Registry(
    "pruner",
    {
        "median": "orchestration.search.pruners:Median",
        "halving": "orchestration.search.pruners:Halving",
        "none": "orchestration.search.pruners:Never",
    },
)
