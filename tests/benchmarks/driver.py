"""What a trial waits for: the driver's work at each epoch, start, end, stop and proposal, with 64 trials at a time.

python -m tests.benchmarks driver                              the table, at 10,000 rows, each trial an epoch a second
python -m tests.benchmarks.driver --rows 10000 --seconds 40    JSON, with the epoch reports a second that it sustains
python -m tests.benchmarks.driver --pace 64                    the same at no more than so many epoch reports a second

The trials train nothing and are no processes: 64 workers of Ray do not fit on a small machine. This process writes the
files that a worker leaves, and then makes the calls that Ray Tune makes in its loop, where the trial waits for them.
Ledger, MLflow (its SQLite store), queue, sampler and the live table are the real ones.

On a machine that other programs use, a call's wall time is mostly theirs. Beside it stand its own processor time, and
that of this whole process during the call, which counts what the call waits for in the other threads, and more.
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
    "poll": "that the next trial is not there yet",
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
            note=f"{SLOTS} at a time, each an epoch a second; median, by wall clock",
        )


@cache
def _measured() -> dict[str, Any]:
    return measured(ROWS, SECONDS, pace=SLOTS)


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
        self.process: dict[str, list[float]] = defaultdict(list)  # how long all threads worked meanwhile, together
        self.reports = 0
        self._driver = driver
        self._searcher = tune.QueueSearcher(driver, SLOTS, ahead=False)
        self._scheduler = tune.QueueScheduler(driver)
        self._progress = tune.Progress(driver, self._searcher.held, lambda: "", patience=600)
        self._running: dict[str, SimpleNamespace] = {}
        self._draw = random.Random(0)
        self._count = 0

    def run(self, seconds: float, pace: float = 0.0) -> None:
        """Run trials for so long; those that still run are then left.

        Args:
            seconds: how long.
            pace: most epochs of all trials in a second; 0: as many as the driver takes.
        """
        began, before = time.monotonic(), self.reports
        while time.monotonic() - began < seconds:
            self.begin_what_may()
            for name in list(self._running):
                self._epoch(name)
                if pace:
                    time.sleep(max(0.0, began + (self.reports - before) / pace - time.monotonic()))
                if time.monotonic() - began >= seconds:
                    break

    def fill(self) -> None:
        """Take in the trials that are done, and begin as many as there are slots; what that takes is forgotten.

        They are left with different numbers of epochs, so that they end one after another.
        """
        while len(self._running) < SLOTS:
            self.begin_what_may()
        for place, name in enumerate(list(self._running)):
            for _ in range(place * EPOCHS // SLOTS):
                if name in self._running:  # it may have been stopped
                    self._epoch(name)
        for times in (self.seconds, self.busy, self.process):
            times.clear()

    def begin_what_may(self) -> None:
        """Begin trials as far as there are slots and proposals."""
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
        clocks = time.perf_counter, time.thread_time, time.process_time
        before = [clock() for clock in clocks]
        answer = call()
        after = [clock() for clock in clocks]
        kind = "poll" if kind == "next" and not isinstance(answer, dict) else kind
        for times, begun, ended in zip((self.seconds, self.busy, self.process), before, after, strict=True):
            times[kind].append(ended - begun)
        return answer


def _report(epoch: int, draw: random.Random) -> EpochReport:
    numbers = {entry.name: draw.random() for entry in fields(EpochReport) if entry.type in ("float", "float | None")}
    return EpochReport(**numbers | {"epoch": epoch, "loss_terms": {"ce": 1.0}, "labelled_per_class": [10] * 10})


def measured(rows: int, seconds: float, pace: float = 0.0) -> dict[str, Any]:
    """Run trials for some seconds in a study of which so many trials are done; return what was measured.

    Args:
        rows: number of trials that are done.
        seconds: how long.
        pace: most epochs in a second; 0: as many as the driver takes.

    Returns:
        epoch reports a second, also until MLflow has all of them, the medians and 95th percentiles in milliseconds, and
        the single times in seconds. "busy" is the processor time of the call itself, "process" that of all threads.
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
            more["pool"] = pool = ThreadPoolExecutor(1)
            stack.callback(pool.shutdown, cancel_futures=True)
        driver = StudyDriver("bench", spec, total, workspace, ledger, tracker, parent, sampler, **more)
        view = stack.enter_context(LiveView("null trials", ["defense.eta"], total, Screen()))
        driver.view = view.update
        stack.enter_context(getattr(driver, "at_work", nullcontext)())
        fleet = Fleet(driver)
        fleet.fill()
        began, reports, used = time.monotonic(), fleet.reports, time.process_time()
        fleet.run(seconds, pace)
        in_loop, used = time.monotonic() - began, time.process_time() - used
        tracker.flush()
        whole = time.monotonic() - began
    return {
        "rows": rows,
        "reports": fleet.reports - reports,
        "reports_per_second": round((fleet.reports - reports) / in_loop, 1),
        "reports_per_processor_second": round((fleet.reports - reports) / used, 1),
        "reports_per_second_until_mlflow_has_them": round((fleet.reports - reports) / whole, 1),
        "flush_seconds": round(whole - in_loop, 2),
        "median_ms": {kind: round(1000 * median(fleet.seconds[kind] or [0.0]), 3) for kind in WHAT},
        "median_busy_ms": {kind: round(1000 * median(fleet.busy[kind] or [0.0]), 3) for kind in WHAT},
        "median_process_ms": {kind: round(1000 * median(fleet.process[kind] or [0.0]), 3) for kind in WHAT},
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
    parser.add_argument("--pace", type=float, default=0.0)
    arguments = parser.parse_args()
    if arguments.rows < 0 or arguments.seconds <= 0 or arguments.pace < 0:
        raise UserError("--rows and --pace must be at least 0 and --seconds above 0")
    found = measured(arguments.rows, arguments.seconds, arguments.pace)
    print(json.dumps({key: value for key, value in found.items() if key != "seconds"}))
