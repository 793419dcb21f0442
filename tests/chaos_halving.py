"""Compares a search by successive halving under random kills with an undisturbed one: `python -m tests.chaos_halving`.

The processes are those of `tests.chaos`; the workers of trials and the driver are killed. The undisturbed search runs
first, in this process, without Ray and one trial after the other. At the end the ledger must have the same trials, the
same pauses, promotions and stops, and the same numbers to the last bit, and MLflow must have each trial once.

The output is the table of kills and the comparison, as Markdown; the exit status is 0 if everything is as it must be.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestration.run.execute import execute_run
from orchestration.search.driver import make_queue
from orchestration.search.launch import make_sampler
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from tests.chaos import (
    NAME,
    Stage,
    disturbed,
    ends_of,
    faults_of_counting,
    judged,
    numbers_of,
    options_of,
)

EPOCHS, RUNGS, TRIALS = 18, [3, 9], 18
SPACE: dict[str, Any] = {
    "name": NAME,
    "about": "a search under kills",
    "parameters": {
        "train.lr": {"low": 0.001, "high": 0.2, "log": True},
        "train.weight_decay": {"low": 0, "high": 1},
    },
    "proposals": TRIALS,
    "pruner": "halving",
    "rungs": RUNGS,
    "block": 6,
    "window": 4,
}
BASE = {
    "defense.name": "at",
    "data.limit": 200,
    "corruption.data": "none",
    "corruption.labels": "symmetric",
    "corruption.rate": 0.3,
    "train.epochs": EPOCHS,
    "train.batch_size": 32,
    "train.schedule": "cosine",
}
WHAT = {"trial worker": 14, "driver": 6}
BETWEEN = 4  # epochs; the whole search has about 117, so that the kills also meet promoted trials
Table = dict[str, dict[Any, Any]]


def undisturbed(folder: Path) -> Table:
    """Run the search in this process, one trial after the other, and return its table."""
    workspace = Workspace(folder / "control")
    spec = StudySpec(parse_space(SPACE, "SPACE"), "demo", BASE, workspace.fingerprints())
    register(Ledger(workspace.ledger), NAME, spec, TRIALS)
    promoted: dict[int, int] = {}
    queue = make_queue(
        spec,
        TRIALS,
        NAME,
        Ledger(workspace.ledger),
        make_sampler(spec),
        on_proposed=lambda trial: None,
        on_promoted=lambda trial, epoch: promoted.update({trial.number: epoch}),
    )
    paused = set()
    while (trial := queue.next()) is not None:
        rung = queue.pauses_after(trial.number)
        result = execute_run(spec.config(trial.params), workspace, pause_after=rung)
        queue.record(trial.number, result)
        if result.status == "paused":
            paused.add((trial.cell, result.epochs))
    assert queue.exhausted, "every trial has ended"
    return {
        "trials": {number: (trial.cell, trial.params) for number, trial in queue.trials.items()},
        "ends": {trial.cell: numbers_of(asdict(trial.so_far)) for trial in queue.trials.values()},
        "promoted": promoted,
        "paused": dict.fromkeys(paused, 1),
    }


def disturbed_table(stage: Stage) -> Table:
    """Return what the ledger has; a pause counts as often as it was recorded."""
    events = [json.loads(line) for line in stage.workspace.ledger.read_text().splitlines()]
    return {
        "trials": {e["number"]: (e["cell"], e["params"]) for e in events if e["event"] == "proposed"},
        "ends": {end["cell"]: numbers_of(end["result"]) for end in ends_of(stage)},
        "promoted": {e["number"]: e["epoch"] for e in events if e["event"] == "promoted"},
        "paused": dict(Counter((e["cell"], e["result"]["epochs"]) for e in events if e["event"] == "paused")),
    }


def faults(stage: Stage, control: Table) -> list[str]:
    """Return the differences from the undisturbed search, as text; an empty list if there are none."""
    got, found = disturbed_table(stage), []
    for what, wanted in control.items():
        for key in sorted(wanted.keys() | got[what].keys(), key=str):
            if wanted.get(key) != got[what].get(key):
                found.append(f"{what}, {key}: {got[what].get(key)} is not {wanted.get(key)}")
    return found + faults_of_counting(stage, control["ends"])


def main() -> int:
    """Run the searches and return the exit status."""
    options = options_of(__doc__, 20, 3000)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        control = undisturbed(folder)
        stage, began = Stage(folder, stack, SPACE, BASE), time.monotonic()
        kills = disturbed(stage, random.Random(options.seed), options.kills, options.limit, WHAT, between=BETWEEN)
        seconds = time.monotonic() - began
        wrong = faults(stage, control)
        statuses = Counter(numbers["status"] for numbers in control["ends"].values())
        print(
            f"Seed {options.seed}: {TRIALS} trials, rungs {RUNGS} of {EPOCHS} epochs, {seconds:.0f} s, "
            f"MLflow on {stage.store}; {len(control['paused'])} pauses, {dict(statuses)}.\n"
        )
        right = f"The table equals that of the undisturbed search: {TRIALS} trials, each ended once."
        return judged(stage, kills, options.kills, wrong, right)


if __name__ == "__main__":
    sys.exit(main())
