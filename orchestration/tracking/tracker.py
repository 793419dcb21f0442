"""Track studies in MLflow: one experiment, with a parent run for each study and a child run for each of its runs.

Only the driver process uses this module. The ledger, not MLflow, decides what is done, so that a tracking server that
fails causes warnings but never the loss of a trial.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from erat.errors import UserError, shown
from orchestration.storage.workspace import Workspace
from orchestration.tracking.found import FoundRun
from orchestration.tracking.opening import EXPERIMENT, open_store, save_model, serve
from orchestration.tracking.outbox import Entry, Outbox, Spool, one_line
from orchestration.tracking.store import stop_server, without_password
from orchestration.tracking.text import (
    PARENT,
    child_tags,
    compare_hint,
    epoch_metrics,
    legal_name,
    metric_name,
    quoted,
    run_name,
    text,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run, RunTag

__all__ = [
    "EPOCH_METRICS",
    "EXPERIMENT",
    "Ending",
    "Tracker",
    "compare_hint",
    "run_name",
    "save_model",
    "serve",
    "stop_server",
]

# The metrics that the trainer reports in every epoch. A defense may add loss terms and other numbers.
EPOCH_METRICS = (
    "test_accuracy",
    "val_accuracy",
    "train_loss",
    "selection_precision",
    "selection_recall",
    "labelled_fraction",
    "noise_caught",
    "pseudo_label_accuracy",
    "epoch_seconds",
    "images_per_second",
    "learning_rate",
)
_ALWAYS = "val_accuracy"  # every epoch has it
Ending = Literal["done", "stopped", "failed", "interrupted", "paused"]

MLFLOW_STATUS = {
    "done": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "paused": "SCHEDULED",  # it may go on
}
_CALLS = (
    "_send_start",
    "_send_epoch",
    "_send_epochs",
    "_send_missing",
    "_send_summary",
    "_send_artifacts",
    "_send_end",
)
_UNSENT = "unsent-"  # the beginning of a substitute for an id of MLflow
RUN_NAME = "mlflow.runName"  # like `PARENT`, a tag that has a meaning for MLflow's page
# MLflow's limits: characters in a param and in a tag (5,000 on older servers), entries and metrics in one request.
_PARAM_LENGTH, TAG_LENGTH, _BATCH, _METRIC_BATCH = 6000, 5000, 100, 1000
_PAGE = 500  # runs that are asked for at a time


class Tracker:
    """A writer of runs to one MLflow store. `Tracker.open` creates it.

    Methods that begin a run return its MLflow id. While the server does not answer they return a substitute, which all
    methods of this tracker accept.

    Attributes:
        uri: URI of the store.
        experiment_id: MLflow's id of the experiment "erat".
    """

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, spool: Spool | None = None) -> None:
        self._client = client
        self.uri = uri
        self.experiment_id = experiment_id
        self._outbox = Outbox(
            self._make, self._hopeless, spool, merged={"_send_epoch": "_send_epochs"}, lasting=self._lasting
        )
        self._ids: dict[str, str] = {}  # substitute -> MLflow's id
        self._opening: set[str] = set()  # substitutes of runs that are to be begun by a call that waits
        self._begun: dict[tuple[str, ...], str] = {}  # what `_run_key` returns -> the substitute of the run
        self._put_epochs: dict[str, int] = {}  # substitute or MLflow's id -> last epoch that was sent or waits
        self._last_epoch: dict[str, int] = {}  # MLflow's id -> last step in the store
        self._fresh: set[str] = set()  # substitutes of runs that cannot be in the store, until they are sent
        self._refused = 0  # number of successive failures of a call while the store answered
        self._take_over(self._outbox.waiting)

    @classmethod
    def open(cls, workspace: Workspace) -> Tracker:
        """Open the store that MLFLOW_TRACKING_URI names, or else the SQLite file of `workspace`; create a missing one.

        Raises:
            UserError: The store cannot be reached or created. For a server this takes about ten seconds.
        """
        return cls(*open_store(workspace))

    def start_parent(
        self,
        name: str,
        *,
        kind: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> str:
        """Begin the parent run of a whole command, such as a study, or reopen the one of this name; return its id.

        Args:
            name: name of the study.
            kind: "sweep" or "audit".
            tags: further tags.
            params: params of the parent run.
            at: when it began, in seconds since 1970. None: now.
        """
        own = {"sweep": name, "role": "parent", "kind": kind, "status": "running", RUN_NAME: name}
        return self._start({**tags, **own}, params or {}, at=at)

    @contextmanager
    def in_background(self, before: Callable[[], None] | None = None) -> Iterator[None]:
        """Send in a thread during the block, and what comes at about the same time together.

        Methods that begin a run return a substitute; `id_of` tells the id once it is known. At the end of the block,
        everything has been sent, or is kept.

        Args:
            before: called before something is sent.

        Raises:
            OSError: What waits cannot be kept on disk.
        """
        with self._outbox.in_background(before):
            yield

    def then(self, call: Callable[[], None]) -> None:
        """Call a function when everything until now has been sent, or is kept on disk until it can be sent."""
        self._outbox.then(call)

    def id_of(self, run_id: str) -> str:
        """Return MLflow's id of a run, given the id or a substitute; the substitute while the id is not known."""
        return self._ids.get(run_id, run_id)

    def is_known(self, run_id: str) -> bool:
        """Return whether `id_of` returns MLflow's id of a run."""
        return not self.id_of(run_id).startswith(_UNSENT)

    def start_run(
        self,
        cell: str,
        config: Mapping[str, Any],
        *,
        parent: str | None,
        sweep: str | None,
        source: str,
        known: str | None = None,
        fresh: bool = False,
        tags: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> str:
        """Begin to track a run in MLflow, or reopen its MLflow run under this parent; return the id in MLflow.

        Args:
            cell: digest of the configuration.
            config: dotted key -> value, which become the params.
            parent: id that `start_parent` returned; None for a run outside any study.
            sweep: name of the study; None for a run outside any study.
            source: where the run comes from ("paper", "optuna", "baseline", ...).
            known: MLflow's id of its run from earlier. If MLflow does not have that, the run is searched for.
            fresh: whether there is certainly no run yet, so that none is searched for.
            tags: further tags.
            at: when it began, in seconds since 1970. None: now.
        """
        every = run_tags(cell, config, parent=parent, sweep=sweep, source=source, tags=tags)
        return self._start(every | {"status": "running"}, config, known, fresh=fresh, at=at)

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        """Log every finite number of `row`, a line of metrics.jsonl, as step `epoch`, counted from 1.

        Loss terms are named `loss/NAME`. An epoch at or before the last one that is stored or waits is left out, so
        that logging all epochs of a run again adds only those that are missing.
        """
        if epoch > self._put_epochs.get(run_id, 0):
            self._put_epochs[run_id] = epoch
            self._outbox.put("_send_epoch", run_id, epoch_metrics(row), epoch, _milliseconds())

    def add_missing_epochs(self, run_id: str, rows: Sequence[Mapping[str, Any]], until: float | None = None) -> None:
        """Log those epochs of a run that MLflow lacks, wherever they stand among the others.

        Args:
            run_id: id that `start_run` returned.
            rows: lines of metrics.jsonl.
            until: when the last of them ended, in seconds since 1970. None: now.
        """
        epochs, ended = [], time.time() if until is None else until
        for row in reversed(rows):
            epochs.append([epoch_metrics(row), row["epoch"], _milliseconds(ended)])
            ended -= row["epoch_seconds"]
        self._outbox.put("_send_missing", run_id, epochs[::-1])

    def epochs_of(self, run_id: str) -> set[int]:
        """Return the epochs that MLflow has of a run.

        Raises:
            UserError: The store cannot be read.
        """
        with self._reading():
            return self._steps(run_id, _ALWAYS)

    def runs_of(self, sweep: str) -> Iterator[FoundRun]:
        """Yield the runs that MLflow has of a study, its parent run first and then the latest.

        Raises:
            UserError: The store cannot be read.
        """
        for condition in (" and tags.role = 'parent'", " and tags.cell != ''"):
            token = None
            while True:
                with self._reading():
                    page = self._client.search_runs(
                        [self.experiment_id],
                        f"tags.sweep = {quoted(sweep)}{condition}",
                        max_results=_PAGE,
                        page_token=token,
                    )
                for run in page:
                    data = run.data
                    yield FoundRun(run.info.run_id, run.info.status, data.tags, data.params.keys(), data.metrics)
                token = page.token
                if not token:
                    break

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UserError(
                f"MLflow's store {without_password(self.uri)} cannot be read: {one_line(error)}; try again later"
            ) from error

    def finish(
        self,
        run_id: str,
        status: Ending,
        summary: Mapping[str, float | None],
        artifacts: Path | None = None,
        error: str | None = None,
        tags: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """End a run, or say that it pauses.

        Args:
            run_id: id that `start_run` or `start_parent` returned.
            status: how the run ended, or "paused".
            summary: final metrics; values that are not finite numbers are left out.
            artifacts: folder whose files are stored with the run.
            error: why the run failed; its last 5,000 characters become the tag `error`.
            tags: further tags.
            at: when it ended, in seconds since 1970. None: now.
        """
        own = {"status": status} | ({"error": error} if error else {})
        self._finish(run_id, status, summary, artifacts, {**(tags or {}), **own}, at)

    def add(self, run_id: str, metrics: Mapping[str, float | None], tags: Mapping[str, Any] | None = None) -> None:
        """Add to a run, ended or not, what is known of it only later.

        Args:
            run_id: id that `start_run` or `start_parent` returned.
            metrics: final metrics; values that are not finite numbers are left out.
            tags: further tags.
        """
        self._outbox.put("_send_summary", run_id, metrics, tags or {}, _milliseconds())

    def finish_parent(
        self,
        run_id: str,
        *,
        summary: Mapping[str, float | None],
        artifacts: Path | None = None,
        ok: bool,
        tags: Mapping[str, Any] | None = None,
        at: float | None = None,
    ) -> None:
        """End the parent run of a study.

        Args:
            run_id: id that `start_parent` returned.
            summary: final metrics; values that are not finite numbers are left out.
            artifacts: folder whose files are stored with the run.
            ok: whether no run of the study failed.
            tags: further tags.
            at: when it ended, in seconds since 1970. None: now.
        """
        status = "done" if ok else "failed"
        self._finish(run_id, status, summary, artifacts, {**(tags or {}), "status": status}, at)

    def flush(self) -> int:
        """Try again to send the calls that wait; return the number of those left, which the next process will send."""
        return self._outbox.flush()

    # -- calls that the outbox makes: each is harmless to repeat ----------------------------------------------------

    def _make(self, name: str, arguments: list[Any]) -> None:
        if name not in _CALLS:
            raise ValueError(f"{shown(name)} is none of this program's calls")
        getattr(self, name)(*arguments)

    def _take_over(self, entries: Sequence[Entry]) -> None:
        """Know again the runs that ended processes began, and their epochs, from the calls that they left."""
        for name, arguments in entries:
            match name, arguments:
                case "_send_start", [str(stand_in), dict(tags), *_]:
                    self._begun[_run_key(tags)] = stand_in
                    self._opening.add(stand_in)
                case "_send_epoch", [str(run), _, int(epoch), *_]:
                    self._put_epochs[run] = max(epoch, self._put_epochs.get(run, 0))

    def _lasting(self, entry: Entry) -> Entry:
        """Return a call with MLflow's ids for the substitutes whose ids are known: no other process knows these."""
        name, (run, *rest) = entry
        if name != "_send_start":
            return name, [self.id_of(run), *rest]
        tags, *others = rest
        return name, [run, {key: self.id_of(tag) if key == PARENT else tag for key, tag in tags.items()}, *others]

    def _start(
        self,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        known: str | None = None,
        *,
        fresh: bool = False,
        at: float | None = None,
    ) -> str:
        stand_in = self._begun.get(_run_key(tags))
        if stand_in is None:  # unique over all processes, because another one may have to send it
            stand_in = self._begun[_run_key(tags)] = f"{_UNSENT}{uuid.uuid4().hex}"
            if known is not None and known in self._put_epochs:
                self._put_epochs[stand_in] = self._put_epochs[known]
            if fresh:
                self._fresh.add(stand_in)
        self._opening.add(stand_in)
        self._outbox.put("_send_start", stand_in, tags, params, _milliseconds(at), *([known] if known else []))
        return stand_in if stand_in in self._opening else self.id_of(stand_in)

    def _send_start(
        self, stand_in: str, tags: Mapping[str, Any], params: Mapping[str, Any], now: int, known: str | None = None
    ) -> None:
        fresh = stand_in in self._fresh
        self._fresh.discard(stand_in)  # from the first attempt on, it may be there although no answer came
        known = self._ids.get(stand_in, known)
        parent = self.id_of(tags[PARENT]) if PARENT in tags else None
        texts = as_tags(tags)
        texts |= {PARENT: parent} if parent else {}
        run = None if known is None else self._recalled(known, texts)
        if run is None and not fresh:
            run = self._find(texts, parent)
        if run is None:
            run = self._client.create_run(self.experiment_id, start_time=now, tags=texts)
            self._last_epoch[run.info.run_id] = 0
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
            # Its name stays, because somebody may have given it another one on MLflow's page.
            self._client.log_batch(run.info.run_id, tags=_tags({k: v for k, v in texts.items() if k != RUN_NAME}))
            if "error" in run.data.tags:
                self._client.delete_tag(run.info.run_id, "error")
        self._send_params(run, params)
        self._ids[stand_in] = run.info.run_id
        self._opening.discard(stand_in)

    def _recalled(self, run_id: str, tags: Mapping[str, str]) -> Run | None:
        """Return the run of an id from earlier; None if the store, which may be another one, does not have that run."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        same = all(run.data.tags.get(key) == tags.get(key) for key in ("cell", "sweep"))
        return run if same and run.info.lifecycle_stage == "active" else None

    def _find(self, tags: Mapping[str, str], parent: str | None) -> Run | None:
        keys = ("sweep", "role") if "role" in tags else ("cell",)
        query = " and ".join(f"tags.{key} = {quoted(tags[key])}" for key in keys)
        runs = self._client.search_runs([self.experiment_id], query)
        return next((run for run in runs if run.data.tags.get(PARENT) == parent), None)

    def _send_params(self, run: Run, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow does not let a param change. Paths such as data.root may differ when a run is resumed on another
        # machine; the first values are kept.
        texts = {legal_name(key): text(value, _PARAM_LENGTH) for key, value in config.items()}
        params = [Param(key, value) for key, value in texts.items() if key not in run.data.params]
        for begin in range(0, len(params), _BATCH):
            self._client.log_batch(run.info.run_id, params=params[begin : begin + _BATCH])

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
            self._client.log_batch(run_id, metrics=metrics[begin : begin + _METRIC_BATCH])

    def _finish(
        self,
        run_id: str,
        status: str,
        summary: Mapping[str, Any],
        artifacts: Path | None,
        tags: Mapping[str, Any],
        at: float | None,
    ) -> None:
        self._outbox.put("_send_summary", run_id, summary, tags, _milliseconds(at))
        if artifacts is not None:
            self._outbox.put("_send_artifacts", run_id, artifacts)
        # This call is the last one, so that a run with the status "finished" is complete.
        self._outbox.put("_send_end", run_id, MLFLOW_STATUS[status], _milliseconds(at))

    def _send_summary(self, run_id: str, summary: Mapping[str, Any], tags: Mapping[str, Any], now: int) -> None:
        texts = {key: str(value)[-TAG_LENGTH:] for key, value in tags.items()}
        self._client.log_batch(self.id_of(run_id), metrics=_metrics(summary, now, step=0), tags=_tags(texts))

    def _send_artifacts(self, run_id: str, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")  # MLflow would silently store nothing
        self._client.log_artifacts(self.id_of(run_id), str(folder))

    def _send_end(self, run_id: str, status: str, now: int) -> None:
        self._client.set_terminated(self.id_of(run_id), status, end_time=now)

    # -- small helpers ----------------------------------------------------------------------------------------------

    def _last(self, run_id: str) -> int:
        if run_id not in self._last_epoch:
            names = [name for name in self._client.get_run(run_id).data.metrics if name in EPOCH_METRICS]
            self._last_epoch[run_id] = max((max(self._steps(run_id, name), default=0) for name in names), default=0)
        return self._last_epoch[run_id]

    def _steps(self, run_id: str, name: str) -> set[int]:
        """Return the epochs of which MLflow has a metric of a run."""
        return {point.step for point in self._client.get_metric_history(run_id, name)}

    def _hopeless(self, error: Exception, failures: int) -> bool:
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
            self._client.get_experiment(self.experiment_id)
        except Exception:
            return False
        return True


def run_tags(
    cell: str,
    config: Mapping[str, Any],
    *,
    parent: str | None,
    sweep: str | None,
    source: str,
    tags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the tags of a run but its status; the arguments are those of `Tracker.start_run`."""
    own = child_tags(config) | {"cell": cell, "source": source, RUN_NAME: run_name(config)}
    own |= {"sweep": sweep} if sweep is not None else {}
    own |= {PARENT: parent} if parent is not None else {}
    return {**(tags or {}), **own}


def as_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return tags as MLflow keeps them when a run begins."""
    return {legal_name(key): text(value, TAG_LENGTH) for key, value in tags.items()}


def _run_key(tags: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells runs apart, given their tags: the study, the configuration, and whether it is a parent run."""
    return tuple(str(tags.get(key)) for key in ("sweep", "cell", "role"))


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


def _milliseconds(at: float | None = None) -> int:
    """Return a time in seconds since 1970, or else the present time, in milliseconds since 1970."""
    return int((time.time() if at is None else at) * 1000)
