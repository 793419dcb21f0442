"""Runs many trainings: searches and matrices of runs on Ray, tracked in MLflow, which resume after an interruption.

>>> from orchestration import Study
>>> study = Study.create(space="budgets", corruption__rate=0.4).run()
>>> study.results()[["number", *study.parameters, "final_test_accuracy"]]

Every name in `__all__` is public and described in docs/api.md. Importing the package loads nothing; a name is loaded
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erat.lazy import lazily

if TYPE_CHECKING:
    from orchestration.api import Study, load_study, study_names
    from orchestration.report.drawings import register_figure
    from orchestration.search.observations import Observation, Sampler
    from orchestration.search.pruners import Pruner
    from orchestration.search.registration import register_pruner, register_sampler
    from orchestration.storage.workspace import Workspace
    from orchestration.study.abilities import Abilities
    from orchestration.study.grids import GridSpec
    from orchestration.study.spaces import SearchSpace
    from orchestration.study.trial import Trial

__all__ = [
    "Abilities",
    "GridSpec",
    "Observation",
    "Pruner",
    "Sampler",
    "SearchSpace",
    "Study",
    "Trial",
    "Workspace",
    "load_study",
    "register_figure",
    "register_pruner",
    "register_sampler",
    "study_names",
]

_MODULES = {
    "orchestration.api": ("Study", "load_study", "study_names"),
    "orchestration.report.drawings": ("register_figure",),
    "orchestration.search.observations": ("Observation", "Sampler"),
    "orchestration.search.pruners": ("Pruner",),
    "orchestration.search.registration": ("register_pruner", "register_sampler"),
    "orchestration.storage.workspace": ("Workspace",),
    "orchestration.study.abilities": ("Abilities",),
    "orchestration.study.grids": ("GridSpec",),
    "orchestration.study.spaces": ("SearchSpace",),
    "orchestration.study.trial": ("Trial",),
}

if not TYPE_CHECKING:  # otherwise every misspelt name would pass for one of these
    __getattr__, __dir__ = lazily(__name__, _MODULES)
