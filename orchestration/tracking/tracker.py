"""Track studies in MLflow: one experiment, with a parent run for each study and a child run for each of its runs.

This is the only module that imports mlflow, and only the driver process uses it. The ledger, not MLflow, decides what
is done, so that a tracking server that fails causes warnings but never the loss of a trial.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from erat.engine.checkpoint import FULL_BYTES
from erat.errors import UserError, shown
from erat.locks import held
from erat.versions import versions
from orchestration.storage.workspace import Workspace
from orchestration.tracking.outbox import Outbox, Spool, one_line
from orchestration.tracking.store import (
    check_database_server,
    is_http,
    own_database,
    readable_copy,
    relocate,
    remove_database,
    sqlite_path,
    start_server,
    stop_server,
    tracking_uri,
    use_write_ahead_log,
    without_password,
)
from orchestration.tracking.text import (
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
    from mlflow.entities import Metric, Run
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["EPOCH_METRICS", "EXPERIMENT", "Ending", "Tracker", "compare_hint", "run_name", "serve", "stop_server"]

EXPERIMENT = "erat"
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
Ending = Literal["done", "stopped", "failed", "interrupted", "paused"]

_MLFLOW_STATUS = {
    "done": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "paused": "SCHEDULED",  # it may go on
}
_CALLS = ("_send_start", "_send_epoch", "_send_summary", "_send_artifacts", "_send_end")
_PARENT, _RUN_NAME = "mlflow.parentRunId", "mlflow.runName"  # tags that have a meaning for MLflow's page
# MLflow's limits: characters in a param and in a tag (5,000 on older servers), entries and metrics in one request.
_PARAM_LENGTH, _TAG_LENGTH, _BATCH, _METRIC_BATCH = 6000, 5000, 100, 1000

# Environment variables that are set for this process, unless the user has set them.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's retries would block the driver for minutes; the outbox retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "300",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output must end with one JSON object
    "GIT_PYTHON_REFRESH": "quiet",
}


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
        self._outbox = Outbox(self._make, self._hopeless, spool)
        self._ids: dict[str, str] = {}  # substitute -> MLflow's id
        self._last_epoch: dict[str, int] = {}  # MLflow's id -> last step in the store
        self._refused = 0  # number of successive failures of a call while the store answered

    @classmethod
    def open(cls, workspace: Workspace) -> Tracker:
        """Open the store that MLFLOW_TRACKING_URI names, or else the SQLite file of `workspace`; create a missing one.

        Raises:
            UserError: The store cannot be reached or created. For a server this takes about ten seconds.
        """
        uri = tracking_uri(workspace)
        database, fresh = sqlite_path(uri), False
        make_client = _import_mlflow()
        own = own_database(workspace)
        # The workspace's own store has a fixed name, so that it is still recognised after the workspace was moved.
        spool = Spool(workspace.root / "outbox", uri if own is None else "own", once=uri)
        artifacts = None if is_http(uri) else workspace.mlflow_artifacts.absolute().as_uri()
        try:
            if database is None:
                check_database_server(uri)
                client = make_client(tracking_uri=uri)
                return cls(client, uri, _experiment(client, artifacts), spool)
            database.parent.mkdir(parents=True, exist_ok=True)
            fresh = not database.exists()
            # MLflow crashes if several processes set up a new database file at once.
            with held(database.with_name(f"{database.name}.lock"), patience=120):
                use_write_ahead_log(database)
                if own is not None:
                    relocate(own, workspace.mlflow_artifacts.absolute())
                client = make_client(tracking_uri=uri)
                return cls(client, uri, _experiment(client, artifacts), spool)
        except UserError:
            raise
        except Exception as error:
            if database is not None and fresh:
                remove_database(database)  # an incomplete database would be taken for a damaged one next time
            raise UserError(_cannot_open(uri, error)) from error

    def start_parent(
        self, name: str, *, kind: str, tags: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> str:
        """Begin the parent run of a whole command, such as a study, or reopen the one of this name; return its id.

        Args:
            name: name of the study.
            kind: "sweep" or "audit".
            tags: further tags.
            params: params of the parent run.
        """
        own = {"sweep": name, "role": "parent", "kind": kind, "status": "running", _RUN_NAME: name}
        return self._start({**tags, **own}, params or {})

    def start_run(
        self, cell: str, config: Mapping[str, Any], *, parent: str | None, sweep: str | None, source: str
    ) -> str:
        """Begin to track a run in MLflow, or reopen its MLflow run under this parent; return the id in MLflow.

        Args:
            cell: digest of the configuration.
            config: dotted key -> value, which become the params.
            parent: id that `start_parent` returned; None for a run outside any study.
            sweep: name of the study; None for a run outside any study.
            source: where the run comes from ("paper", "optuna", "baseline", ...).
        """
        tags = child_tags(config) | {"cell": cell, "source": source, "status": "running", _RUN_NAME: run_name(config)}
        tags |= {"sweep": sweep} if sweep is not None else {}
        tags |= {_PARENT: parent} if parent is not None else {}
        return self._start(tags, config)

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        """Log every finite number of `row`, a line of metrics.jsonl, as step `epoch`, counted from 1.

        Loss terms are named `loss/NAME`. An epoch at or before the last one stored is left out, so that logging all
        epochs of a run again adds only those that are missing.
        """
        self._outbox.put("_send_epoch", run_id, epoch_metrics(row), epoch, _milliseconds())

    def finish(
        self,
        run_id: str,
        status: Ending,
        summary: Mapping[str, float | None],
        artifacts: Path | None = None,
        error: str | None = None,
    ) -> None:
        """End a run.

        Args:
            run_id: id that `start_run` or `start_parent` returned.
            status: how the run ended.
            summary: final metrics; values that are not finite numbers are left out.
            artifacts: folder whose files are stored with the run.
            error: why the run failed; its last 5,000 characters become the tag `error`.
        """
        self._finish(run_id, status, summary, artifacts, {"status": status} | ({"error": error} if error else {}))

    def finish_parent(
        self, run_id: str, *, summary: Mapping[str, float | None], artifacts: Path | None = None, ok: bool
    ) -> None:
        """End the parent run of a study.

        Args:
            run_id: id that `start_parent` returned.
            summary: final metrics; values that are not finite numbers are left out.
            artifacts: folder whose files are stored with the run.
            ok: whether no run of the study failed.
        """
        status = "done" if ok else "failed"
        self._finish(run_id, status, summary, artifacts, {"status": status})

    def flush(self) -> int:
        """Try again to send the calls that wait; return the number of those left, which the next process will send."""
        return self._outbox.flush()

    # -- calls that the outbox makes: each is harmless to repeat ----------------------------------------------------

    def _make(self, name: str, arguments: list[Any]) -> None:
        if name not in _CALLS:
            raise ValueError(f"{shown(name)} is none of this program's calls")
        getattr(self, name)(*arguments)

    def _start(self, tags: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        stand_in = f"unsent-{uuid.uuid4().hex}"  # unique over all processes, because another one may have to send it
        self._outbox.put("_send_start", stand_in, tags, params, _milliseconds())
        return self._real(stand_in)

    def _send_start(self, stand_in: str, tags: Mapping[str, Any], params: Mapping[str, Any], now: int) -> None:
        parent = self._real(tags[_PARENT]) if _PARENT in tags else None
        texts = {legal_name(key): text(value, _TAG_LENGTH) for key, value in tags.items()}
        texts |= {_PARENT: parent} if parent else {}
        run = self._find(texts, parent)
        if run is None:
            run = self._client.create_run(self.experiment_id, start_time=now, tags=texts)
            self._last_epoch[run.info.run_id] = 0
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._send_tags(run.info.run_id, texts)
            if "error" in run.data.tags:
                self._client.delete_tag(run.info.run_id, "error")
        self._send_params(run, params)
        self._ids[stand_in] = run.info.run_id

    def _find(self, tags: Mapping[str, str], parent: str | None) -> Run | None:
        keys = ("sweep", "role") if "role" in tags else ("cell",)
        query = " and ".join(f"tags.{key} = {quoted(tags[key])}" for key in keys)
        runs = self._client.search_runs([self.experiment_id], query)
        return next((run for run in runs if run.data.tags.get(_PARENT) == parent), None)

    def _send_params(self, run: Run, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow does not let a param change. Paths such as data.root may differ when a run is resumed on another
        # machine; the first values are kept.
        texts = {legal_name(key): text(value, _PARAM_LENGTH) for key, value in config.items()}
        params = [Param(key, value) for key, value in texts.items() if key not in run.data.params]
        for begin in range(0, len(params), _BATCH):
            self._client.log_batch(run.info.run_id, params=params[begin : begin + _BATCH])

    def _send_epoch(self, run_id: str, row: Mapping[str, float | None], epoch: int, now: int) -> None:
        run_id = self._real(run_id)
        if epoch > self._last(run_id):
            # The metrics in EPOCH_METRICS go last, because an epoch counts as stored once they are there.
            metrics = _metrics(dict(sorted(row.items(), key=lambda item: item[0] in EPOCH_METRICS)), now, epoch)
            for begin in range(0, len(metrics), _METRIC_BATCH):
                self._client.log_batch(run_id, metrics=metrics[begin : begin + _METRIC_BATCH])
            self._last_epoch[run_id] = epoch

    def _finish(
        self, run_id: str, status: str, summary: Mapping[str, Any], artifacts: Path | None, tags: Mapping[str, str]
    ) -> None:
        self._outbox.put("_send_summary", run_id, summary, tags, _milliseconds())
        if artifacts is not None:
            self._outbox.put("_send_artifacts", run_id, artifacts)
        # This call is the last one, so that a run with the status "finished" is complete.
        self._outbox.put("_send_end", run_id, _MLFLOW_STATUS[status], _milliseconds())

    def _send_summary(self, run_id: str, summary: Mapping[str, Any], tags: Mapping[str, str], now: int) -> None:
        self._client.log_batch(self._real(run_id), metrics=_metrics(summary, now, step=0))
        self._send_tags(self._real(run_id), {key: value[-_TAG_LENGTH:] for key, value in tags.items()})

    def _send_tags(self, run_id: str, texts: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in texts.items()])

    def _send_artifacts(self, run_id: str, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")  # MLflow would silently store nothing
        self._client.log_artifacts(self._real(run_id), str(folder))

    def _send_end(self, run_id: str, status: str, now: int) -> None:
        self._client.set_terminated(self._real(run_id), status, end_time=now)

    # -- small helpers ----------------------------------------------------------------------------------------------

    def _real(self, run_id: str) -> str:
        return self._ids.get(run_id, run_id)

    def _last(self, run_id: str) -> int:
        if run_id not in self._last_epoch:
            names = [name for name in self._client.get_run(run_id).data.metrics if name in EPOCH_METRICS]
            steps = [point.step for name in names for point in self._client.get_metric_history(run_id, name)]
            self._last_epoch[run_id] = max(steps, default=0)
        return self._last_epoch[run_id]

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


def serve(workspace: Workspace, host: str = "127.0.0.1", port: int = 5000) -> subprocess.Popen[bytes]:
    """Start MLflow's page on the store of a workspace, and wait until it answers. `stop_server` ends it.

    If the workspace is read-only, the page shows a temporary copy of the database.

    Args:
        workspace: the workspace.
        host: address to listen on, 127.0.0.1 or localhost.
        port: port to listen on, in [1, 65535].

    Raises:
        UserError: MLFLOW_TRACKING_URI already names a server, the port is in use or not allowed, the host is not this
            machine's loopback address, or the store cannot be opened.
    """
    uri = tracking_uri(workspace)
    if is_http(uri):
        raise UserError(f"MLFLOW_TRACKING_URI names a server already, nothing to start: open {without_password(uri)}")
    artifacts, database = workspace.mlflow_artifacts.absolute(), sqlite_path(uri)
    if own_database(workspace) is None or os.access(workspace.root, os.W_OK):
        if database is not None and (database == own_database(workspace) or not database.exists()):
            Tracker.open(workspace)  # creates the database, or corrects its paths after the workspace was moved
        return start_server(uri, artifacts, workspace.root / "mlflow-ui.log", host, port)
    folder = Path(tempfile.mkdtemp(prefix="erat-ui-"))
    try:
        copy = readable_copy(workspace, folder)
        server = start_server(f"sqlite:///{copy}", artifacts, folder / "mlflow-ui.log", host, port)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError | sqlite3.Error):
            raise UserError(_cannot_open(uri, error)) from error
        raise
    weakref.finalize(server, shutil.rmtree, folder, ignore_errors=True)
    return server


def save_model(model: nn.Module, example: NDArray[np.float32], classes: Sequence[str], folder: Path) -> None:
    """Write a network as an MLflow model with a signature, which `mlflow models serve -m FOLDER` can serve.

    The network is stored as an exported program (.pt2), which consists of a graph and weights, without pickled code.

    Args:
        model: the network, on the CPU and in eval mode.
        example: two images as the network takes them, (2, C, H, W). The signature allows batches of any size.
        classes: names of the network's outputs, in order.
        folder: where the model is written.
    """
    _import_mlflow()
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # The input has no name, because MLflow passes named inputs as a mapping, which the network does not accept.
    inputs = TensorSpec(example.dtype, (-1, *example.shape[1:]))
    outputs = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
    mlflow.pytorch.save_model(
        model,
        str(folder),
        signature=ModelSignature(Schema([inputs]), Schema([outputs])),
        input_example=example,
        serialization_format="pt2",
        pip_requirements=[f"{name}=={found.partition('+')[0]}" for name, found in versions("torch", "mlflow").items()],
        metadata={"classes": list(classes)},
    )


def _import_mlflow() -> type[MlflowClient]:
    """Import mlflow only when it is needed, because this takes a second, and without its messages; return its client.

    The defaults in `_ENVIRONMENT` are set before.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # This logger shows every database error with its traceback; the outbox then reports the same error in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient


