"""Writes names and numbers in the same way for the live table, the tables and the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from erat.config import RunConfig
from erat.variants import defense_name, expand
from orchestration.study.confirmations import Spread
from orchestration.study.trial import Trial

MISSING = "-"
EPSILON_INF, EPSILON_2 = "defense.epsilon_inf", "defense.epsilon_2"
_SYMBOLS = {EPSILON_INF: "ε∞", EPSILON_2: "ε2", "defense.eta": "η", "defense.lambda_u": "λ"}
_SHORT = {
    "corruption.data": "images",
    "corruption.labels": "labels",
    "corruption.rate": "rate",
    "corruption.coupling": "coupling",
    "corruption.overlap": "overlap",
    "corruption.share": "share",
    "model.name": "network",
    "corruption.seed": "corr. seed",
    "train.seed": "seed",
}
_ASCII = {EPSILON_INF: "eps_inf", EPSILON_2: "eps_2", "defense.eta": "eta", "defense.lambda_u": "lambda"}
_NETWORKS = {
    "vgg11": "VGG11",
    "vgg16": "VGG16",
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "preact_resnet18": "PreAct18",
    "wideresnet28_10": "WRN-28-10",
    "vit_b16": "ViT-B/16",
}


def header(key: str, ascii_only: bool = False) -> str:
    """Return the paper's symbol of a searched key, or a short name or the key itself if the paper has none."""
    return (_ASCII if ascii_only else _SYMBOLS).get(key, _SHORT.get(key, key))


def value(key: str, number: Any) -> str:
    """Return a setting as people write it: with three digits, or as k/255 if it is such an l_inf budget."""
    if number is None:
        return MISSING
    if isinstance(number, bool):
        return str(number).lower()
    if not isinstance(number, float):
        return _NETWORKS.get(str(number), str(number)) if key == "model.name" else str(number)
    text = f"{number:.3g}"
    if key != EPSILON_INF or not math.isfinite(number) or float(text) == number:
        return text  # 0.2 is also 51/255, but is clearer as 0.2
    levels = round(number * 255)
    return f"{levels}/255" if levels and abs(number - levels / 255) <= 1e-6 else text


def accuracy(share: float | None) -> str:
    """Return an accuracy with three digits after the point, or a dash if it was not measured."""
    number = finite(share)
    return MISSING if number is None else f"{number:.3f}"


def duration(seconds: float | None) -> str:
    """Return seconds as m:ss or h:mm:ss, or a dash if there are none."""
    number = finite(seconds)
    if number is None:
        return MISSING
    minutes, rest = divmod(round(max(0.0, number)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def finite(number: float | None) -> float | None:
    """Return the number, or None if it is missing, NaN or infinite."""
    return float(number) if number is not None and math.isfinite(number) else None


def searched_keys(rows: Iterable[Trial]) -> list[str]:
    """Return the dotted keys that were set for any row, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.params))


def baseline_name(row: Trial) -> str:
    """Return the name of a run's defense in tables."""
    settings = row.config | expand(row.params)
    return defense_name(settings, row.params) if "defense.name" in settings else f"run {row.cell[:8]}"


def named(key: str, row: Trial) -> bool:
    """Return whether the name of a run's defense includes this setting, as ERAT∞ includes `defense.norms`."""
    settings = row.config | expand(row.params)
    without = [{name: value for name, value in part.items() if name != key} for part in (settings, row.params)]
    return "defense.name" in without[0] and defense_name(settings, row.params) != defense_name(*without)


def origin(row: Trial) -> str:
    """Return the source of a trial in a word or two: for a baseline its name, for a confirmation its seed."""
    if row.confirms is not None:
        return f"seed {row.config.get('train.seed', MISSING)}"
    return baseline_name(row) if row.source == "baseline" else row.source


def settings_number(row: Trial) -> int:
    """Return the number of the trial that has these settings: of a confirmation, that of the trial that it repeats."""
    return row.number if row.confirms is None else row.confirms


def number_of(row: Trial) -> str:
    """Return the number of a trial, such as "7", or "7, seed 2" if it repeats trial 7 with the seed 2."""
    return str(row.number) if row.confirms is None else f"{row.confirms}, {origin(row)}"


def state(row: Trial) -> str:
    """Return the status of a trial with its rung, if it has to do with one: "paused at 30", "promoted at 30", ...

    A trial that is promoted and waits for a slot is "promoted at 30"; once it runs, it has `promotion` beside it.
    """
    if row.at_rung:
        return f"{row.status} at {row.epoch}"
    waits = row.status == "queued" and row.promoted and row.epoch == row.promoted
    return f"promoted at {row.promoted}" if waits else row.status


def promotion(row: Trial) -> str:
    """Return the mark of a trial that went on from a rung, such as "↑30"; nothing while it waits there for a slot."""
    return f"↑{row.promoted}" if row.promoted and not state(row).startswith("promoted") else ""


def with_spread(spread: Spread) -> str:
    """Return an accuracy over seeds, such as "0.951 ± 0.004", or a dash if none was measured."""
    return accuracy(spread.mean) + (f" ± {accuracy(spread.spread)}" if spread.spread is not None else "")


def percent(share: float | None) -> float | None:
    """Return an accuracy in percent, as the paper does; None if it is missing or not a number."""
    number = finite(share)
    return None if number is None else 100 * number


def tested(row: Trial) -> float | None:
    """Return the paper's primary figure, the clean test accuracy of the last epoch, in percent."""
    return percent(row.final_test_accuracy)


def validated(row: Trial) -> float | None:
    """Return the figure by which trials are chosen, the validation accuracy of the best epoch, in percent."""
    return percent(row.best_val_accuracy)


def validation_words(config: RunConfig) -> str:
    """Return what the validation images are, with a warning if their accuracy misleads."""
    share = f"{config.val.fraction:.0%} of the training images"
    if config.val.trusted:
        return f"validation: {share}, split off before corruption, trusted (clean images and labels)"
    words = f"validation: {share}, corrupted like the rest"
    if config.val.objective == "clean" and config.corruption.data != "none":
        words += "; under a poison plain accuracy misleads: val.objective=perturbed judges on attacked images"
    return words
