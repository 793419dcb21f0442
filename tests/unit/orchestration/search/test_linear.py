"""Tests that what the driver does grows with the number of trials times their epochs, and no faster: by counting."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from erat.engine.report import EpochReport
from erat.result import summarise
from orchestration.cluster import execution
from orchestration.run.directory import RunDirectory
from orchestration.run.places import Place
from orchestration.search.driver import StudyDriver
from orchestration.search.launch import make_sampler
from orchestration.search.tune import Progress, QueueScheduler, QueueSearcher
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spec import StudySpec
from tests.tracked import Untracked

MINE = ("/orchestration/", "/erat/")
FEW, MORE = 24, 4  # trials; how many times as many the second time, and how many times as many epochs


class Tracker(Untracked):
    """A tracker that has everything at once."""

    def start_run(self, cell: str, config: Any, **options: Any) -> str:
        return f"run-{cell}"

    def log_epoch(self, run_id: str, row: Any, epoch: int) -> None: ...

    def finish(self, run_id: str, status: str, summary: Any, *_: Any) -> None: ...


@contextmanager
def counted(lines: list[int]) -> Iterator[None]:
    """Add up the lines of this project that the thread executes in the block."""

    def line(frame: FrameType, event: str, _: Any) -> Any:
        lines[0] += event == "line"
        return line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: line if any(part in frame.f_code.co_filename for part in MINE) else None)
    try:
        yield
    finally:
        sys.settrace(before)


def lines_of(folder: Path, trials: int, epochs: int) -> int:
    """Return how many lines the driver executes while these trials run on four workers, each after the other.

    Args:
        folder: where they run.
        trials: number of trials.
        epochs: number of epochs of each.
    """
    workspace = Workspace(folder)
    overrides = {"train.epochs": epochs, "corruption.data": "none", "corruption.labels": "none"}
    spec = StudySpec.listing("many", "", [{"train.seed": seed} for seed in range(trials)], "demo", overrides)
    ledger, lines = Ledger(workspace.ledger), [0]
    register(ledger, "many", spec, 0)
    driver = StudyDriver("many", spec, 0, workspace, ledger, Tracker(), "parent", make_sampler(spec))  # type: ignore[arg-type]
    search = QueueSearcher(driver, 4, ahead=True)
    scheduler = QueueScheduler(driver)
    progress = Progress(driver, search.held, lambda: "", patience=600)
    reports = [EpochReport(epoch, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 0.0, 0.0, 0.1) for epoch in range(1, epochs + 1)]
    sent = [execution._report(reports[: epoch + 1]) for epoch in range(epochs)]
    rows = [asdict(report) for report in reports]

    def tell(trial: Any, result: dict[str, Any]) -> None:
        with counted(lines):
            scheduler.on_trial_result(None, trial, result)
            search.on_trial_result(trial.trial_id, result)
            progress.on_trial_result(0, [], trial, result)
            progress.on_step_end(0, [])

    def begin(name: str) -> Any:
        with counted(lines):
            parameters = search.suggest(name)
        trial = SimpleNamespace(trial_id=name, config=parameters)
        if isinstance(parameters, dict):
            with counted(lines):
                progress.on_trial_start(0, [], trial)
            place = Place("a", "10.0.0.7")
            tell(trial, execution._figures(0, None, None) | {execution.PLACE: json.dumps(asdict(place))})
        return trial

    ended = 0
    with ledger.in_background():
        workers = [begin(f"first {number}") for number in range(4)]
        while ended < trials:
            for index, trial in enumerate(workers):
                if not isinstance(trial.config, dict):
                    continue
                run = RunDirectory(workspace, trial.config["cell"])
                for result in sent:
                    tell(trial, result)
                run.write_metrics(reports)
                run.keep_result(summarise(run.cell, "done", rows))
                tell(trial, execution._figures(epochs, 0.5, 0.5))
                ended += 1
                with counted(lines):
                    search.on_trial_complete(trial.trial_id)
                workers[index] = begin(f"{ended}")
    assert sum(trial.status == "done" for trial in driver.trials) == trials
    return lines[0]


def test_it_grows_with_the_trials(tmp_path: Path) -> None:
    few, many = (lines_of(tmp_path / str(n), n, 2) for n in (FEW, MORE * FEW))
    assert many <= 1.05 * MORE * few


def test_it_grows_with_the_epochs(tmp_path: Path) -> None:
    few, many = (lines_of(tmp_path / str(n), 4, n) for n in (16, MORE * 16))
    assert many <= 1.05 * MORE * few


def test_what_grows_faster_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over all trials at the start of each is enough."""
    started = StudyDriver.started

    def slow(self: StudyDriver, number: int) -> None:
        started(self, number)
        for trial in self.queue.trials.values():
            trial.status, trial.epoch  # noqa: B018

    monkeypatch.setattr(StudyDriver, "started", slow)
    few, many = (lines_of(tmp_path / str(n), n, 2) for n in (FEW, MORE * FEW))
    assert many > 1.05 * MORE * few
