"""What 10, 1,000 and 100,000 cells cost in state: `python -m tests.benchmarks.scale`, a table in Markdown; with
`--times`, what each crafted set and some cells of the demo preset cost in seconds of one core.

A ledger is filled with what a driver writes of so many cells, with numbers of the usual length, and read again. Sizes
are exact; seconds are of the processor, of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger

CELLS = (10, 1_000, 100_000)
EPOCHS = 16
HEAD = "| cells | ledger | read anew | one more entry | memory of the reader |\n|--:|--:|--:|--:|--:|"


def result(cell: str, draw: random.Random) -> dict[str, Any]:
    """A finished cell's, as `erat.result.RunResult` has it."""
    history = [draw.random() for _ in range(EPOCHS)]
    return {
        "cell": cell,
        "status": "done",
        "epochs": EPOCHS,
        "val_accuracy": history[-1],
        "best_val_accuracy": max(history),
        "final_test_accuracy": draw.random(),
        "best_val_test_accuracy": draw.random(),
        "train_seconds": draw.random() * 100,
        "peak_memory_mb": draw.random() * 1000,
        "noise_rate": 0.6,
        "checksum": f"{draw.getrandbits(256):064x}",
        "error": None,
        "val_history": history,
        "mlflow_run_id": f"{draw.getrandbits(128):032x}",
    }


def fill(path: Path, cells: int) -> None:
    """The events of a finished sweep, written at once: an append for each would wait for the disk each time."""
    draw = random.Random(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        spec: dict[str, Any] = {"space": {}, "preset": "demo", "base": {}, "overrides": {}}
        first = {"event": "sweep", "time": 1.7e9, "name": "many", "spec": spec, "trials": 0}
        file.write(json.dumps(first) + "\n")
        for number in range(cells):
            cell = f"{draw.getrandbits(64):016x}"
            params = {"defense.name": "erat", "corruption.data": "uhp", "train.seed": number}
            proposed = {"event": "proposed", "time": 1.7e9, "sweep": "many", "number": number, "params": params}
            file.write(json.dumps(proposed | {"source": "baseline", "cell": cell}) + "\n")
            done = {"event": "done", "time": 1.7e9, "cell": cell, "sweep": "many", "result": result(cell, draw)}
            file.write(json.dumps(done | {"error": None}) + "\n")


def row(cells: int, folder: Path) -> str:
    """A line of the table."""
    path = Workspace(folder / str(cells)).ledger
    fill(path, cells)
    started = time.process_time()
    ledger = Ledger(path)
    read = time.process_time() - started
    assert len(ledger.studies["many"].proposals) == cells
    started = time.process_time()
    for _ in range(10):
        ledger.append("retry", cell="0" * 16, sweep="many")
    append = (time.process_time() - started) / 10
    del ledger
    tracemalloc.start()
    kept = Ledger(path)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    size = os.path.getsize(path)
    return f"| {cells:,} | {size / 1e6:,.2f} MB | {read:.2f} s | {append * 1000:.1f} ms | {memory / 1e6:,.0f} MB |"


def times(workspace: Workspace) -> None:
    """Seconds of crafting and of training, as they pass."""
    from erat.config import build
    from erat.corruption.pipeline import corrupted_set
    from erat.registry import CORRUPTIONS
    from erat.training import threads
    from orchestration.run.execute import execute_run

    def took(what: str, work: Callable[[], Any]) -> None:
        started = time.monotonic()
        work()
        print(f"| {what} | {time.monotonic() - started:.1f} s |", flush=True)

    print("| of the demo preset | one core |\n|---|--:|")
    for kind in CORRUPTIONS.names():
        config = build("demo", {"corruption.data": kind}, quiet=True)
        with threads(config):
            took(f"crafting {kind}", lambda config=config: corrupted_set(config, workspace.store()))
    for name in ("ce", "at", "erat", "dividemix", "unicon"):
        config = build("demo", {"corruption.data": "urp", "defense.name": name}, quiet=True)
        took(f"a cell of {name}, {config.train.epochs} epochs", lambda config=config: execute_run(config, workspace))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", action="store_true", help="seconds instead of state")
    with tempfile.TemporaryDirectory() as folder:
        if parser.parse_args().times:
            times(Workspace(Path(folder)))
            return
        print(HEAD)
        for cells in CELLS:
            print(row(cells, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
