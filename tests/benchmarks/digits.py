"""Compares successive halving with median stopping and with the paper's points, on the embedded digits.

`python -m tests.benchmarks.digits --seeds 0,1,2` searches the space `joint` twice for each seed, with as many trials,
and trains the paper's eight pairs of budgets. A seed is that of the sampler and of training. Each study has a folder of
its own under `--folder`, so that no run is shared, and a comparison that is interrupted goes on when it is repeated.
The best trial is the one with the best validation accuracy; its test accuracy is only reported. A seed is the work of
some forty trainings of the demo, two at a time on two cores. What is found goes into `--results`, where other seeds may
stand already: these are in the table too, and are not searched again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from erat import UserError
from orchestration import Study

RUNGS = (4, 8)  # a quarter and a half of the demo's 16 epochs; the first is the one after warm-up
COLUMNS = ("seed", "search", "val_accuracy", "test_accuracy", "work")  # accuracies in percent, work in full trainings


def main() -> None:
    """Run the studies that are missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.digits", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of sampler and training, such as 0,1,2")
    parser.add_argument("--trials", type=int, default=24, help="trials of each search (default 24)")
    parser.add_argument("--rungs", default=",".join(map(str, RUNGS)), help="rungs of halving (default 4,8)")
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"), help="where the studies are kept")
    parser.add_argument("--results", type=Path, default=Path("docs/data/search-on-digits.csv"), help="what was found")
    asked = parser.parse_args()
    console = Console()
    policies: Mapping[str, Mapping[str, Any]] = {
        f"halving {asked.rungs}": {"space": "joint", "trials": asked.trials, "pruner": "halving", "rungs": asked.rungs},
        "median": {"space": "joint", "trials": asked.trials, "pruner": "median"},
        "paper's eight points": {"space": "budgets", "trials": 8, "pruner": "none"},
    }
    found = pd.read_csv(asked.results) if asked.results.exists() else pd.DataFrame(columns=COLUMNS)
    for seed in map(int, asked.seeds.split(",")):
        for search, options in policies.items():
            if ((found.seed == seed) & (found.search == search)).any():
                continue
            folder = asked.folder / f"{options['space']}-{options['pruner']}-{seed}"
            found.loc[len(found)] = [seed, search, *_run(folder, seed, options)]
            asked.results.parent.mkdir(parents=True, exist_ok=True)
            found = found.infer_objects()
            found.to_csv(asked.results, index=False, float_format="%.4f")
    console.print(_table(found))


def _run(folder: Path, seed: int, options: Mapping[str, Any]) -> tuple[float, float, float]:
    """Run a study, or what is left of it, and return what stands in the last three columns."""
    study = Study.create(**options, name="digits", workspace=folder, overrides={"train.seed": seed}).run()
    best = study.best
    if best is None or best.best_val_accuracy is None or best.best_val_test_accuracy is None:
        raise UserError(f"the study in {folder} has no trial that is done")
    searched = [trial for trial in study.begun_trials() if trial.source in ("paper", "optuna")]
    work = sum(trial.epoch / trial.epochs for trial in searched)
    return 100 * best.best_val_accuracy, 100 * best.best_val_test_accuracy, work


def _table(found: pd.DataFrame) -> Table:
    table = Table("search", "seeds", "best validation", "its test accuracy", "work", box=None)
    for search, each in found.groupby("search", sort=False):
        spread = (f"{each[name].mean():.2f} ± {each[name].std():.2f}" for name in COLUMNS[2:])
        table.add_row(str(search), ", ".join(map(str, each.seed)), *spread)
    return table


if __name__ == "__main__":
    main()
