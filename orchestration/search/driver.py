"""Listens to a running study and keeps ledger, tracker and view up to date. Knows neither Ray nor MLflow inside."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from erat.config import RunConfig
from erat.files import write_atomic
from erat.records import read_words
from erat.result import RunResult, summarise
from orchestration.report.documents import grid_text, matrix_text, search_text
from orchestration.report.matrix import is_matrix
from orchestration.report.summary import best
from orchestration.run.directory import ENDS, read_departure, read_metrics, read_refusal, read_result
from orchestration.run.retries import OUT_OF_MEMORY, Retries, Retry
from orchestration.search.queue import Queue, Sampler, Trial
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger, Outcome
from orchestration.study.spec import StudySpec
from orchestration.study.trial import FINISHED, Trial
from orchestration.tracking.tracker import Tracker

SUMMARY_METRICS = ("final_test_accuracy", "best_val_test_accuracy", "best_val_accuracy", "train_seconds")


@dataclass
class StudyDriver:
    """Listens to a running sweep and keeps ledger, tracker and view up to date.

    Args:
        view: shown the rows after every event.
        work_of: how long a run is, so that the longest baselines begin first; none: in their order.
        ready: number of a trial -> whether it may begin.
        parent: the tracker's run of the sweep.
    """

    name: str
    spec: StudySpec
    total: int
    workspace: Workspace
    ledger: Ledger
    tracker: Tracker
    parent: str
    sampler: Sampler
    view: Callable[[list[Trial]], None] = lambda rows: None
    work_of: Callable[[RunConfig], float] | None = None
    ready: Callable[[int], bool] = lambda number: True
    rows: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = make_queue(
            self.spec, self.total, self.name, self.ledger, self.sampler, self._proposed, self.work_of, self.ready
        )
        self._runs: dict[int, str] = {}
        self._retries = Retries()

    # -- told by the search -----------------------------------------------------------------------------------------

    def trial_parameters(self, trial: Trial) -> dict[str, Any]:
        """What a worker is given."""
        config = self.spec.config(trial.overrides)
        self.workspace.prepare(trial.cell)
        return {
            "number": trial.number,
            "cell": trial.cell,
            "workspace": str(self.workspace.root),
            "config": config.model_dump_json(),
            "stop_request": self._stop_file(trial.cell).name,
        }

    def started(self, number: int) -> None:
        """A trial begins, or goes on from its checkpoint."""
        row = self.rows[number]
        row.status = "running"
        self._track_start(row)
        self.epoch(number)

    def epoch(self, number: int) -> None:
        """An epoch ended: take in what the cell's folder says."""
        row = self.rows[number]
        self.workspace.fetch(row.cell, "metrics.jsonl")
        metrics = read_metrics(self.workspace.run_directory(row.cell))
        row.take_in(asdict(summarise(row.cell, row.status, metrics)))
        for entry in metrics:
            self.tracker.log_epoch(self._runs[number], entry, entry["epoch"])
        self.view(self.trials)

    def stop(self, number: int, epoch: int) -> None:
        """Ask a trial to stop after this epoch; its later ones, if it had begun any, do not count."""
        path = self._stop_file(self.rows[number].cell)
        if not path.exists():
            write_atomic(path, str(epoch).encode())
            self.workspace.send(self.rows[number].cell, path.name)

    def heard(self, number: int, words: str) -> None:
        """What Ray says of a worker that died."""
        self._retries.heard(number, words)

    def ended(self, number: int) -> Outcome | Retry:
        """A trial is over: record how; or it is to run again."""
        row = self.rows[number]
        outcome = self._outcome(row)
        if isinstance(outcome, Retry):
            with_fewer = ", with fewer beside it" if outcome.fewer else ""
            warnings.warn(f"trial {number}: {outcome.reason}; it goes on{with_fewer}", stacklevel=2)
            row.status = "queued"
            self.view(self.trials)
            return outcome
        if number not in self._runs:
            self._track_start(row)
        self.epoch(number)
        row.take_in(outcome.result)
        track_end(self.tracker, self._runs[number], outcome, self.workspace.run_directory(row.cell))
        # Last: a driver that dies before this line finds the cell's result again, and tells the tracker what it lacks.
        self.ledger.finish(row.cell, outcome.status, outcome.result, sweep=self.name, error=outcome.error)
        self.view(self.trials)
        return outcome

    def interrupted(self) -> None:
        """The sweep was cut short: what ran is queued again."""
        for number, row in self.rows.items():
            if row.status == "running":
                row.status = "queued"
                self.tracker.finish(self._runs[number], "interrupted", {}, None, None)

    # -- rows -------------------------------------------------------------------------------------------------------

    def all_rows(self) -> list[Trial]:
        """In the order of their numbers."""
        return [self.rows[number] for number in sorted(self.rows)]

    def _proposed(self, trial: Trial) -> None:
        config = self.spec.config(trial.overrides)
        known = self.ledger.studies[self.name].proposals.get(trial.number)
        if known is None or known.cell != trial.cell:  # one that cannot be made was passed over
            self.ledger.append(
                "proposed",
                sweep=self.name,
                number=trial.number,
                params=trial.overrides,
                source=trial.source,
                cell=trial.cell,
            )
        self.rows[trial.number] = row = Trial(
            trial.number,
            trial.cell,
            trial.overrides,
            source=trial.source,
            epochs=config.train.epochs,
            config=config.flat(),
        )
        if trial.outcome is not None:
            row.take_in(trial.outcome.result)

    def _outcome(self, row: Trial) -> Outcome | Retry:
        folder = self.workspace.run_directory(row.cell)
        self.workspace.fetch(row.cell, "metrics.jsonl", *ENDS)
        self.workspace.fetch(row.cell, *self.workspace.names(row.cell, "artifacts"))
        result, stop_epoch = read_result(folder), self._stop_epoch(row.cell)
        if result is None or (result.error or "").startswith(OUT_OF_MEMORY):
            failed = self._failed(row, result)
            if isinstance(failed, Retry):
                return failed
            result = failed
        elif result.status == "stopped" or (result.status == "done" and stop_epoch is not None):
            # Data-parallel workers may be past the epoch, even at the end, when they see that they were to stop.
            stopped = summarise(row.cell, "stopped", read_metrics(folder)[:stop_epoch])
            kept = {key: getattr(result, key) for key in ("noise_rate", "checksum", "peak_memory_mb")}
            result = replace(stopped, **kept)
            self._stop_file(row.cell).unlink(missing_ok=True)
            self.workspace.send(row.cell, self._stop_file(row.cell).name)
        content = asdict(result) | {"mlflow_run_id": self._runs.get(row.number)}
        return Outcome(result.status, content, result.error)

    def _failed(self, row: Trial, result: RunResult | None) -> RunResult | Retry:
        """What to make of a trial that left no result, or ran out of memory."""
        folder = self.workspace.run_directory(row.cell)
        rows = read_metrics(folder)
        failed = result or summarise(row.cell, "failed", rows)
        if result is None and (refusal := read_refusal(folder)) is not None:
            failed.error = refusal
            return failed
        if result is None and (departure := read_departure(folder)) is not None:
            return Retry(fewer=False, reason=f"its worker was {departure}")
        if result is None:
            verdict = self._retries.died(row.number, len(rows))
        else:
            verdict = self._retries.out_of_memory(row.number, result.error or OUT_OF_MEMORY)
        if isinstance(verdict, Retry):
            return verdict
        failed.error = verdict
        return failed

    def _track_start(self, row: Trial) -> None:
        run = self.tracker.start_run(row.cell, row.config, parent=self.parent, sweep=self.name, source=row.source)
        self._runs[row.number] = row.mlflow_run_id = run

    def _stop_file(self, cell: str) -> Path:
        return self.workspace.run_directory(cell) / f"stop-{self.name}"

    def _stop_epoch(self, cell: str) -> int | None:
        words = read_words(self._stop_file(cell)) or ""
        return int(words) if words.isascii() and words.isdigit() and 0 < len(words) < 10 and int(words) else None


