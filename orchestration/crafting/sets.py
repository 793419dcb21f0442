"""Finds the corrupted sets that runs need and those that the store lacks, and names them for a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from math import prod

from erat.config import RunConfig, content_digest
from erat.corruption.pipeline import stored_parts
from erat.engine.memory import data_shape
from orchestration.storage.workspace import Workspace

SMALL_SET = 5_000_000  # pixel values of all images: 25,000 digits of 14 x 14, 1,600 images of CIFAR-10


def distinct_sets(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return one configuration for each corrupted set that these need; runs on one set may use different shares."""
    return list({_set_key(config): config for config in configs}.values())


def missing_sets(configs: Sequence[RunConfig], workspace: Workspace) -> list[RunConfig]:
    """Return one configuration for each set that these need and the store lacks, or holds damaged (with a warning)."""
    sets = distinct_sets(configs)
    sound = cache(
        lambda path, part: json.loads(part) in workspace.sharing(path).store()
    )  # a part that several sets share is read once
    return [
        config
        for config, parts in zip(sets, stored_parts(sets), strict=True)
        if not all(sound(config.storage.path, json.dumps(part)) for part in parts if part is not None)
    ]


def by_images(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Group sets that have the same poisoned images, because a second task for these would wait for the first."""
    groups: dict[object, list[RunConfig]] = {}
    for config, (images, _) in zip(configs, stored_parts(configs), strict=True):
        groups.setdefault(_set_key(config) if images is None else content_digest(images), []).append(config)
    return list(groups.values())


def placed(config: RunConfig) -> RunConfig:
    """Return the configuration, changed to craft a small set on the CPU, so that the GPUs are left to the runs."""
    shape = data_shape(config)
    if config.resources.gpu == 0 or (shape.train + shape.val) * prod(shape.image) > SMALL_SET:
        return config
    on_cpu = {"gpu": 0.0, "device": "cpu"}
    return config.model_copy(update={"resources": config.resources.model_copy(update=on_cpu)})


def set_name(config: RunConfig) -> str:
    """Return the name of a corrupted set for a person: "uhp l2 1.25", "up linf 0.1 seed 3" or "cuda unbounded".

    A coupling is named where it makes another set: "uhp l2 1.25 bound".
    """
    options = config.corruption
    if options.data == "none":
        return f"{options.labels} labels"
    seed = f" seed {options.seed}" if options.seed else ""
    budget = "" if options.epsilon is None else f" {options.epsilon:.3g}"
    coupling = "" if options.coupling in ("independent", "overlap") else f" {options.coupling}"
    return f"{options.data} {options.norm}{budget}{coupling}{seed}"


def _set_key(config: RunConfig) -> tuple[object, ...]:
    """Return the part of a configuration that is equal for two runs exactly if they use the same corrupted set."""
    options = config.corruption
    # The store keeps whole sets, of which a run uses a share. Only the labels of an annotator, who sees what is
    # poisoned, depend on it.
    whole: dict[str, object] = {} if options.coupling == "annotator" else {"share": 1.0}
    whole |= {"coupling": "independent", "overlap": None} if options.coupling == "overlap" else {}
    return config.data, config.val, options.model_copy(update=whole)
