"""Packs the details of a run that a page can show, from its directory; values that many runs share are stored once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.report.notation import finite
from orchestration.report.sections import place_of, reason
from orchestration.run.directory import RunDirectory
from orchestration.storage.forms import Confusion, Selection
from orchestration.study.trial import Trial

FEW_CLASSES = 20  # up to this many classes the whole confusion matrix is kept, above it the most frequent confusions
MOST_PAIRS = 30
TAIL = 1500  # number of characters at the end of a failed run's traceback
_SELECTION = ("labelled_per_class", "correct_per_class", "wrong_per_class", "caught_per_class")


@dataclass
class Pool:
    """Values that several runs have in common, each stored once; the runs refer to them by number."""

    values: list[Any] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, value: Any) -> int:
        """Store a value, if it is new, and return its number."""
        key = json.dumps(value, sort_keys=True, default=str)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


def detail_of(row: Trial, run: RunDirectory, command: str, pool: Pool) -> dict[str, Any]:
    """Return the packed content of a run's drill-down.

    Args:
        row: the trial.
        run: the directory of the run; files that are missing are left out.
        command: the shell command that runs the configuration again.
        pool: the values that runs share.
    """
    epochs, result = run.read_metrics(), row.so_far
    content = {
        "n": row.number,
        "id": row.cell,
        "t": [*place_of(row), str(row.config.get("model.name")), row.config.get("train.seed")],
        "state": reason(row),
        "curves": [
            [_short(entry.get(key)) for entry in epochs] for key in ("train_loss", "val_accuracy", "test_accuracy")
        ],
        "terms": _terms(epochs),
        "numbers": {name: value for name, value in _numbers(epochs).items() if value is not None} or None,
        "acc": [_short(row.final_test_accuracy), _short(row.best_val_test_accuracy)],
        "config": [pool.add([name, section]) for name, section in _sections(row.config).items()],
        "seconds": _short(row.seconds),
        "mb": round(result.peak_memory_mb) or None,
        "noise": _short(result.noise_rate),
        "sum": result.checksum,
        "run": row.mlflow_run_id,
        "cmd": command,
        "rungs": list(row.rungs) or None,
        "epochs": row.epochs if row.rungs else None,
        "ends": row.status if row.at_rung else None,
        "promoted": row.promoted or None,
        "confirms": row.confirms,
    }
    if row.status == "failed":
        content |= {"error": row.error, "tail": (run.read_error() or "")[-TAIL:] or None}
    content |= _selection(run.read_selection(), pool)
    content |= _confusion(run.read_confusion(), pool)
    environment = run.read_environment()
    if environment:
        kept = ("git_commit", "git_dirty", "device", "cores", "platform", "python", "versions")
        content["env"] = pool.add({key: environment.get(key) for key in kept})
    return {key: value for key, value in content.items() if value is not None}


def _sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group a flat configuration by the first words of its keys; the seed is apart, so that seeds share the rest."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        section, _, name = key.partition(".")
        if key != "train.seed":
            sections.setdefault(section if name else "", {})[name or key] = value
    return sections


def _terms(epochs: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]] | None:
    """Return each loss term over the epochs, with None for an epoch that lacks it; return None if there are no terms.

    Values have three digits: there may be many terms, and a curve cannot show more.
    """
    terms = [entry.get("loss_terms") or {} for entry in epochs]
    names = dict.fromkeys(name for entry in terms for name in entry)
    return {name: [_short(entry.get(name), 3) for entry in terms] for name in names} or None


def _numbers(epochs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the numbers that the defense reported, each of the last epoch that had it."""
    return {name: _short(value) for entry in epochs for name, value in (entry.get("numbers") or {}).items()}


def _short(value: Any, digits: int = 4) -> float | None:
    """Round a number to some digits, four by default, because a reader cannot see more in a figure."""
    number = finite(value) if isinstance(value, int | float) else None
    return None if number is None else float(f"{number:.{digits}g}")


def _selection(content: Selection | None, pool: Pool) -> dict[str, Any]:
    """Return the last epoch's selection by class: labelled, rightly labelled among these; wrong labels, caught ones."""
    if not content or not content["epochs"]:
        return {}
    last = content["epochs"][-1]
    return {"selection": [last.get(key, []) for key in _SELECTION], "classes": pool.add(content["classes"])}


def _confusion(content: Confusion | None, pool: Pool) -> dict[str, Any]:
    if content is None:
        return {}
    counts, classes = content["counts"], len(content["classes"])
    if len(counts) != classes or any(len(line) != classes for line in counts):
        return {}
    named = {"classes": pool.add(content["classes"])}
    if len(counts) <= FEW_CLASSES:
        return named | {"confusion": counts}
    pairs = [
        (count, k, seen) for k, line in enumerate(counts) for seen, count in enumerate(line) if count and k != seen
    ]
    recall = [_short(line[k] / max(1, sum(line))) for k, line in enumerate(counts)]
    return named | {"confused": sorted(pairs, reverse=True)[:MOST_PAIRS], "recall": recall}