def make_queue(
    spec: StudySpec,
    total: int,
    name: str,
    ledger: Ledger,
    sampler: Sampler,
    on_proposed: Callable[[Trial], None] = lambda trial: None,
    work_of: Callable[[RunConfig], float] | None = None,
    ready: Callable[[int], bool] = lambda number: True,
) -> Queue:
    """The generations of a sweep, as its specification and the ledger have them."""
    known = spec.proposals(ledger.studies[name]) if name in ledger.studies else {}
    epochs = spec.base.train.epochs
    return Queue(
        space=spec.space,
        points=spec.space.scaled_points(spec.base.data.name),
        total=total,
        sampler=sampler,
        known=known,
        cell_of=lambda overrides: spec.config(overrides).digest(),
        outcome_of=lambda cell: ledger.outcome(cell, name),
        on_proposed=on_proposed,
        patience_epochs=max(1, round(spec.space.grace * epochs)),
        epochs=epochs,
        work_of=(lambda overrides: work_of(spec.config(overrides))) if work_of else lambda overrides: 0.0,
        ready=ready,
    )


def track_end(tracker: Tracker, run_id: str, outcome: Outcome, folder: Path) -> None:
    """Tell the tracker how a cell ended."""
    tracker.finish(
        run_id,
        outcome.status,  # type: ignore[arg-type]
        {key: outcome.result.get(key) for key in SUMMARY_METRICS},
        folder / "artifacts" if outcome.status in FINISHED else None,
        outcome.error,
    )


