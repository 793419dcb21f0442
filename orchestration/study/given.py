"""Finds the keys that make a configuration from its preset, so that a recorded run can be asked for again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from erat.config import RunConfig, build
from erat.errors import UserError
from orchestration.terminal import program

# What the values of a preset depend on: these keys come first, in this order.
_FIRST = (
    "data.name",
    "model.name",
    "corruption.data",
    "corruption.norm",
    "corruption.labels",
    "corruption.rate",
    "defense.name",
    "train.epochs",
)
_SEEDS = ("corruption.seed", "train.seed")
# Paths are no part of a run's identity, and belong to one machine: a command has a word for each instead.
_PLACES = {"data.root": "FOLDER", "corruption.labels_file": "FILE", "corruption.source_weights": "FILE"}
_ROUNDS = 4  # a key that is given can change the value of another one that was not


def keys_given(config: RunConfig) -> dict[str, Any] | None:
    """Return dotted key -> value of what must be given on top of `config.preset` to make this configuration.

    Seeds, and what is filled in from files (fingerprints and digests), are left out. The result is checked by making
    the configuration. It is None if this version cannot make it, for instance because a value is no longer allowed.
    """
    wanted, flat = _settings(config), config.flat()
    try:
        return _fewest(config.preset, wanted, flat)
    except UserError:  # on the way there, a preset's value did not fit one that was given
        everything = {key: flat[key] for key in wanted}
        try:
            return everything if _settings(build(config.preset, everything, quiet=True)) == wanted else None
        except UserError:
            return None


def _fewest(preset: str, wanted: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any] | None:
    given: dict[str, Any] = {}
    for key in _FIRST:
        if build(preset, given, quiet=True).flat().get(key) != flat.get(key):
            given[key] = flat[key]
    for _ in range(_ROUNDS):
        made = _settings(build(preset, given, quiet=True))
        if made == wanted:
            return given
        missing = object()
        other = [key for key in {**wanted, **made} if wanted.get(key, missing) != made.get(key, missing)]
        given |= {key: flat[key] for key in other if key in flat}
    return None


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what identifies a run, without its seeds and without what is filled in from files."""
    return {
        key: value
        for key, value in config.identity().items()
        if key not in _SEEDS and key != "data.fingerprint" and not key.endswith("_digest")
    }


def command_of(config: Mapping[str, Any], given: Mapping[str, Any], seeds: tuple[int, int]) -> str:
    """Return the shell command that makes a run again, with a word such as FOLDER in place of each path.

    Args:
        config: the flat configuration.
        given: what `keys_given` returned for it.
        seeds: seed of the corruption, seed of training.
    """
    from orchestration.study.overrides import typed

    places = {key: word for key, word in _PLACES.items() if config.get(key) is not None}
    words = {**given, **places, **dict(zip(_SEEDS, seeds, strict=True))}
    start = [*program().split(), "train", "--preset", str(config["preset"])]
    return shlex.join([*start, *(f"{key}={typed(value)}" for key, value in words.items())])
