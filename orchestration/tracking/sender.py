"""Send to MLflow what the outbox holds, and read what MLflow has of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erat.errors import shown
from orchestration.tracking.found import FoundRun
from orchestration.tracking.text import (
    EPOCH_METRICS,
    PARENT,
    RUN_NAME,
    TAG_LENGTH,
    as_tags,
    legal_name,
    metric_name,
    quoted,
    text,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run, RunTag

_ALWAYS = "val_accuracy"  # every epoch has it
# These names stand in files on disk, where calls wait for a server.
_CALLS = (
    "_send_start",
    "_send_epoch",
    "_send_epochs",
    "_send_missing",
    "_send_summary",
    "_send_artifacts",
    "_send_end",
)
# MLflow's limits: characters in a param, entries and metrics in one request.
_PARAM_LENGTH, _BATCH, _METRIC_BATCH = 6000, 100, 1000
_PAGE = 500  # runs that are asked for at a time


class Sender:
    """The calls to one MLflow store; each that sends something is harmless to repeat.

    A run is named by MLflow's id, or by a substitute that stands for the id while the run has not been begun.

    Attributes:
        client: MLflow's client of the store.
        experiment_id: MLflow's id of the experiment "erat".
        opening: substitutes of runs that are to be begun by a call that waits.
        fresh: substitutes of runs that cannot be in the store, until they are sent.
    """

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.opening: set[str] = set()
        self.fresh: set[str] = set()
        self._ids: dict[str, str] = {}  # substitute -> MLflow's id
        self._last_epoch: dict[str, int] = {}  # MLflow's id -> last step in the store
        self._refused = 0  # number of successive failures of a call while the store answered

    def id_of(self, run_id: str) -> str:
        """Return MLflow's id of a run, given the id or a substitute; the substitute while the id is not known."""
        return self._ids.get(run_id, run_id)

    def epochs_of(self, run_id: str) -> set[int]:
        """Return the epochs that MLflow has of a run."""
        return self._steps(run_id, _ALWAYS)

    def runs_of(self, sweep: str) -> Iterator[FoundRun]:
        """Yield the runs that MLflow has of a study, its parent run first and then the latest."""
        for condition in (" and tags.role = 'parent'", " and tags.cell != ''"):
            token = None
            while True:
                query = f"tags.sweep = {quoted(sweep)}{condition}"
                page = self.client.search_runs([self.experiment_id], query, max_results=_PAGE, page_token=token)
                for run in page:
                    data = run.data
                    yield FoundRun(run.info.run_id, run.info.status, data.tags, data.params.keys(), data.metrics)
                token = page.token
                if not token:
                    break

    def make(self, name: str, arguments: list[Any]) -> None:
        """Make the call of this name.

        Raises:
            ValueError: There is no call of this name.
            Exception: MLflow refuses the call, or does not answer.
        """
        if name not in _CALLS:
            raise ValueError(f"{shown(name)} is none of this program's calls")
        getattr(self, name)(*arguments)

    def hopeless(self, error: Exception, failures: int) -> bool:
        """Return whether to give a call up: it was refused, or it fails again and again while the store answers.

        Args:
            error: the error of the last attempt.
            failures: how often the call has failed.
        """
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"):
                return True
        elif isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error, OSError):
            return True
        # A single failure does not count, because the store may have recovered between the call and `_answers`.
        self._refused = self._refused + 1 if failures >= 5 and self._answers() else 0
        return self._refused >= 3

    def _answers(self) -> bool:
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:
            return False
        return True

    def _send_start(
        self, stand_in: str, tags: Mapping[str, Any], params: Mapping[str, Any], now: int, known: str | None = None
    ) -> None:
        fresh = stand_in in self.fresh
        self.fresh.discard(stand_in)  # from the first attempt on, it may be there although no answer came
        known = self._ids.get(stand_in, known)
        parent = self.id_of(tags[PARENT]) if PARENT in tags else None
        texts = as_tags(tags)
        texts |= {PARENT: parent} if parent else {}
        run = None if known is None else self._recalled(known, texts)
        if run is None and not fresh:
            run = self._find(texts, parent)
        if run is None:
            run = self.client.create_run(self.experiment_id, start_time=now, tags=texts)
            self._last_epoch[run.info.run_id] = 0
        else:
            self.client.update_run(run.info.run_id, status="RUNNING")
            # Its name stays, because somebody may have given it another one on MLflow's page.
            self.client.log_batch(run.info.run_id, tags=_tags({k: v for k, v in texts.items() if k != RUN_NAME}))
            if "error" in run.data.tags:
                self.client.delete_tag(run.info.run_id, "error")
        self._send_params(run, params)
        self._ids[stand_in] = run.info.run_id
        self.opening.discard(stand_in)

    def _recalled(self, run_id: str, tags: Mapping[str, str]) -> Run | None:
        """Return the run of an id from earlier; None if the store, which may be another one, does not have that run."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        same = all(run.data.tags.get(key) == tags.get(key) for key in ("cell", "sweep"))
        return run if same and run.info.lifecycle_stage == "active" else None

    def _find(self, tags: Mapping[str, str], parent: str | None) -> Run | None:
        keys = ("sweep", "role") if "role" in tags else ("cell",)
        query = " and ".join(f"tags.{key} = {quoted(tags[key])}" for key in keys)
        runs = self.client.search_runs([self.experiment_id], query)
        return next((run for run in runs if run.data.tags.get(PARENT) == parent), None)

    def _send_params(self, run: Run, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow does not let a param change. Paths such as data.root may differ when a run is resumed on another
        # machine; the first values are kept.
        texts = {legal_name(key): text(value, _PARAM_LENGTH) for key, value in config.items()}
        params = [Param(key, value) for key, value in texts.items() if key not in run.data.params]
        for begin in range(0, len(params), _BATCH):
            self.client.log_batch(run.info.run_id, params=params[begin : begin + _BATCH])

    def _send_epoch(self, run_id: str, row: Mapping[str, float | None], epoch: int, now: int) -> None:
        self._send_epochs([run_id, row, epoch, now])

    def _send_epochs(self, *epochs: Sequence[Any]) -> None:
        """Send epochs of one run together: (run, row, epoch, time in milliseconds since 1970) of each."""
        run_id = self.id_of(epochs[0][0])
        last, new = self._last(run_id), []
        for _, row, epoch, now in epochs:
            if epoch > last:
                new.append((row, epoch, now))
                last = epoch
        self._log_epochs(run_id, new)
        self._last_epoch[run_id] = last

    def _send_missing(self, run_id: str, epochs: Sequence[Sequence[Any]]) -> None:
        """Send those epochs of a run that MLflow lacks: (row, epoch, time in milliseconds since 1970) of each."""
        run_id = self.id_of(run_id)
        stored = self._steps(run_id, _ALWAYS)
        self._log_epochs(run_id, [each for each in epochs if each[1] not in stored])
        self._last_epoch.pop(run_id, None)

    def _log_epochs(self, run_id: str, epochs: Iterable[Sequence[Any]]) -> None:
        metrics: list[Metric] = []
        for row, epoch, now in epochs:
            # The metrics in EPOCH_METRICS go last, because an epoch counts as stored once they are there.
            metrics += _metrics(dict(sorted(row.items(), key=lambda item: item[0] in EPOCH_METRICS)), now, epoch)
        for begin in range(0, len(metrics), _METRIC_BATCH):
            self.client.log_batch(run_id, metrics=metrics[begin : begin + _METRIC_BATCH])

    def _send_summary(self, run_id: str, summary: Mapping[str, Any], tags: Mapping[str, Any], now: int) -> None:
        texts = {key: str(value)[-TAG_LENGTH:] for key, value in tags.items()}
        self.client.log_batch(self.id_of(run_id), metrics=_metrics(summary, now, step=0), tags=_tags(texts))

    def _send_artifacts(self, run_id: str, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")  # MLflow would silently store nothing
        self.client.log_artifacts(self.id_of(run_id), str(folder))

    def _send_end(self, run_id: str, status: str, now: int) -> None:
        self.client.set_terminated(self.id_of(run_id), status, end_time=now)

    def _last(self, run_id: str) -> int:
        if run_id not in self._last_epoch:
            names = [name for name in self.client.get_run(run_id).data.metrics if name in EPOCH_METRICS]
            self._last_epoch[run_id] = max((max(self._steps(run_id, name), default=0) for name in names), default=0)
        return self._last_epoch[run_id]

    def _steps(self, run_id: str, name: str) -> set[int]:
        """Return the epochs of which MLflow has a metric of a run."""
        return {point.step for point in self.client.get_metric_history(run_id, name)}


def _metrics(row: Mapping[str, float | None], timestamp: int, step: int) -> list[Metric]:
    """Return the finite numbers of a row as MLflow's metrics. MLflow would store infinity as 1.8e308 and ruin plots.

    Args:
        row: name -> value.
        timestamp: when the event happened, in milliseconds since 1970. It is the same when the event is sent again, so
            that MLflow recognises and drops the second copy.
        step: the epoch, or 0 for a summary.
    """
    from mlflow.entities import Metric

    numbers = {metric_name(key): float(value) for key, value in row.items() if value is not None}
    return [Metric(key, number, timestamp, step) for key, number in numbers.items() if math.isfinite(number)]


def _tags(texts: Mapping[str, str]) -> list[RunTag]:
    """Return texts, by name, as MLflow's tags."""
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in texts.items()]
