"""Measures what the audit finds on the embedded digits, compared with cleanlab; each line is a row of docs/audit.md.

    python -m tests.benchmarks.audit labels --seeds 1,2      # label issues: AUROC, precision, recall
    python -m tests.benchmarks.audit labels --data uhp,uhp-labels_first,uhp-annotator,uhp-bound,uhp-overlap
    python -m tests.benchmarks.audit poison --seeds 0,1,2    # poisoning tests: detections and false alarms
    python -m tests.benchmarks.audit table FILE ...          # tables of what was measured

Each measurement is appended to `--out` (JSON lines) at once and is never repeated. `labels` needs cleanlab, which is
not a dependency of the project: pip install cleanlab.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from erat.audit.audit import conclude, examine, plan
from erat.audit.crossfit import merge
from erat.audit.settings import plain_settings, robust_settings
from erat.config import build
from erat.corruption.pipeline import corrupted_set
from erat.corruption.store import Store
from erat.data.types import CorruptedSet, ImageSet

NOISES = (("symmetric", 0.2), ("symmetric", 0.4), ("symmetric", 0.6), ("asymmetric", 0.4), ("instance", 0.6))
KINDS = (
    "none",
    "l2c",
    "up",
    "aa",
    "ap",
    "uap",
    "uhp",
    "urp",
    "ops",
    "lsp",
    "ar",
    "cuda",
    "tue",
    "pil",
    "rem",
    "adaptive",
)
# The rates of couplings that decide the labels themselves, and another name of a coupling.
DECIDED = {"annotator": (("annotator", 0.4),), "bound": (("bound", 0.4),)}
COUPLED = {"given": "labels_first"}
EPOCHS = 10


def corrupted(store: Path, seed: int, **keys: Any) -> CorruptedSet:
    """Return the digits of the demo preset, poisoned and mislabelled with this seed."""
    overrides = {key.replace("__", "."): value for key, value in keys.items()}
    return corrupted_set(build("demo", overrides | {"corruption.seed": seed}, quiet=True), Store(store))


def measure_labels(store: Path, seed: int, data: str, noise: str, rate: float) -> dict[str, Any]:
    """Compare the issues that the audit and cleanlab find with the labels that are really wrong.

    cleanlab gets what it asks for: the out-of-fold probabilities of plain training in the last epoch, from the same
    networks that are one half of the audit, so with the same folds, network and epochs.

    Args:
        data: a data corruption, crafted for the true classes as in the paper; "up-given" for the given labels; "up-"
            and another coupling, "overlap" of half of the images with the mislabelled ones.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.metrics import roc_auc_score

    keys = {"corruption__labels": noise, "corruption__rate": rate}
    kind, _, coupling = data.partition("-")
    keys |= {"corruption__coupling": COUPLED.get(coupling, coupling)} if coupling else {}
    keys |= {"corruption__share": 0.5} if coupling == "overlap" else {}
    found = corrupted(store, seed, corruption__data=kind, **keys)
    wrong = (found.train.labels != found.true_labels).numpy()
    audited = _plan(found.train, seed, folds=4)
    parts = [examine(audited, number) for number in range(audited.folds)]
    audit = conclude(audited, parts)
    plain = merge({number: part["plain"] for number, part in enumerate(parts)}, audited.fold).probs[-1].double()
    probs, given = (plain / plain.sum(1, keepdim=True)).numpy(), found.train.labels.numpy()
    theirs = np.asarray(find_label_issues(given, probs))
    row = {
        "auroc": float(roc_auc_score(wrong, -audit.quality.numpy())),
        "cleanlab_auroc": float(roc_auc_score(wrong, -get_label_quality_scores(given, probs))),
        "noise": float(wrong.mean()),
        "estimated_noise": audit.noise.rate,
        "suggested_right": float((audit.suggested == found.true_labels).double()[torch.from_numpy(wrong)].mean()),
        "poisoned": audit.poisoning.poisoned,
        "gap": audit.poisoning.gap.value,
        "separability": audit.poisoning.separability.value,
        "learnt": audit.learnt,
        "erat_alone": audit.alone,
    }
    for name, flagged in (("", audit.issue.numpy()), ("cleanlab_", theirs)):
        both = int((flagged & wrong).sum())
        row |= {f"{name}precision": both / max(int(flagged.sum()), 1), f"{name}recall": both / int(wrong.sum())}
    return row


