"""MLflow's store: its address, its SQLite file, and the server that shows it. This module does not import mlflow."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from erat.errors import UserError
from orchestration.storage.workspace import Workspace

_START_SECONDS = 300.0  # it starts in five seconds, but in minutes beside trainings that use all cores
# The columns of MLflow's database that have addresses of artifacts: table -> column.
_PLACES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(workspace: Workspace) -> str:
    """Return MLFLOW_TRACKING_URI or, if that is not set, the URI of the workspace's SQLite file (an absolute path)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.mlflow_database.absolute()}"


def is_http(uri: str) -> bool:
    """Return whether the store is behind a tracking server, rather than opened by this process."""
    return uri.startswith(("http://", "https://"))


def own_database(workspace: Workspace) -> Path | None:
    """Return the SQLite file of `workspace`, which has its artifacts next to it; None if another store is used."""
    database = sqlite_path(tracking_uri(workspace))
    return database if database == workspace.mlflow_database.absolute() else None


def readable_copy(workspace: Workspace, folder: Path) -> Path:
    """Copy the SQLite file of a read-only workspace into `folder`, and return the path of the copy.

    The copy refers to the artifacts at their present place in the workspace.

    Raises:
        OSError: The file cannot be copied.
        sqlite3.Error: The file is not a database.
    """
    source, copy = workspace.mlflow_database, folder / workspace.mlflow_database.name
    for ending in ("", "-wal"):  # the latest changes may still be in the write-ahead log
        if (part := source.with_name(source.name + ending)).exists():
            shutil.copyfile(part, copy.with_name(copy.name + ending))
    relocate(copy, workspace.mlflow_artifacts.absolute())
    return copy


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of the file of a `sqlite:///` URI; None for any other store."""
    name = uri.removeprefix("sqlite:///").split("?")[0]
    return Path(name).absolute() if uri.startswith("sqlite:///") and name not in ("", ":memory:") else None


def without_password(uri: str) -> str:
    """Return the URI without its user name and password, so that it can be shown."""
    login = urlsplit(uri).netloc.rpartition("@")[0]
    return uri.replace(f"{login}@", "", 1) if login else uri


def check_database_server(uri: str) -> None:
    """Check that a database server accepts connections, because MLflow itself would try for two minutes.

    Do nothing if the URI is not that of a PostgreSQL, MySQL or SQL Server database.

    Raises:
        OSError: The server does not accept a connection within five seconds.
    """
    address = urlsplit(uri)
    port = _DATABASE_PORTS.get(address.scheme.split("+")[0])
    if port is not None and address.hostname:
        socket.create_connection((address.hostname, address.port or port), timeout=5).close()


def remove_database(database: Path) -> None:
    """Delete a database file and the files that SQLite keeps next to it."""
    for path in (database, *(database.with_name(database.name + ending) for ending in ("-wal", "-shm", "-journal"))):
        path.unlink(missing_ok=True)


def relocate(database: Path, artifacts: Path) -> None:
    """Correct the addresses of artifacts in a database after the workspace was moved: MLflow stores absolute ones.

    Args:
        database: MLflow's SQLite file.
        artifacts: the folder of artifacts, next to the database. An address that does not end with the name of this
            folder was chosen by the user and is not changed.

    Raises:
        sqlite3.Error: The file is not a database, or is read-only.
    """
    now = artifacts.as_uri()
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return  # a new database, without tables
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
    """Switch a SQLite file to write-ahead logging, so that it can be read while another process writes to it.

    The setting is stored in the file. It also halves the time in which MLflow sets up a new database.

    Raises:
        sqlite3.Error: The file is not a database, or is read-only.
    """
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")


def start_server(
    uri: str, artifacts: Path, log: Path, host: str, port: int, wanted: Callable[[], bool] = lambda: True
) -> subprocess.Popen[bytes]:
    """Start `mlflow server` on a store, and wait until its page answers.

    The server leads its own process group, so that `stop_server` also ends its workers.

    Args:
        uri: the store.
        artifacts: the folder of artifacts.
        log: file for the server's output.
        host: address to listen on, 127.0.0.1 or localhost.
        port: port to listen on, in [1, 65535].
        wanted: returns whether the server is still wanted; it is asked until the page answers.

    Raises:
        UserError: The address or port is not allowed, the port is in use, or the server ends, is not wanted any more
            or does not answer within five minutes.
    """
    check_address(host, port)
    options = {"--backend-store-uri": uri, "--artifacts-destination": str(artifacts), "--host": host}
    words = [word for option in options.items() for word in option]
    command = [sys.executable, "-m", "mlflow", "server", *words, "--port", str(port), "--workers", "1"]
    # MLflow's job execution would start eight more processes for features that this project does not use.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_healthy(process, f"http://{host}:{port}/health", log, wanted)
    except BaseException:
        stop_server(process)
        raise
    return process


def stop_server(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a server and its workers, by SIGTERM and, if they have not ended after `patience` seconds, by SIGKILL."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def check_address(host: str, port: int) -> None:
    """Check that a page without passwords may listen there, and that nothing else does.

    Raises:
        UserError: The host is not this machine's loopback address, or the port is not allowed or in use.
    """
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


def _wait_until_healthy(
    process: subprocess.Popen[bytes], url: str, log: Path, wanted: Callable[[], bool] = lambda: True
) -> None:
    import urllib.request  # not at the top, because this import takes a tenth of the time of the command `status`

    give_up = time.monotonic() + _START_SECONDS
    # A request to this machine must not go through a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise UserError(f"MLflow's server ended with status {process.returncode}; its last words are in {log}")
        if not wanted():
            raise UserError("MLflow's server is not wanted any more")
        try:
            with closing(opener.open(url, timeout=2)):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"MLflow's server did not answer within {_START_SECONDS:.0f} s; see {log}")
