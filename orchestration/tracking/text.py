"""Names and values as MLflow takes them and as a person reads them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from erat.errors import UserError
from erat.variants import title_of

_CHILD_TAGS = {
    "dataset": "data.name",
    "data_corruption": "corruption.data",
    "label_noise": "corruption.labels",
    "noise_rate": "corruption.rate",
    "defense": "defense.name",
    "backbone": "model.name",
    "seed": "train.seed",
}
# Keys that tell the trials of a sweep apart, as the run's name shows them.
_NAME_KEYS = {
    "defense.epsilon_inf": "eps_inf",
    "defense.epsilon_2": "eps_2",
    "defense.eta": "eta",
    "defense.lambda_u": "lambda",
}


def child_tags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tags that follow from a flat configuration."""
    return {tag: config[key] for tag, key in _CHILD_TAGS.items() if key in config}


def run_name(config: Mapping[str, Any]) -> str:
    """What a person reads in a list of runs: "erat uhp+symmetric60% eps_inf=0.1 eps_2=0.8 eta=0.3 seed=3"."""
    data, labels = config.get("corruption.data", "none"), config.get("corruption.labels", "none")
    rate = f"{float(config.get('corruption.rate') or 0):.0%}"
    corruptions = [data] * (data != "none") + [f"{labels}{rate}"] * (labels != "none")
    numbers = {short: config.get(key) for key, short in _NAME_KEYS.items()}
    shown = [f"{short}={number:.4g}" for short, number in numbers.items() if isinstance(number, int | float)]
    words = [title_of(config) or config.get("defense.name", "run"), "+".join(corruptions) or "clean", *shown]
    return " ".join([*map(str, words), f"seed={config.get('train.seed', 0)}"])


def compare_hint(sweep: str) -> str:
    """What to type into the search box of MLflow's page to see one sweep's runs."""
    return f"tags.sweep = {quoted(sweep)}"


def legal_name(key: str) -> str:
    """A name that every MLflow takes: it refuses most other characters, and some uses of / and : ."""
    return re.sub(r"[^\w\-. ]", "_", key)[:250]


def metric_name(key: str) -> str:
    """Return a metric's name as every MLflow takes it. A slash stays: its page groups metrics by what stands before it.

    MLflow takes a name for a path, and refuses one that another path leads to as well, such as `a//b` or `a/./b`.
    """
    parts = (re.sub(r"^\.+", "_", legal_name(part)) or "_" for part in key.split("/"))
    return "/".join(parts)[:250].rstrip("/")


def epoch_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what MLflow gets of an epoch, by name: every finite number of its row but the epoch, which is the step.

    Args:
        row: a line of metrics.jsonl. A loss term NAME becomes `loss/NAME`; a number that the defense reports keeps its
            name, unless the trainer has a figure of that name, which then counts.
    """
    terms = {f"loss/{name}": value for name, value in (row.get("loss_terms") or {}).items()}
    numbers = {**(row.get("numbers") or {}), **terms, **row}
    return {
        name: float(value)
        for name, value in numbers.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def text(value: Any, length: int) -> str:
    """A value as the command line takes it (none, true, 0.1, [60, 80]), cut to `length` characters."""
    if value is None:
        return "none"
    whole = value if isinstance(value, str) else json.dumps(value, default=str)
    return whole if len(whole) <= length else whole[: length - 3] + "..."


def quoted(value: str) -> str:
    """A string in MLflow's search language, which knows no escapes.

    Raises:
        UserError: it holds both kinds of quotes.
    """
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise UserError(f"a name must not hold both kinds of quotes, got {value}")
    return f"{quote}{value}{quote}"