def measure_poison(store: Path, seed: int, data: str, limit: int) -> dict[str, Any]:
    """Run both poisoning tests on `limit` images without label noise, in two folds, with only 8 epochs."""
    found = corrupted(store, seed, corruption__data=data, corruption__labels="none", data__limit=limit)
    audited = _plan(found.train, seed, folds=2, epochs=8, batch=16)
    test = conclude(audited, [examine(audited, number) for number in range(audited.folds)]).poisoning
    return {
        "gap": test.gap.value,
        "separability": test.separability.value,
        "gap_found": test.gap.found,
        "separability_found": test.separability.found,
        "poisoned": test.poisoned,
        "images": test.images,
        "accuracy": test.accuracy,
    }


def _plan(images: ImageSet, seed: int, folds: int, epochs: int = EPOCHS, batch: int = 64) -> Any:
    settings = {"train.epochs": epochs, "train.batch_size": batch, "train.lr": 0.1, "train.seed": seed}
    robust = robust_settings(images, settings)
    return plan(images, robust, plain_settings(robust), folds)


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield (the key of a measurement, the function that makes it)."""
    for seed in arguments.seeds:
        if arguments.part == "poison":
            for data in arguments.data or KINDS:
                key = {"part": "poison", "seed": seed, "data": data, "limit": arguments.limit}
                yield key, lambda key=key: measure_poison(arguments.store, key["seed"], key["data"], key["limit"])
        else:
            for data in arguments.data or ("none", "up", "up-given"):
                for noise, rate in DECIDED.get(data.partition("-")[2], NOISES):
                    key = {"part": "labels", "seed": seed, "data": data, "noise_kind": noise, "rate": rate}
                    yield (
                        key,
                        lambda key=key: measure_labels(
                            arguments.store, key["seed"], key["data"], key["noise_kind"], key["rate"]
                        ),
                    )


def run(arguments: argparse.Namespace) -> None:
    """Make the measurements that are not in the file yet."""
    known = [set(row.items()) for row in map(_hashable, _read(arguments.out))]
    for key, make in jobs(arguments):
        if any(set(key.items()) <= row for row in known):
            continue
        started = time.monotonic()
        row = key | make() | {"seconds": time.monotonic() - started}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _hashable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not isinstance(value, dict | list)}


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    return "\n".join([*_label_table(rows), "", *_poison_table(rows)])


def _label_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["part"] == "labels":
            groups[row["data"], row["noise_kind"], row["rate"]].append(row)
    lines = [
        "| images | label noise | seeds | AUROC | cleanlab | precision / recall | cleanlab | noise, estimated |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for (data, noise, rate), group in groups.items():
        pairs = [
            f"{100 * mean(row[f'{name}precision'] for row in group):.1f} / "
            f"{100 * mean(row[f'{name}recall'] for row in group):.1f}"
            for name in ("", "cleanlab_")
        ]
        rates = f"{mean(row['noise'] for row in group):.3f}, {mean(row['estimated_noise'] for row in group):.3f}"
        areas = [_spread([row[name] for row in group], 4) for name in ("auroc", "cleanlab_auroc")]
        cells = [_title(data), f"{noise} {rate}", str(len(group)), *areas, *pairs, rates]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _poison_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["part"] == "poison":
            groups[row["data"]].append(row)
    lines = [
        "| images | sets | accuracy gap | separability | found by gap | by separability | by either |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for data, group in groups.items():
        figures = [_spread([row[name] for row in group], 2) for name in ("gap", "separability")]
        found = [str(sum(row[name] for row in group)) for name in ("gap_found", "separability_found", "poisoned")]
        lines.append(f"| {' | '.join([_title(data), str(len(group)), *figures, *found])} |")
    return lines


def _title(data: str) -> str:
    kind, dash, coupling = data.partition("-")
    return (
        "clean" if data == "none" else kind.upper() + (f", {coupling.replace('given', 'by given label')}" * bool(dash))
    )


def _spread(values: Sequence[float], digits: int) -> str:
    ending = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{ending}"


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.audit", description=__doc__)
    parser.add_argument("part", choices=["labels", "poison", "table"])
    parser.add_argument("files", nargs="*", type=Path, help="table: what to read")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[1])
    parser.add_argument("--data", type=lambda text: text.split(","), help="data corruptions; by default all")
    parser.add_argument("--limit", type=int, default=2000, help="poison: images of a set")
    parser.add_argument("--store", type=Path, default=Path("runs/crafted"))
    parser.add_argument("--out", type=Path, default=Path("runs/audit-benchmark.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "table":
        print(tables([row for path in arguments.files for row in _read(path)]))
    else:
        run(arguments)


if __name__ == "__main__":
    main()
