"""What MLflow shows: one experiment, a parent run per sweep, a child per cell. The only module that imports mlflow.

Used by the driver process alone. The ledger, not MLflow, decides what is done; so a tracking server that fails costs
warnings, never a trial.
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
# What the trainer reports of every epoch. A defense adds its loss terms and what numbers it has.
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
Ending = Literal["done", "stopped", "failed", "interrupted"]

_MLFLOW_STATUS = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_CALLS = ("_send_start", "_send_epoch", "_send_summary", "_send_artifacts", "_send_end")
_PARENT, _RUN_NAME = "mlflow.parentRunId", "mlflow.runName"  # names that MLflow's pages understand
# MLflow's own limits (older servers: 5,000 for a tag).
_PARAM_LENGTH, _TAG_LENGTH, _BATCH, _METRIC_BATCH = 6000, 5000, 100, 1000

# For this process, unless the user has set them.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox tries again, without stopping the driver for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "300",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output ends with one JSON object
    "GIT_PYTHON_REFRESH": "quiet",
}


class Tracker:
    """Writes runs to one store. `Tracker.open` makes it.

    Methods that begin a run return its MLflow id or, while the server does not answer, a stand-in that every method of
    this tracker takes.

    Attributes:
        uri: the store.
        experiment_id: of the experiment "erat".
    """

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, spool: Spool | None = None) -> None:
        self._client = client
        self.uri = uri
        self.experiment_id = experiment_id
        self._outbox = Outbox(self._make, self._hopeless, spool)
        self._ids: dict[str, str] = {}  # stand-in -> MLflow's id
        self._last_epoch: dict[str, int] = {}  # MLflow's id -> last step in the store
        self._refused = 0  # how often in a row a call has failed while the store answered

    @classmethod
    def open(cls, workspace: Workspace) -> Tracker:
        """The store that MLFLOW_TRACKING_URI names, or the SQLite file of `workspace`; made if it is fresh.

        Raises:
            UserError: the store cannot be reached or made; within about ten seconds for a server.
        """
        uri = tracking_uri(workspace)
        database, fresh = sqlite_path(uri), False
        make_client = _import_mlflow()
        own = own_database(workspace)
        # Of a workspace that is moved, its own store is the same one still.
        spool = Spool(workspace.root / "outbox", uri if own is None else "own", once=uri)
        artifacts = None if is_http(uri) else workspace.mlflow_artifacts.absolute().as_uri()
        try:
            if database is None:
                check_database_server(uri)
                client = make_client(tracking_uri=uri)
                return cls(client, uri, _experiment(client, artifacts), spool)
            database.parent.mkdir(parents=True, exist_ok=True)
            fresh = not database.exists()
            # MLflow's migration of a fresh file crashes when several processes begin it at once.
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
                remove_database(database)  # half made, it would be taken for a damaged one next time
            raise UserError(_cannot_open(uri, error)) from error

    def start_parent(
        self, name: str, *, kind: str, tags: Mapping[str, Any], params: Mapping[str, Any] | None = None
    ) -> str:
        """The run of a whole command, which holds a sweep's runs; the one of this name is opened again if it exists."""
        own = {"sweep": name, "role": "parent", "kind": kind, "status": "running", _RUN_NAME: name}
        return self._start({**tags, **own}, params or {})

    def start_run(
        self, cell: str, config: Mapping[str, Any], *, parent: str | None, sweep: str | None, source: str
    ) -> str:
        """A cell's run; the one of this cell under this parent is opened again if it exists.

        Args:
            cell: digest of the configuration.
            config: flat, dotted keys; becomes the params.
            parent: id that `start_parent` returned.
            sweep: its name.
            source: what proposed this run ("paper", "optuna", "baseline", ...).
        """
        tags = child_tags(config) | {"cell": cell, "source": source, "status": "running", _RUN_NAME: run_name(config)}
        tags |= {"sweep": sweep} if sweep is not None else {}
        tags |= {_PARENT: parent} if parent is not None else {}
        return self._start(tags, config)

    def log_epoch(self, run_id: str, row: Mapping[str, Any], epoch: int) -> None:
        """Log every finite number of `row`, a line of metrics.jsonl, as step `epoch`, counted from 1.

        Loss terms are named `loss/NAME`. An epoch at or before the last one stored is left out: replaying a run's
        epochs adds only what is missing.
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
            summary: final metrics; what is not a finite number is left out.
            artifacts: folder whose files are stored with the run.
            error: text of a failure; its tail becomes the tag `error`.
        """
        self._finish(run_id, status, summary, artifacts, {"status": status} | ({"error": error} if error else {}))

    def finish_parent(
        self, run_id: str, *, summary: Mapping[str, float | None], artifacts: Path | None = None, ok: bool
    ) -> None:
        """End a sweep's run; `ok` says that no cell failed."""
        status = "done" if ok else "failed"
        self._finish(run_id, status, summary, artifacts, {"status": status})

    def flush(self) -> int:
        """Try once more to send what waits. Returns how many entries still do; the next process will send them."""
        return self._outbox.flush()

    # -- What the outbox calls: each may be repeated without harm ---------------------------------------------------

    def _make(self, name: str, arguments: list[Any]) -> None:
        if name not in _CALLS:
            raise ValueError(f"{shown(name)} is none of this program's calls")
        getattr(self, name)(*arguments)

    def _start(self, tags: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        stand_in = f"unsent-{uuid.uuid4().hex}"  # another process may have to send it
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

        # A param cannot change. Keys of place (data.root) may differ when a run goes on elsewhere: the first stay.
        texts = {legal_name(key): text(value, _PARAM_LENGTH) for key, value in config.items()}
        params = [Param(key, value) for key, value in texts.items() if key not in run.data.params]
        for begin in range(0, len(params), _BATCH):
            self._client.log_batch(run.info.run_id, params=params[begin : begin + _BATCH])

    def _send_epoch(self, run_id: str, row: Mapping[str, float | None], epoch: int, now: int) -> None:
        run_id = self._real(run_id)
        if epoch > self._last(run_id):
            # Those of EPOCH_METRICS last: by them an epoch counts as stored.
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
        # Last, so that a run that reads "finished" has everything.
        self._outbox.put("_send_end", run_id, _MLFLOW_STATUS[status], _milliseconds())

    def _send_summary(self, run_id: str, summary: Mapping[str, Any], tags: Mapping[str, str], now: int) -> None:
        self._client.log_batch(self._real(run_id), metrics=_metrics(summary, now, step=0))
        self._send_tags(self._real(run_id), {key: value[-_TAG_LENGTH:] for key, value in tags.items()})

    def _send_tags(self, run_id: str, texts: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in texts.items()])

    def _send_artifacts(self, run_id: str, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")  # MLflow would store nothing and say nothing
        self._client.log_artifacts(self._real(run_id), str(folder))

    def _send_end(self, run_id: str, status: str, now: int) -> None:
        self._client.set_terminated(self._real(run_id), status, end_time=now)

    # -- Small helpers ----------------------------------------------------------------------------------------------

    def _real(self, run_id: str) -> str:
        return self._ids.get(run_id, run_id)

    def _last(self, run_id: str) -> int:
        if run_id not in self._last_epoch:
            names = [name for name in self._client.get_run(run_id).data.metrics if name in EPOCH_METRICS]
            steps = [point.step for name in names for point in self._client.get_metric_history(run_id, name)]
            self._last_epoch[run_id] = max(steps, default=0)
        return self._last_epoch[run_id]

    def _hopeless(self, error: Exception, failures: int) -> bool:
        """Whether a call would fail for ever: refused as it stands, or time and again while the store answers."""
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"):
                return True
        elif isinstance(error, FileNotFoundError | PermissionError) or not isinstance(error, OSError):
            return True
        # Once does not count: the store may have come back in the moment after the call failed.
        self._refused = self._refused + 1 if failures >= 5 and self._answers() else 0
        return self._refused >= 3

    def _answers(self) -> bool:
        try:
            self._client.get_experiment(self.experiment_id)
        except Exception:
            return False
        return True


def serve(workspace: Workspace, host: str = "127.0.0.1", port: int = 5000) -> subprocess.Popen[bytes]:
    """Start MLflow's page on this store and wait until it answers. End it with `stop_server`.

    Raises:
        UserError: MLFLOW_TRACKING_URI names a server already; the port is taken; the address is not this machine's own.
    """
    uri = tracking_uri(workspace)
    if is_http(uri):
        raise UserError(f"MLFLOW_TRACKING_URI names a server already, nothing to start: open {without_password(uri)}")
    artifacts, database = workspace.mlflow_artifacts.absolute(), sqlite_path(uri)
    if own_database(workspace) is None or os.access(workspace.root, os.W_OK):
        if database is not None and (database == own_database(workspace) or not database.exists()):
            Tracker.open(workspace)  # makes it, or mends it after a move
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
    """Write a network as an MLflow model with a signature, which `mlflow models serve -m FOLDER` serves.

    It is stored as an exported program (.pt2): a graph and weights, no pickled code.

    Args:
        model: on the CPU, in eval mode.
        example: two images (2, C, H, W), what the network takes; the signature's batch is of any size.
        classes: the names of its outputs, in order.
    """
    _import_mlflow()
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Without names: a named input reaches the network as a mapping, which it does not take.
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
    """Import late (it takes a second) and quietly."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # It shows each error of the database with its traceback, before the error comes to the outbox, which says a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient


def _experiment(client: MlflowClient, artifacts: str | None) -> str:
    """Id of the project's experiment, made if it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        except MlflowException:
            # Another driver of the same server may have been a moment faster.
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
    # SQLite tells of a full disk in several ways, one of which is "disk I/O error".
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
    """Finite numbers only: MLflow turns infinity into 1.8e308, which ruins a plot's axis.

    The time is that of the event: MLflow drops a point that it holds already, so that sending one twice is harmless.
    """
    from mlflow.entities import Metric

    numbers = {metric_name(key): float(value) for key, value in row.items() if value is not None}
    return [Metric(key, number, timestamp, step) for key, number in numbers.items() if math.isfinite(number)]


def _milliseconds() -> int:
    return int(time.time() * 1000)
