"""Chooses settings that suit an image set's size: for ERAT, and for the plain training that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from erat.config import RunConfig, build
from erat.data.fingerprint import DIGITS
from erat.data.types import ImageSet
from erat.variants import expand

# Customary budgets, and the number of values in an image for which the l_2 budget is meant.
_PHOTOGRAPHS = {"linf": 8 / 255, "l2": 0.5, "values": 3 * 32 * 32}
_INK = {"linf": 0.1, "l2": 1.0, "values": 14 * 14}
INK_NEAR, INK_SHARE = 0.3, 0.7  # ink on paper: more than this share of all pixels lies this near to black or white
STEPS = 900  # optimizer steps that a schedule should have at least; a small set gets more epochs, up to MOST_EPOCHS
# One step of PGD from where the last one ended: half the time, at no cost in accuracy (docs/speed.md).
QUICK: dict[str, Any] = {
    "defense.steps": 1,
    "defense.step_ratio": 0.5,
    "defense.warm_start": True,
    "defense.consistency": False,
}
LEAST_EPOCHS, MOST_EPOCHS = 16, 60
LARGE = 48  # pixels a side, from which the receptive field of the small network is too small


def is_ink(images: ImageSet) -> bool:
    """Return whether the images look like grey scans or drawings, mostly black or white, which bear larger budgets."""
    levels = images.images
    near = ((levels < round(255 * INK_NEAR)) | (levels > round(255 * (1 - INK_NEAR)))).sum()
    return images.channels == 1 and int(near) > INK_SHARE * levels.numel()


def customary_budgets(images: ImageSet) -> dict[str, float]:
    """Return epsilon for each norm, in pixel units of 1.0.

    The l_2 budget grows with the square root of the number of values in an image; the l_inf budget does not.
    """
    known = _INK if is_ink(images) else _PHOTOGRAPHS
    values = images.channels * images.size**2
    return {"linf": known["linf"], "l2": known["l2"] * math.sqrt(values / known["values"])}


def robust_settings(images: ImageSet, overrides: Mapping[str, Any] | None = None, *, scale: float = 1.0) -> RunConfig:
    """Build ERAT's configuration for `images`.

    Args:
        overrides: dotted keys, which are used unchanged.
        scale: factor on the customary budgets.

    Raises:
        UserError: `erat.config.build` refuses a key or a value.
    """
    given = expand(overrides or {})
    batch = _whole(given, "train.batch_size", 64 if len(images) >= 1000 else 16)
    epochs = min(max(LEAST_EPOCHS, math.ceil(STEPS * batch / max(len(images), 1))), MOST_EPOCHS)
    epochs = _whole(given, "train.epochs", epochs)
    budget = customary_budgets(images)
    values: dict[str, Any] = {
        "data.name": "folder",
        "data.fingerprint": images.fingerprint[:DIGITS],
        # The mirror image of a scan or a drawing often shows another thing, that of a photograph hardly ever does.
        "data.flip": not is_ink(images),
        "corruption.data": "none",
        "corruption.labels": "none",
        "model.name": "small" if images.size < LARGE else "resnet18",
        "train.epochs": epochs,
        "train.batch_size": batch,
        "train.lr": 0.1 * batch / 64,  # the linear scaling rule: Goyal et al., "Accurate, Large Minibatch SGD", 2017
    }
    if given.get("defense.name", "erat") == "erat":
        values |= {
            "defense.warmup_epochs": max(1, round(0.2 * epochs)),
            "defense.ramp_epochs": epochs,
            "defense.policy": "digits" if is_ink(images) else "cifar10",
            "defense.epsilon_inf": scale * budget["linf"],
            "defense.epsilon_2": scale * budget["l2"],
        }
        chosen = any(key in given for key in QUICK) or given.get("defense.random_start")
        if not chosen and given.get("defense.uniform", True) and given.get("defense.adversarial", True):
            values |= QUICK
    return build("demo", values | given, quiet=True)


def _whole(given: Mapping[str, Any], key: str, default: int) -> int:
    """Return a given positive whole number, from which other settings follow, or else the default.

    Any other value is refused later, when all keys are checked.
    """
    value = given.get(key)
    return value if isinstance(value, int) and value > 0 else default


def plain_settings(robust: RunConfig) -> RunConfig:
    """Build the configuration that the audit compares with: cross-entropy with the same network, epochs and batches."""
    kept = {key: value for key, value in robust.flat().items() if not key.startswith("defense.") and key != "preset"}
    return build(robust.preset, kept | {"defense.name": "ce"}, quiet=True)