def _experiment(client: MlflowClient, artifacts: str | None) -> str:
    """Return the id of the project's experiment; create the experiment if it is missing.

    Args:
        client: MLflow's client.
        artifacts: URI of the folder of artifacts for a new experiment; None: the server's default.

    Raises:
        UserError: The experiment was deleted.
    """
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        except MlflowException:
            # Another driver that uses the same server may have created it a moment earlier.
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        command = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(f"MLflow's experiment {EXPERIMENT!r} was deleted; bring it back with `{command}`")
    return str(found.experiment_id)


def _cannot_open(uri: str, error: Exception) -> str:
    shown = without_password(uri)
    database = sqlite_path(uri)
    # SQLite reports a full disk in several ways, one of which is "disk I/O error".
    if "disk is full" in str(error) or (database is not None and _is_full(database.parent)):
        return f"MLflow's store {shown} cannot be written: the disk is full; free some space"
    if "MLFLOW_TRACKING_URI" not in os.environ:
        return f"MLflow's store {shown} cannot be used: {one_line(error)}; move it away for a fresh one"
    return (
        f"MLFLOW_TRACKING_URI={shown} cannot be used: {one_line(error)}; "
        "start that server or mend the address, or unset it for the local store"
    )


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False


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


def _milliseconds() -> int:
    """Return the present time in milliseconds since 1970."""
    return int(time.time() * 1000)
