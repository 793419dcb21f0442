"""Open MLflow's store, show it on a page, and write models in MLflow's form."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import tempfile
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from erat.engine.checkpoint import FULL_BYTES
from erat.errors import UserError
from erat.locks import held
from erat.versions import versions
from orchestration.storage.workspace import Workspace
from orchestration.tracking.outbox import Spool, one_line
from orchestration.tracking.store import (
    check_database_server,
    is_http,
    own_database,
    readable_copy,
    relocate,
    remove_database,
    sqlite_path,
    start_server,
    tracking_uri,
    use_write_ahead_log,
    without_password,
)
from orchestration.tracking.text import compare_hint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from numpy.typing import NDArray
    from torch import nn

EXPERIMENT = "erat"
# What MLflow's table of the runs of a study shows: these metrics, and so many of the keys in which the runs differ.
_COLUMNS = ("best_val_accuracy", "final_test_accuracy", "best_val_test_accuracy", "train_seconds")
_MOST_PARAMS = 6

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


def open_store(workspace: Workspace) -> tuple[MlflowClient, str, str, Spool]:
    """Open the store that MLFLOW_TRACKING_URI names, or else the SQLite file of `workspace`; create a missing one.

    Returns:
        MLflow's client, the URI of the store, MLflow's id of the experiment, and the file of calls that wait for it.

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
            return client, uri, _experiment(client, artifacts), spool
        database.parent.mkdir(parents=True, exist_ok=True)
        fresh = not database.exists()
        # MLflow crashes if several processes set up a new database file at once.
        with held(database.with_name(f"{database.name}.lock"), patience=120):
            use_write_ahead_log(database)
            if own is not None:
                relocate(own, workspace.mlflow_artifacts.absolute())
            client = make_client(tracking_uri=uri)
            return client, uri, _experiment(client, artifacts), spool
    except UserError:
        raise
    except Exception as error:
        if database is not None and fresh:
            remove_database(database)  # an incomplete database would be taken for a damaged one next time
        raise UserError(_cannot_open(uri, error)) from error


def serve(
    workspace: Workspace, host: str = "127.0.0.1", port: int = 5000, wanted: Callable[[], bool] = lambda: True
) -> subprocess.Popen[bytes]:
    """Start MLflow's page on the store of a workspace, and wait until it answers. `stop_server` ends it.

    If the workspace is read-only, the page shows a temporary copy of the database.

    Args:
        workspace: the workspace.
        host: address to listen on, 127.0.0.1 or localhost.
        port: port to listen on, in [1, 65535].
        wanted: returns whether the page is still wanted; it is asked until it answers.

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
            open_store(workspace)  # creates the database, or corrects its paths after the workspace was moved
        return start_server(uri, artifacts, workspace.root / "mlflow-ui.log", host, port, wanted)
    folder = Path(tempfile.mkdtemp(prefix="erat-ui-"))
    try:
        copy = readable_copy(workspace, folder)
        server = start_server(f"sqlite:///{copy}", artifacts, folder / "mlflow-ui.log", host, port, wanted)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError | sqlite3.Error):
            raise UserError(_cannot_open(uri, error)) from error
        raise
    weakref.finalize(server, shutil.rmtree, folder, ignore_errors=True)
    return server


def runs_page(server: str, page: str, name: str, keys: Sequence[str]) -> str:
    """Return the address of MLflow's table of the runs of a study, best first, with the columns that tell them apart.

    The columns are a view of the experiment as MLflow's own button "share" leaves one: a tag that the page reads.

    Args:
        server: URI of the tracking server.
        page: address of its page.
        name: name of the study.
        keys: the dotted keys in which its runs differ.

    Raises:
        UserError: the server does not answer, or has no such experiment.
    """
    key = f"erat-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    columns = [f"metrics.`{metric}`" for metric in _COLUMNS] + [f"params.`{param}`" for param in keys[:_MOST_PARAMS]]
    view = {
        "selectedColumns": [*columns, "tags.`status`"],
        "searchFilter": compare_hint(name),
        "orderByKey": columns[0],
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
    }
    packed = f"deflate;{base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()}"
    try:
        client = _import_mlflow()(tracking_uri=server)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None and found.tags.get(tag := f"mlflow.sharedViewState.{key}") != packed:
            client.set_experiment_tag(found.experiment_id, tag, packed)
    except Exception as error:
        raise UserError(f"MLflow at {page} does not answer: {one_line(error)}") from error
    if found is None:
        raise UserError(f"MLflow at {page} has no experiment {EXPERIMENT!r} yet; it comes with the first run")
    # Without the kind of work MLflow would open its page for assistants and their traces.
    return f"{page}/#/experiments/{found.experiment_id}/runs?viewStateShareKey={key}&workflowType=machine_learning"


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
