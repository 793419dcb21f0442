"""Train image classifiers on corrupted images and labels: configurations, single runs, and user-defined parts.

>>> import erat
>>> config = erat.build("demo", {"corruption.data": "uhp", "defense.name": "erat"})
>>> result = erat.train(config, folder="my-run")

Every name in `__all__` is public and described in docs/api.md. Importing the package loads none of them; each name is
loaded when it is first used. The package `orchestration` handles studies of many runs, on one or many machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erat.lazy import lazily

if TYPE_CHECKING:
    from erat.classifier.estimator import ERATClassifier
    from erat.config import RunConfig, build, load_config
    from erat.corruption.base import Craft, DataCorruption
    from erat.corruption.kinds import CorruptionKind
    from erat.data.facts import SourceFacts
    from erat.data.types import CorruptedSet, ImageSet, ImageSource
    from erat.defenses.base import (
        Batch,
        Clock,
        Defense,
        EpochPlan,
        LossTerms,
        Phase,
        Task,
        TrainingData,
        Update,
    )
    from erat.engine.report import EpochReport
    from erat.errors import TrainingFailedError, UserError
    from erat.options import CorruptionOptions, DataConfig, DefenseOptions, Free, Number
    from erat.registration import (
        register_backbone,
        register_corruption,
        register_dataset,
        register_defense,
        temporary_registrations,
    )
    from erat.registry import BACKBONES, CORRUPTIONS, DATASETS, DEFENSES, Registry
    from erat.result import RunResult
    from erat.training import train

__all__ = [
    "BACKBONES",
    "CORRUPTIONS",
    "DATASETS",
    "DEFENSES",
    "Batch",
    "Clock",
    "CorruptedSet",
    "CorruptionKind",
    "CorruptionOptions",
    "Craft",
    "DataConfig",
    "DataCorruption",
    "Defense",
    "DefenseOptions",
    "ERATClassifier",
    "EpochPlan",
    "EpochReport",
    "Free",
    "ImageSet",
    "ImageSource",
    "LossTerms",
    "Number",
    "Phase",
    "Registry",
    "RunConfig",
    "RunResult",
    "SourceFacts",
    "Task",
    "TrainingData",
    "TrainingFailedError",
    "Update",
    "UserError",
    "build",
    "load_config",
    "register_backbone",
    "register_corruption",
    "register_dataset",
    "register_defense",
    "temporary_registrations",
    "train",
]

_MODULES = {
    "erat.classifier.estimator": ("ERATClassifier",),
    "erat.config": ("RunConfig", "build", "load_config"),
    "erat.corruption.base": ("Craft", "DataCorruption"),
    "erat.corruption.kinds": ("CorruptionKind",),
    "erat.data.facts": ("SourceFacts",),
    "erat.data.types": ("CorruptedSet", "ImageSet", "ImageSource"),
    "erat.defenses.base": (
        "Batch", "Clock", "Defense", "EpochPlan", "LossTerms", "Phase", "Task", "TrainingData", "Update",
    ),
    "erat.engine.report": ("EpochReport",),
    "erat.errors": ("TrainingFailedError", "UserError"),
    "erat.options": ("CorruptionOptions", "DataConfig", "DefenseOptions", "Free", "Number"),
    "erat.registration": (
        "register_backbone", "register_corruption", "register_dataset", "register_defense", "temporary_registrations",
    ),
    "erat.registry": ("BACKBONES", "CORRUPTIONS", "DATASETS", "DEFENSES", "Registry"),
    "erat.result": ("RunResult",),
    "erat.training": ("train",),
}  # fmt: skip

if not TYPE_CHECKING:  # for a type checker, this function would make every misspelt name valid
    __getattr__, __dir__ = lazily(__name__, _MODULES)
