"""Convert names and values to forms that MLflow accepts and that people can read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from erat.corruption.kinds import coupling_name
from erat.errors import UserError
from erat.variants import title_of

PARENT = "mlflow.parentRunId"  # the tag by which MLflow shows a run under another one
RUN_NAME = "mlflow.runName"  # another tag that has a meaning for MLflow's page
TAG_LENGTH = 5000  # characters in a tag, on older servers of MLflow
# The metrics that the trainer reports in every epoch. A defense may add loss terms and other numbers.
EPOCH_METRICS = (
    "test_accuracy",
    "val_accuracy",
    "train_loss",
    "selection_precision",
    "selection_recall",
    "labelled_fraction",
    "noise_caught",
    "pseudo_label_accuracy",
    "epoch_seconds",
    "images_per_second",
    "learning_rate",
)
_CHILD_TAGS = {
    "dataset": "data.name",
    "data_corruption": "corruption.data",
    "label_noise": "corruption.labels",
    "noise_rate": "corruption.rate",
    "defense": "defense.name",
    "backbone": "model.name",
    "seed": "train.seed",
}
# Keys in which the trials of a search differ -> their short names in the name of a run.
_NAME_KEYS = {
    "defense.epsilon_inf": "eps_inf",
    "defense.epsilon_2": "eps_2",
    "defense.eta": "eta",
    "defense.lambda_u": "lambda",
}


def child_tags(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tags of a run in MLflow, such as `dataset`, that its configuration (by dotted keys) determines."""
    tags = {tag: config[key] for tag, key in _CHILD_TAGS.items() if key in config}
    coupling = config.get("corruption.coupling", "independent")
    return tags if coupling == "independent" else tags | {"coupling": coupling_name(config) or coupling}


def run_tags(
    cell: str,
    config: Mapping[str, Any],
    *,
    parent: str | None,
    sweep: str | None,
    source: str,
    tags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the tags of a run but its status; the arguments are those of `Tracker.start_run`."""
    own = child_tags(config) | {"cell": cell, "source": source, RUN_NAME: run_name(config)}
    own |= {"sweep": sweep} if sweep is not None else {}
    own |= {PARENT: parent} if parent is not None else {}
    return {**(tags or {}), **own}


def as_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags as MLflow keeps them when a run begins."""
    return {legal_name(key): text(value, TAG_LENGTH) for key, value in tags.items()}


def run_name(config: Mapping[str, Any]) -> str:
    """Return the name of a run in MLflow, such as "erat uhp+symmetric60% eps_inf=0.1 eps_2=0.8 eta=0.3 seed=3"."""
    data, labels = config.get("corruption.data", "none"), config.get("corruption.labels", "none")
    rate = f"{float(config.get('corruption.rate') or 0):.0%}"
    corruptions = [data] * (data != "none") + [f"{labels}{rate}"] * (labels != "none")
    corruptions += [name] if (name := coupling_name(config)) else []
    numbers = {short: config.get(key) for key, short in _NAME_KEYS.items()}
    shown = [f"{short}={number:.4g}" for short, number in numbers.items() if isinstance(number, int | float)]
    words = [title_of(config) or config.get("defense.name", "run"), "+".join(corruptions) or "clean", *shown]
    return " ".join([*map(str, words), f"seed={config.get('train.seed', 0)}"])


def compare_hint(sweep: str) -> str:
    """Return the text that finds the runs of one study when it is typed into the search box of MLflow's page."""
    return f"tags.sweep = {quoted(sweep)}"


def legal_name(key: str) -> str:
    """Return a name that every version of MLflow accepts, of at most 250 characters.

    MLflow refuses most characters but letters, digits and `_-. `, and some uses of `/` and `:`; they become `_`.
    """
    return re.sub(r"[^\w\-. ]", "_", key)[:250]


def metric_name(key: str) -> str:
    """Return a metric's name that every version of MLflow accepts, of at most 250 characters.

    A slash is kept, because MLflow's page groups metrics by the part before it. MLflow treats the name as a path, and
    refuses one that is not in its shortest form, such as `a//b` or `a/./b`.
    """
    parts = (re.sub(r"^\.+", "_", legal_name(part)) or "_" for part in key.split("/"))
    return "/".join(parts)[:250].rstrip("/")


def epoch_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an epoch for MLflow: all finite numbers of its row but the epoch, which becomes the step.

    Args:
        row: a line of metrics.jsonl. A loss term NAME becomes `loss/NAME`. A number that the defense reports keeps its
            name, unless the trainer reports a metric of the same name, which then takes precedence.
    """
    terms = {f"loss/{name}": value for name, value in (row.get("loss_terms") or {}).items()}
    numbers = {**(row.get("numbers") or {}), **terms, **row}
    return {
        name: float(value)
        for name, value in numbers.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def text(value: Any, length: int) -> str:
    """Return a value as the command line accepts it (none, true, 0.1, [60, 80]), cut to `length` characters."""
    if value is None:
        return "none"
    whole = value if isinstance(value, str) else json.dumps(value, default=str)
    return whole if len(whole) <= length else whole[: length - 3] + "..."


def quoted(value: str) -> str:
    """Return a text in quotes for MLflow's search language, which has no escape characters.

    Raises:
        UserError: The text contains both single and double quotes.
    """
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise UserError(f"a name must not hold both kinds of quotes, got {value}")
    return f"{quote}{value}{quote}"
