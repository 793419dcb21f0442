"""How names and numbers read, the same in the live table, the tables and the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from erat.config import RunConfig
from erat.variants import expand, title_of
from orchestration.study.rows import TrialRow

MISSING = "-"
EPSILON_INF, EPSILON_2 = "defense.epsilon_inf", "defense.epsilon_2"
_SYMBOLS = {EPSILON_INF: "ε∞", EPSILON_2: "ε2", "defense.eta": "η", "defense.lambda_u": "λ"}
_SHORT = {
    "corruption.data": "images",
    "corruption.labels": "labels",
    "corruption.rate": "rate",
    "model.name": "network",
    "corruption.seed": "corr. seed",
    "train.seed": "seed",
}
_ASCII = {EPSILON_INF: "eps_inf", EPSILON_2: "eps_2", "defense.eta": "eta", "defense.lambda_u": "lambda"}
_DEFENSES = {"dividemix": "DivideMix"}  # all others in capitals
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
_AT = {"linf": "AT∞", "l2": "AT2"}  # where a table sets adversarial training's norm and does not leave it to the poison


def header(key: str, ascii_only: bool = False) -> str:
    """The paper's symbol of a searched key, or the key itself where the paper has none."""
    return (_ASCII if ascii_only else _SYMBOLS).get(key, _SHORT.get(key, key))


def value(key: str, number: Any) -> str:
    """A setting as a person writes it: three digits, an l_inf budget as k/255 where it is one."""
    if number is None:
        return MISSING
    if isinstance(number, bool):
        return str(number).lower()
    if not isinstance(number, float):
        return _NETWORKS.get(str(number), str(number)) if key == "model.name" else str(number)
    text = f"{number:.3g}"
    if key != EPSILON_INF or not math.isfinite(number) or float(text) == number:
        return text  # 0.2 is 51/255 too, and says less that way
    levels = round(number * 255)
    return f"{levels}/255" if levels and abs(number - levels / 255) <= 1e-6 else text


def accuracy(share: float | None) -> str:
    """Three digits after the point, or a dash for what was not measured."""
    number = finite(share)
    return MISSING if number is None else f"{number:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss."""
    number = finite(seconds)
    if number is None:
        return MISSING
    minutes, rest = divmod(round(max(0.0, number)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def finite(number: float | None) -> float | None:
    """The number, unless it is missing, NaN or infinite."""
    return float(number) if number is not None and math.isfinite(number) else None


def searched_keys(rows: Iterable[TrialRow]) -> list[str]:
    """The dotted keys that the rows differ in, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.params))


def baseline_name(row: TrialRow) -> str:
    """What tables call a run's defense."""
    settings = row.config | expand(row.params)
    return defense_name(settings, row.params) if "defense.name" in settings else f"run {row.cell[:8]}"


def defense_name(settings: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> str:
    """What tables call the defense of a flat configuration: "CE", "ERAT w/o AT", "AT+UNICON", …

    Args:
        chosen: what was set for this run alone; a norm that AT was given, and did not take from the poison, is named.
    """
    name = str(settings["defense.name"])
    plain = _DEFENSES.get(name, name.upper())
    if name == "at":
        plain = _AT.get(str((chosen or {}).get("defense.norms")), plain)
    return title_of(settings) or plain


def named(key: str, row: TrialRow) -> bool:
    """Whether the name of a run's defense says this setting already: `defense.norms` of ERAT∞."""
    settings = row.config | expand(row.params)
    without = [{name: value for name, value in part.items() if name != key} for part in (settings, row.params)]
    return "defense.name" in without[0] and defense_name(settings, row.params) != defense_name(*without)


def origin(row: TrialRow) -> str:
    """Where a trial's settings come from, in a word or two; of a baseline, its name."""
    return baseline_name(row) if row.source == "baseline" else row.source


def percent(share: float | None) -> float | None:
    """An accuracy in percent, as the paper has it; None where it is missing or not a number."""
    number = finite(share)
    return None if number is None else 100 * number


def tested(row: TrialRow) -> float | None:
    """The paper's primary figure: clean test accuracy of the last epoch, in percent."""
    return percent(row.final_test_accuracy)


def validated(row: TrialRow) -> float | None:
    """What the choice is made by: validation accuracy of the best epoch, in percent."""
    return percent(row.best_val_accuracy)


def validation_words(config: RunConfig) -> str:
    """What the validation images are, and what to beware of."""
    share = f"{config.val.fraction:.0%} of the training images"
    if config.val.trusted:
        return f"validation: {share}, split off before corruption, trusted (clean images and labels)"
    words = f"validation: {share}, corrupted like the rest"
    if config.val.objective == "clean" and config.corruption.data != "none":
        words += "; under a poison plain accuracy misleads: val.objective=perturbed judges on attacked images"
    return words
