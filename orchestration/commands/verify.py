"""Implements `craft --verify`: tests by plain training on every corrupted set whether each corruption has an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from erat.config import RunConfig
from erat.errors import UserError
from erat.registry import CORRUPTIONS
from orchestration.study.spec import StudySpec, unfilled

# The paper's order (Table I).
PAPER_ORDER = ("l2c", "up", "aa", "ap", "uap", "uhp", "urp")


def kinds_of(overrides: Mapping[str, Any]) -> list[str]:
    """Return the data corruptions that `corruption.data` names ("up,uap"), or all of them if it is not set.

    Raises:
        UserError: a name is not known.
    """
    wanted = overrides.get("corruption.data")
    if wanted is None:
        known = CORRUPTIONS.names()
        return [*(kind for kind in PAPER_ORDER if kind in known), *(kind for kind in known if kind not in PAPER_ORDER)]
    kinds = [word.strip() for word in str(wanted).split(",")]
    for kind in kinds:
        if kind != "none":
            CORRUPTIONS[kind]
    return kinds


def specification(
    preset: str,
    overrides: Mapping[str, Any],
    labels: Sequence[str],
    seeds: Sequence[int],
    fill: Callable[[RunConfig], RunConfig] = unfilled,
) -> StudySpec:
    """Return the study of all runs: (no data corruption and every kind) x label noise x seeds, with cross-entropy.

    Args:
        preset: name of the preset.
        overrides: dotted keys of all runs.
        labels: "none", or a kind of noise with its rate ("symmetric:0.6").
        seeds: each is the seed of a corruption and of the training on it.
        fill: see `StudySpec`.

    Raises:
        UserError: a kind of corruption, a kind of label noise or a rate is not allowed.
    """
    base = {key: value for key, value in overrides.items() if key not in ("corruption.data", "corruption.labels")}
    runs = [
        {"corruption.data": kind, **noise, "train.seed": seed, "corruption.seed": seed}
        for kind in dict.fromkeys(["none", *kinds_of(overrides)])
        for noise in map(_noise, labels)
        for seed in seeds
    ]
    about = "plain training (CE) on each corrupted set"
    return StudySpec.listing("verify", about, runs, preset, base | {"defense.name": "ce"}, fill)


def _noise(words: str) -> dict[str, Any]:
    kind, _, rate = words.partition(":")
    if kind == "none":
        return {"corruption.labels": "none"}
    try:
        return {"corruption.labels": kind} | ({"corruption.rate": float(rate)} if rate else {})
    except ValueError:
        raise UserError(f"--labels must be none or KIND:RATE, such as symmetric:0.6, got {words!r}") from None
