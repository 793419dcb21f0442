"""Compares successive halving with median stopping and with the paper's points, on the embedded digits.

`python -m tests.benchmarks.digits --seeds 0,1,2` searches the space `joint` twice for each seed, with as many trials,
and trains the paper's eight pairs of budgets. A seed is that of the sampler and of training. Each study has a folder of
its own under `--folder`, so that no run is shared, and a comparison that is interrupted goes on when it is repeated.
The best trial is the one with the best validation accuracy; its test accuracy is only reported. A seed is the work of
some forty trainings of the demo, two at a time on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from erat import UserError
from orchestration import Study

RUNGS = (4, 8)  # a quarter and a half of the demo's 16 epochs; the first is the one after warm-up


@dataclass(frozen=True)
class Found:
    """What a study found. Accuracies in percent, work in full trainings."""

    val_accuracy: float
    test_accuracy: float
    work: float


def main() -> None:
    """Run the studies that are missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.digits", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of sampler and training, such as 0,1,2")
    parser.add_argument("--trials", type=int, default=24, help="trials of each search (default 24)")
    parser.add_argument("--rungs", default=",".join(map(str, RUNGS)), help="rungs of halving (default 4,8)")
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"), help="where the studies are kept")
    asked = parser.parse_args()
    seeds, console = [int(word) for word in asked.seeds.split(",")], Console()
    policies: Mapping[str, Mapping[str, Any]] = {
        f"halving {asked.rungs}": {"space": "joint", "trials": asked.trials, "pruner": "halving", "rungs": asked.rungs},
        "median": {"space": "joint", "trials": asked.trials, "pruner": "median"},
        "paper's eight points": {"space": "budgets", "trials": 8, "pruner": "none"},
    }
    found: dict[str, list[Found]] = {policy: [] for policy in policies}
    for seed in seeds:
        for policy, options in policies.items():
            folder = asked.folder / f"{options['space']}-{options['pruner']}-{seed}"
            found[policy].append(_run(folder, seed, options))
            console.print(f"seed {seed}, {policy}: {found[policy][-1]}")
    console.print(_table(found, len(seeds)))


def _run(folder: Path, seed: int, options: Mapping[str, Any]) -> Found:
    study = Study.create(**options, name="digits", workspace=folder, overrides={"train.seed": seed}).run()
    best = study.best
    if best is None or best.best_val_accuracy is None or best.best_val_test_accuracy is None:
        raise UserError(f"the study in {folder} has no trial that is done")
    searched = [trial for trial in study.begun_trials() if trial.source in ("paper", "optuna")]
    work = sum(trial.epoch / trial.epochs for trial in searched)
    return Found(100 * best.best_val_accuracy, 100 * best.best_val_test_accuracy, work)


def _table(found: Mapping[str, Sequence[Found]], seeds: int) -> Table:
    table = Table("search", "best validation", "its test accuracy", "work", box=None, title=f"{seeds} search seeds")
    for policy, each in found.items():
        columns = ([getattr(one, name) for one in each] for name in ("val_accuracy", "test_accuracy", "work"))
        table.add_row(policy, *(_spread(column) for column in columns))
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


if __name__ == "__main__":
    main()
