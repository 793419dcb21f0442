"""Starts servers for tests with the settings of docker/compose.yaml: PostgreSQL, MLflow's server on it, S3."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

PASSWORD = "of the tests"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None if it is not installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return newest[-1].parent if newest else None


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a new database on 127.0.0.1 during the block, with a password as in compose.yaml, and yield its URI."""
    programs, port = postgres_programs(), free_port()
    assert programs is not None, "PostgreSQL is not installed"
    folder.mkdir(parents=True)
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = folder / "data"
    log = (folder / "log").open("wb")
    make = [programs / "initdb", "-D", data, "-U", "mlflow", "--pwfile", secret, "--auth=scram-sha-256", "--no-sync"]
    subprocess.run(make, check=True, stdout=log, stderr=log, user=user, cwd="/")
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
    }
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server = subprocess.Popen([programs / "postgres", "-D", data, *words], stdout=log, stderr=log, user=user, cwd="/")
    try:
        _wait(port, server)
        quoted = PASSWORD.replace(" ", "%20")
        yield f"postgresql+psycopg2://mlflow:{quoted}@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown
        server.wait(300)
        log.close()


class TrackingServer:
    """MLflow's server on a database, which can be killed and started again.

    Args:
        store: URI of the database.
        folder: the folder for artifacts and the log.
        workers: number of processes that answer requests.
        environment: environment variables in addition to those of this process.
    """

    def __init__(
        self, store: str, folder: Path, workers: int = 2, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = dict(environment or {})
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        names = f"127.0.0.1:{self.port},localhost:{self.port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")),
            *("--workers", str(workers), "--allowed-hosts", names),
            *("--cors-allowed-origins", f"http://127.0.0.1:{self.port}"),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment |= self._environment
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        give_up = time.monotonic() + 3000
        while time.monotonic() < give_up and self._process.poll() is None:
            with suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.uri}/health", timeout=10)
                return
            time.sleep(0.2)
        raise RuntimeError(f"MLflow's server did not start: {Path(self._log.name).read_text()[-500:]}")

    def arguments(self) -> list[list[str]]:
        """Return the command lines of the server and of all processes that it started, as a process list shows them."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return [process.cmdline() for process in (server, *server.children(recursive=True))]

    def kill(self) -> None:
        """Kill the server and its workers, as a power cut would."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 300
    while time.monotonic() < give_up and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL did not start")


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[str]:
    """Run an S3 server and yield the URL of a folder in a bucket; the credentials are in the environment."""
    server_of = pytest.importorskip("moto.server")
    import boto3

    server = server_of.ThreadedMotoServer(address, port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs a line for each request
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="cells")
        yield f"s3://cells/runs?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()
