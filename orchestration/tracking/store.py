"""Where MLflow's store is, how its SQLite file is opened, and the server that shows it. Imports no mlflow."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from erat.errors import UserError
from orchestration.storage.workspace import Workspace

_START_SECONDS = 90.0
# Where MLflow's tables hold places of artifacts.
_PLACES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(workspace: Workspace) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file of `workspace` by its absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.mlflow_database.absolute()}"


def is_http(uri: str) -> bool:
    """Whether a tracking server, not this process, holds the store."""
    return uri.startswith(("http://", "https://"))


def own_database(workspace: Workspace) -> Path | None:
    """The SQLite file of `workspace`, whose artifacts lie beside it; None where another store is used."""
    database = sqlite_path(tracking_uri(workspace))
    return database if database == workspace.mlflow_database.absolute() else None


def readable_copy(workspace: Workspace, folder: Path) -> Path:
    """Copy the SQLite file of a workspace that cannot be written into a folder; the copy knows where the artifacts lie.

    Raises:
        OSError: it cannot be copied.
        sqlite3.Error: not a database.
    """
    source, copy = workspace.mlflow_database, folder / workspace.mlflow_database.name
    for ending in ("", "-wal"):  # what was written last may not have come to the file itself
        if (part := source.with_name(source.name + ending)).exists():
            shutil.copyfile(part, copy.with_name(copy.name + ending))
    relocate(copy, workspace.mlflow_artifacts.absolute())
    return copy


def sqlite_path(uri: str) -> Path | None:
    """The file behind a `sqlite:///` URI; None for any other store."""
    name = uri.removeprefix("sqlite:///").split("?")[0]
    return Path(name).absolute() if uri.startswith("sqlite:///") and name not in ("", ":memory:") else None


def without_password(uri: str) -> str:
    """The URI as it may be shown."""
    login = urlsplit(uri).netloc.rpartition("@")[0]
    return uri.replace(f"{login}@", "", 1) if login else uri


def check_database_server(uri: str) -> None:
    """Knock at a database server's port: MLflow itself would knock for two minutes.

    Raises:
        OSError: nobody opens within five seconds.
    """
    address = urlsplit(uri)
    port = _DATABASE_PORTS.get(address.scheme.split("+")[0])
    if port is not None and address.hostname:
        socket.create_connection((address.hostname, address.port or port), timeout=5).close()


def remove_database(database: Path) -> None:
    """The file and what SQLite keeps beside it."""
    for path in (database, *(database.with_name(database.name + ending) for ending in ("-wal", "-shm", "-journal"))):
        path.unlink(missing_ok=True)


def relocate(database: Path, artifacts: Path) -> None:
    """Have a store find its artifacts where they lie now: MLflow keeps their absolute place, which a move makes wrong.

    Args:
        artifacts: the folder beside the database. A place that is no such folder's is somebody's choice, and stays.

    Raises:
        sqlite3.Error: not a database, or not writable.
    """
    now = artifacts.as_uri()
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return  # a fresh one
        asked = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
        places = [place for (place,) in asked if str(place).startswith("file:")]
        for before in places:
            if before == now or before.rpartition("/")[2] != artifacts.name:
                continue
            for table, column in _PLACES.items():
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )


def use_write_ahead_log(database: Path) -> None:
    """Let readers and a writer work at once. Stays with the file; a fresh one is also made twice as fast.

    Raises:
        sqlite3.Error: not a database, or not writable.
    """
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")


def start_server(uri: str, artifacts: Path, log: Path, host: str, port: int) -> subprocess.Popen[bytes]:
    """Run `mlflow server` on a store and wait until its page answers.

    The server leads a process group of its own, so that `stop_server` ends its workers too.

    Raises:
        UserError: a wrong address, a port in use, or a server that ends or stays silent.
    """
    _check_address(host, port)
    options = {"--backend-store-uri": uri, "--artifacts-destination": str(artifacts), "--host": host}
    words = [word for option in options.items() for word in option]
    command = [sys.executable, "-m", "mlflow", "server", *words, "--port", str(port), "--workers", "1"]
    # Job execution starts eight more processes, for features that this project does not use.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_healthy(process, f"http://{host}:{port}/health", log)
    except BaseException:
        stop_server(process)
        raise
    return process


def stop_server(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a server and its workers; by force after `patience` seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _check_address(host: str, port: int) -> None:
    if host not in ("127.0.0.1", "localhost"):
        raise UserError(f"the page has no passwords, so host must be 127.0.0.1, got {host}; reach it by `ssh -L`")
    if not 1 <= port <= 65535:
        raise UserError(f"port must be in [1, 65535], got {port}")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error.strerror}); give another one") from error


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import urllib.request  # here: with what it loads it takes a tenth of the time of a status

    give_up = time.monotonic() + _START_SECONDS
    # A proxy of the environment must not be asked for this machine's own page.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise UserError(f"MLflow's server ended with status {process.returncode}; its last words are in {log}")
        try:
            with closing(opener.open(url, timeout=2)):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"MLflow's server did not answer within {_START_SECONDS:.0f} s; see {log}")
