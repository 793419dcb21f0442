"""What a trial waits for: the driver's work at each epoch, start, end, stop and proposal, with 64 trials at a time.

python -m tests.benchmarks driver                                  the table, at 10,000 rows
python -m tests.benchmarks.driver --rows 10000 --seconds 40        the same as JSON, with epoch reports a second

The trials train nothing and are no processes: 64 workers of Ray do not fit on a small machine. This process writes the
files that a worker leaves, and then makes the calls that Ray Tune makes in its loop, where the trial waits for them.
Ledger, MLflow (its SQLite store), queue, sampler and the live table are the real ones.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from erat.engine.report import EpochReport
from erat.errors import UserError
from erat.records import append_line
from erat.result import summarise
from orchestration.cluster import execution
from orchestration.report.live import LiveView
from orchestration.run.directory import METRICS, RESULT_FILE, RunDirectory
from orchestration.search import launch, tune
from orchestration.search.driver import StudyDriver
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import parse_space
from orchestration.study.spec import StudySpec
from orchestration.tracking.tracker import Tracker
from tests.benchmarks.harness import Comparison, Pairs, timed

SLOTS, EPOCHS, ROWS, SECONDS, LIMIT_MS = 64, 20, 10_000, 40.0, 5.0
WHAT = {
    "epoch": "an epoch reaches the driver",
    "stops": "whether a trial is stopped",
    "start": "a trial begins",
    "end": "a trial ends",
    "next": "the next trial",
}
BASE = {"data.limit": 200, "corruption.data": "none", "corruption.labels": "none", "train.epochs": EPOCHS}


def comparisons() -> Iterator[Comparison]:
    """Yield what a trial waits for, each beside one durable line on the same disk."""
    for kind, name in WHAT.items():
        yield Comparison(
            f"{name}, {ROWS:,} rows",
            "a line on the disk",
            None,
            pairs=lambda repeats, kind=kind: _pairs(kind),
            limit_ms=LIMIT_MS,
            note=f"{SLOTS} at a time, median; by wall clock",
        )


@cache
def _measured() -> dict[str, Any]:
    return measured(ROWS, SECONDS)


def _pairs(kind: str) -> Pairs:
    with TemporaryDirectory() as folder:
        line = median(timed(lambda: append_line(Path(folder) / "line", b"x" * 500)) for _ in range(50))
    return [(seconds, line) for seconds in _measured()["seconds"][kind]]


class Screen(io.StringIO):
    """A stream that claims to be a terminal, so that the table is drawn."""

    def isatty(self) -> bool:
        return True


class Fleet:
    """Trials that report in turn, as many as there are slots, and the time that each of Tune's calls takes."""

    def __init__(self, driver: StudyDriver) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.busy: dict[str, list[float]] = defaultdict(list)  # of it, how long this thread worked
        self.reports = 0
        self._driver = driver
        self._searcher = tune.QueueSearcher(driver, SLOTS, ahead=False)
        self._scheduler = tune.QueueScheduler(driver)
        self._progress = tune.Progress(driver, self._searcher.held, lambda: "", patience=600)
        self._running: dict[str, SimpleNamespace] = {}
        self._draw = random.Random(0)
        self._count = 0

    def run(self, until: Callable[[], bool]) -> None:
        """Run trials until `until` says so; those that still run are then left."""
        while not until():
            self._begin_what_may()
            for name in list(self._running):
                self._epoch(name)
                if until():
                    break

    def _begin_what_may(self) -> None:
        while len(self._running) < SLOTS:
            name = f"t{self._count}"
            parameters = self._timed("next", lambda name=name: self._searcher.suggest(name))
            if not isinstance(parameters, dict):
                return
            self._count += 1
            trial = SimpleNamespace(trial_id=name, config=parameters, history=[])
            self._running[name] = trial
            self._timed("start", lambda trial=trial: self._progress.on_trial_start(0, [], trial))

    def _epoch(self, name: str) -> None:
        trial = self._running[name]
        run = RunDirectory(self._driver.workspace, trial.config["cell"])
        trial.history.append(_report(len(trial.history) + 1, self._draw))
        with (run.path / METRICS).open("a") as file:  # the worker waits for the disk, too, but not in this process
            file.write(json.dumps(asdict(trial.history[-1])) + "\n")
        asked = run.asked_to_stop(trial.config["stop_request"])
        result = execution._report(trial.history)
        self._timed("stops", lambda: self._scheduler.on_trial_result(None, trial, result))
        self._timed("epoch", lambda: self._progress.on_trial_result(0, [], trial, result))
        self.reports += 1
        if asked or len(trial.history) == EPOCHS:
            rows = [asdict(report) for report in trial.history]
            outcome = summarise(run.cell, "stopped" if asked else "done", rows)
            (run.path / RESULT_FILE).write_text(json.dumps(asdict(outcome)))
            run.artifacts.mkdir(exist_ok=True)
            (run.artifacts / "environment.json").write_text("{}")
            del self._running[name]
            self._timed("end", lambda: self._searcher.on_trial_complete(name, result))
            self._progress.on_trial_complete(0, [], trial)
        self._progress.on_step_end(0, [])

    def _timed(self, kind: str, call: Callable[[], Any]) -> Any:
        started, busy = time.perf_counter(), time.thread_time()
        answer = call()
        self.seconds[kind].append(time.perf_counter() - started)
        self.busy[kind].append(time.thread_time() - busy)
        return answer


