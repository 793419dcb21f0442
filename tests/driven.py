"""A study that seems to run, for tests of what follows it: ledger, run directories and locks, but no training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from erat.result import summarise
from orchestration.run.directory import METRICS, RunDirectory
from orchestration.run.heartbeat import at_work, driving
from orchestration.storage.workspace import Workspace
from orchestration.study.entries import register
from orchestration.study.ledger import Ledger
from orchestration.study.spaces import load_space
from orchestration.study.spec import StudySpec

EPOCH = {"train_loss": 1.0, "test_accuracy": 0.5, "epoch_seconds": 2.0, "images_per_second": 100.0}


class Driven:
    """A search that this process seems to drive: its methods are the events that a driver brings about.

    Args:
        workspace: the workspace.
        name: name of the study.
        trials: number of its trials.
    """

    def __init__(self, workspace: Workspace, name: str = "budgets", trials: int = 4) -> None:
        self.workspace, self.name = workspace, name
        self.ledger = Ledger(workspace.ledger)
        self.spec = StudySpec(load_space("budgets"), "demo", {"data.fingerprint": "f" * 16})
        register(self.ledger, name, self.spec, trials)
        self._runs = ExitStack()
        self._held: dict[int, ExitStack] = {}
        self._known: dict[int, tuple[RunDirectory, list[Mapping[str, Any]]]] = {}

    @contextmanager
    def driver(self) -> Iterator[None]:
        """Hold the lock of the driver during the block, and those of the runs that have begun and not ended."""
        with driving(self.workspace, self.name), self._runs:
            yield

    def begin(self, number: int, **params: float) -> RunDirectory:
        """Propose a trial, and begin its run."""
        settings = {"defense.epsilon_inf": 0.05 * (number + 1), "defense.epsilon_2": 0.5, **params}
        run = RunDirectory(self.workspace, self.spec.config(settings).digest())
        proposal = {"number": number, "params": settings, "source": "optuna", "cell": run.cell}
        self.ledger.append("proposed", sweep=self.name, **proposal)
        run.prepare()
        held = self._held[number] = self._runs.enter_context(ExitStack())
        held.enter_context(at_work(run))
        self._known[number] = (run, [])
        return run

    def epoch(self, number: int, val_accuracy: float) -> None:
        """End an epoch of a trial."""
        run, rows = self._known[number]
        rows.append({"epoch": len(rows) + 1, "val_accuracy": val_accuracy, **EPOCH})
        (run.path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def end(self, number: int, status: str = "done", error: str | None = None) -> None:
        """End a trial."""
        run, rows = self._known[number]
        self._held[number].close()
        if error is not None:
            run.refuse(f"Traceback (most recent call last):\n  in training\n{error}")
        result = replace(summarise(run.cell, status, rows), error=error)
        self.ledger.finish(result, sweep=self.name)
