"""What many cells cost, as tables in Markdown.

python -m tests.benchmarks.scale                        the ledger of 10, 1,000 and 100,000 cells
python -m tests.benchmarks.scale --study 1000 100000    a finished study of so many cells: opened, shown, planned, ...
python -m tests.benchmarks.scale --times                crafted sets and cells of the demo preset, by the clock

A ledger is filled with what a driver writes of so many cells, with numbers of the usual length, and read again. Sizes
are exact; seconds are of the processor, of one process. A study is Table III with as many seeds as it takes, without
the directories of its runs, and each of them is opened by a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from orchestration.storage.workspace import Workspace
from orchestration.study import snapshot
from orchestration.study.grids import load_grid, specification
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec

CELLS = (10, 1_000, 100_000)
EPOCHS = 16
PARTS = ("opened", "status", "resume scan", "plan", "report (CSV)")
STUDY_HEAD = (
    f"| cells | ledger | {' | '.join(f'{part}, s' for part in PARTS)} | memory when opened | largest memory |\n"
    f"|--:|--:|{'--:|' * len(PARTS)}--:|--:|"
)
HEAD = (
    "| cells | ledger | snapshot | `json.loads` of its lines | read anew | the same, with the snapshot written "
    "| read with the snapshot | one more entry | memory of the reader |\n" + f"|{'--:|' * 9}"
)


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
        "device": "cpu",
        "mlflow_run_id": f"{draw.getrandbits(128):032x}",
    }


def fill(path: Path, cells: int, study: StudySpec | None = None) -> None:
    """Write the events of a finished sweep at once: an append for each would wait for the disk each time.

    Args:
        path: the ledger.
        cells: number of runs.
        study: the sweep, of as many listed runs. None: a sweep whose specification says nothing.
    """
    draw = random.Random(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        spec: dict[str, Any] = {"space": {}, "preset": "demo", "base": {}, "overrides": {}}
        spec = spec if study is None else study.content()
        first = {"event": "sweep", "time": 1.7e9, "name": "many", "spec": spec, "trials": 0}
        file.write(json.dumps(first) + "\n")
        for number in range(cells):
            if study is None:
                cell = f"{draw.getrandbits(64):016x}"
                params = {"defense.name": "erat", "corruption.data": "uhp", "train.seed": number}
            else:
                params = study.runs[number]
                cell = study.config(params).digest()
            proposed = {"event": "proposed", "time": 1.7e9, "sweep": "many", "number": number, "params": params}
            file.write(json.dumps(proposed | {"source": "baseline", "cell": cell}) + "\n")
            done = {"event": "done", "time": 1.7e9, "cell": cell, "sweep": "many", "result": result(cell, draw)}
            file.write(json.dumps(done | {"error": None}) + "\n")


def row(cells: int, folder: Path) -> str:
    """A line of the table: seconds of the processor, and their ratio to those that `json.loads` takes for the lines."""
    path = Workspace(folder / str(cells)).ledger
    fill(path, cells)
    with path.open("rb") as file:
        reference = processor_seconds(lambda: [None for line in file if json.loads(line) is None])
    worth, snapshot.WORTH = snapshot.WORTH, 2**62
    anew = processor_seconds(lambda: Ledger(path))
    snapshot.WORTH = worth
    writing = processor_seconds(lambda: Ledger(path))
    kept = snapshot.path_of(path)
    saved = os.path.getsize(kept) if kept.exists() else 0
    again = processor_seconds(lambda: Ledger(path))
    appending = _appending(path, cells)
    tracemalloc.start()
    opened_ledger = Ledger(path)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del opened_ledger
    sizes = f"{os.path.getsize(path) / 1e6:,.2f} MB | {saved / 1e6:,.2f} MB"
    times = " | ".join(f"{seconds:.2f} s ({seconds / reference:.2f})" for seconds in (anew, writing, again))
    return f"| {cells:,} | {sizes} | {reference:.2f} s | {times} | {appending * 1000:.1f} ms | {memory / 1e6:,.0f} MB |"


def _appending(path: Path, cells: int) -> float:
    """Return the seconds of the processor that one more entry takes."""
    ledger = Ledger(path)
    assert len(ledger.studies["many"].proposals) == cells

    def some() -> None:
        for _ in range(10):
            ledger.append("retry", cell="0" * 16, sweep="many")

    return processor_seconds(some) / 10


def processor_seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of the processor that a call takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def study_row(cells: int, folder: Path) -> str:
    """A line of the table of studies."""
    workspace = Workspace(folder / f"study-{cells}")
    grid = specification(load_grid("table3"), "demo", {}, fill=workspace.fingerprints()).runs
    runs = [grid[number % len(grid)] | {"train.seed": number // len(grid)} for number in range(cells)]
    listed = StudySpec.listing("many", "Table III, many times", runs, "demo", {}, workspace.fingerprints())
    fill(workspace.ledger, cells, listed)
    words = [sys.executable, "-m", "tests.benchmarks.scale", "--in", str(workspace.root)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    seconds = " | ".join(f"{found[part]:.2f}" for part in PARTS)
    size = os.path.getsize(workspace.ledger) / 1e6
    return f"| {cells:,} | {size:,.1f} MB | {seconds} | {found['memory']:,.0f} MB | {found['largest']:,.0f} MB |"


def opened(workspace: Workspace) -> dict[str, float]:
    """Open the study "many" of a workspace; return seconds of the processor, and megabytes beyond what imports take."""
    from orchestration.api import load_study
    from orchestration.commands.overview import of_sweep
    from orchestration.commands.plan import Room, plan_sweep
    from orchestration.search.driver import make_queue
    from orchestration.search.launch import make_sampler

    process, console, found = psutil.Process(), Console(file=io.StringIO()), dict[str, float]()
    before, largest = process.memory_info().rss, 0

    def took(part: str, work: Callable[[], Any]) -> Any:
        nonlocal largest
        started = time.process_time()
        made = work()
        found[part] = time.process_time() - started
        largest = max(largest, process.memory_info().rss)
        return made

    study = took("opened", lambda: load_study("many", workspace))
    found["memory"] = (largest - before) / 1e6
    ledger, spec = study._ledger(), study.spec
    took("status", lambda: of_sweep(workspace, "many", console))

    def scan() -> None:
        queue = make_queue(spec, 0, "many", ledger, make_sampler(spec), on_proposed=lambda trial: None)
        assert queue.next() is None, "all is done"

    took("resume scan", scan)
    took("plan", lambda: plan_sweep("many", spec, 0, workspace, ledger, console, Room(8, "eight")))
    took("report (CSV)", lambda: study.report(format="csv"))
    return found | {"largest": (largest - before) / 1e6}


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
    parser.add_argument("--study", type=int, nargs="+", metavar="CELLS", help="finished studies of so many cells")
    parser.add_argument("--in", dest="home", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.home:
        print(json.dumps(opened(Workspace(Path(arguments.home)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.times:
            times(Workspace(Path(folder)))
            return
        if arguments.study:
            print(STUDY_HEAD)
            for cells in arguments.study:
                print(study_row(cells, Path(folder)), flush=True)
            return
        print(HEAD)
        for cells in CELLS:
            print(row(cells, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