def _report(epoch: int, draw: random.Random) -> EpochReport:
    numbers = {entry.name: draw.random() for entry in fields(EpochReport) if entry.type in ("float", "float | None")}
    return EpochReport(**numbers | {"epoch": epoch, "loss_terms": {"ce": 1.0}, "labelled_per_class": [10] * 10})


def measured(rows: int, seconds: float) -> dict[str, Any]:
    """Run trials for some seconds in a study of which so many trials are done; return what was measured.

    Returns:
        epoch reports a second, also until MLflow has all of them, the medians and 95th percentiles in milliseconds, and
        the single times in seconds.
    """
    os.environ.update(TERM="xterm-256color", COLUMNS="140", LINES="40")
    for name in ("CI", "NO_COLOR", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        workspace = Workspace(Path(folder))
        space = {
            "name": "bench",
            "about": "null trials",
            "parameters": {"defense.eta": {"low": 0, "high": 1}},
            "window": 2 * SLOTS,
        }
        spec = StudySpec(parse_space(space, "this benchmark"), "demo", BASE)
        total = rows + 100 * SLOTS
        _fill(workspace, spec, rows, total)
        ledger, tracker = Ledger(workspace.ledger), Tracker.open(workspace)
        parent = tracker.start_parent("bench", kind="sweep", tags={})
        sampler = launch.make_sampler(spec)
        more: dict[str, Any] = {}
        if "pool" in {entry.name for entry in fields(StudyDriver)}:
            more["pool"] = stack.enter_context(ThreadPoolExecutor(1))
        driver = StudyDriver("bench", spec, total, workspace, ledger, tracker, parent, sampler, **more)
        view = stack.enter_context(LiveView("null trials", ["defense.eta"], total, Screen()))
        driver.view = view.update
        stack.enter_context(getattr(driver, "at_work", nullcontext)())
        fleet = Fleet(driver)
        while len(fleet._running) < SLOTS:  # takes in the trials that are done
            fleet._begin_what_may()
        del fleet.seconds["next"], fleet.busy["next"]
        began = time.monotonic()
        fleet.run(lambda: time.monotonic() - began >= seconds)
        in_loop = time.monotonic() - began
        tracker.flush()
        whole = time.monotonic() - began
    return {
        "rows": rows,
        "reports": fleet.reports,
        "reports_per_second": round(fleet.reports / in_loop, 1),
        "reports_per_second_until_mlflow_has_them": round(fleet.reports / whole, 1),
        "flush_seconds": round(whole - in_loop, 2),
        "median_ms": {kind: round(1000 * median(fleet.seconds[kind] or [0.0]), 3) for kind in WHAT},
        "median_busy_ms": {kind: round(1000 * median(fleet.busy[kind] or [0.0]), 3) for kind in WHAT},
        "p95_ms": {kind: round(1000 * _share(fleet.seconds[kind], 0.95), 3) for kind in WHAT},
        "counts": {kind: len(fleet.seconds[kind]) for kind in WHAT},
        "seconds": dict(fleet.seconds),
    }


def _share(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


def _fill(workspace: Workspace, spec: StudySpec, rows: int, total: int) -> None:
    """Write the ledger of a study of which `rows` trials are done."""
    register(Ledger(workspace.ledger), "bench", spec, total)
    draw, lines = random.Random(1), []
    for number in range(rows):
        params = {"defense.eta": round(draw.random(), 8)}
        cell = spec.trial(number, "optuna", params).cell
        proposed = {"event": "proposed", "sweep": "bench", "number": number, "params": params, "source": "optuna"}
        history = [{"val_accuracy": draw.random(), "test_accuracy": 0.5, "epoch_seconds": 1.0} for _ in range(EPOCHS)]
        lines += [proposed | {"cell": cell}]
        lines += [{"event": "done", "sweep": "bench", "cell": cell, "result": asdict(summarise(cell, "done", history))}]
    with workspace.ledger.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args()
    if arguments.rows < 0 or arguments.seconds <= 0:
        raise UserError("--rows must be at least 0 and --seconds above 0")
    found = measured(arguments.rows, arguments.seconds)
    print(json.dumps({key: value for key, value in found.items() if key != "seconds"}))