def write_report(driver: StudyDriver) -> list[str]:
    """Tables and figures of a sweep into its report folder; their paths."""
    # What draws loads slowly: only what draws pays.
    from orchestration.report.figures import sweep_figure
    from orchestration.report.grid_figure import grid_figure

    folder = driver.workspace.report(driver.name)
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = driver.trials, driver.spec.space.columns
    searched = [row for row in rows if row.source != "baseline"]
    baselines = [row for row in rows if row.source == "baseline"]
    documents = {
        "summary.md": search_text("md", rows, columns),
        "summary.csv": search_text("csv", rows, columns),
        "spec.json": json.dumps(driver.spec.content(), indent=2, default=str),
    }
    for name, text in documents.items():
        write_atomic(folder / name, text.encode())
    if driver.spec.space.parameters:
        figures = sweep_figure(driver.spec.space.name, searched, baselines, folder)
    elif is_matrix(rows):
        for name, text in {"matrix.md": matrix_text("md", rows), "matrix.csv": matrix_text("csv", rows)}.items():
            write_atomic(folder / name, text.encode())
        figures = [folder / "matrix.md", folder / "matrix.csv"]
    else:
        write_atomic(folder / "grid.md", grid_text("md", rows, columns).encode())
        figures = [folder / "grid.md", *grid_figure(rows, folder)]
    return [str(folder / "summary.md"), str(folder / "summary.csv"), *map(str, figures)]


def result_json(row: Trial) -> dict[str, Any]:
    """A run as `--json` prints it."""
    return {
        "cell": row.cell,
        "status": row.status,
        "config": row.config,
        "final_test_accuracy": row.final_test_accuracy,
        "best_val_test_accuracy": row.best_val_test_accuracy,
        "val_accuracy": row.val_accuracy,
        "train_seconds": row.seconds,
        "mlflow_run_id": row.mlflow_run_id,
        "error": row.error,
    }


def best_json(rows: list[Trial]) -> dict[str, Any] | None:
    """The chosen run as `--json` prints it, with what was searched."""
    chosen = best(rows)
    return None if chosen is None else result_json(chosen) | {"params": chosen.params, "number": chosen.number}
