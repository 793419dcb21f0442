"""Tests the services of docker/compose.yaml, started by hand with the same settings.

They are an object store (moto in place of MinIO), PostgreSQL, MLflow's server with its host check, a Ray head without
cores, and two workers as separate processes that require a token. A small sweep and a submitted job run through all of
them.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from tests.__main__ import RAY_PATIENCE
from tests.servers import PASSWORD, TrackingServer, free_port, postgres, postgres_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres_programs() is None, reason="PostgreSQL is not installed"),
]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
TINY = [
    *("defense.name=ce", "corruption.data=none", "corruption.labels=none", "data.limit=300"),
    *("train.epochs=3", "train.batch_size=16"),
]
SPACE = "{name: tiny, about: two rates, proposals: 0, baselines: [{train.lr: 0.1}, {train.lr: 0.05}]}"


class Stack:
    """The services, under their names in compose.yaml."""

    def __init__(self, folder: Path, store_url: str, tracking: TrackingServer) -> None:
        self.folder, self.tracking = folder, tracking
        self.ports = {name: free_port() for name in ("gcs", "dashboard", "client")}
        token = folder / "ray_token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_TRACKING_URI": tracking.uri,
            "AWS_ENDPOINT_URL": store_url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "erat",
            "AWS_SECRET_ACCESS_KEY": "of the tests",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPATH": str(ROOT),
            **RAY_PATIENCE,  # a container would be restarted instead
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def head(self) -> str:
        return f"127.0.0.1:{self.ports['gcs']}"

    def start_ray(self, name: str, *options: str) -> None:
        """Start a Ray node that stays in the foreground, as it does in the containers by `--block`."""
        # Containers have separate addresses; here the nodes must not use the same port.
        own = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port")]
        common = ("--node-ip-address=127.0.0.1", "--object-store-memory=134217728", "--block", *own)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [RAY, "start", *options, *common], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        give_up = time.monotonic() + 400
        while "Ray runtime started" not in (said := (self.folder / f"{name}.log").read_text()):
            assert process.poll() is None and time.monotonic() < give_up, said[-2000:]
            time.sleep(0.5)

    def run(self, *words: str, workspace: str = "home", **changes: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | {"ERAT_HOME": str(self.folder / workspace)} | changes
        return subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False
        )

    def stop(self) -> None:
        """Stop all processes that this stack has started, and their children."""
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
            process.wait()
        # Ray's own processes leave the process group of the command that started them.
        for member in psutil.process_iter():
            with suppress(psutil.Error):
                if member.environ().get("RAY_AUTH_TOKEN_PATH") == self.environment["RAY_AUTH_TOKEN_PATH"]:
                    member.kill()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    server_of = pytest.importorskip("moto.server")
    import logging

    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("stack")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o755)  # PostgreSQL's user must be able to pass through
    store = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="erat", aws_secret_access_key="of the tests"
    )
    for bucket in ("mlflow", "cells"):
        client.create_bucket(Bucket=bucket)
    with postgres(folder / "database") as database:
        # As in compose.yaml, the password is in the environment, not in the URI.
        address = urlsplit(database)
        assert address.password
        store_uri = database.replace(f":{address.password}@", "@")
        variables = {"PGPASSWORD": unquote(address.password)}
        tracking = TrackingServer(store_uri, folder / "mlflow", environment=variables)
        made = Stack(folder, url, tracking)
        try:
            tracking.start()
            made.start_ray(
                "head",
                *("--head", f"--port={made.ports['gcs']}", "--num-cpus=0"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={made.ports['dashboard']}"),
                f"--ray-client-server-port={made.ports['client']}",
            )
            for number in (1, 2):
                made.start_ray(f"worker {number}", f"--address={made.head}", "--num-cpus=1")
            yield made
        finally:
            made.stop()
            tracking.kill()
            store.stop()


def test_the_head_is_healthy_and_who_has_no_token_is_told_so(stack: Stack) -> None:
    health = (sys.executable, "docker/healthy.py")
    give_up = time.monotonic() + 300
    while (said := stack.run(*health, RAY_HEAD=stack.head, ERAT_HOME="/tmp")).returncode and time.monotonic() < give_up:
        time.sleep(1)
    assert said.returncode == 0, said.stdout
    stranger = stack.folder / "another token"
    stranger.write_text("0" * 64)
    refused = stack.run(*health, RAY_HEAD=stack.head, ERAT_HOME="/tmp", RAY_AUTH_TOKEN_PATH=str(stranger))
    assert refused.returncode == 1
    assert "no Ray head answers" in refused.stdout


def test_no_password_is_on_a_command_line(stack: Stack) -> None:
    lines = stack.tracking.arguments()
    assert len(lines) > 1, "the server and its workers"
    assert any("postgresql+psycopg2://mlflow@127.0.0.1" in word for line in lines for word in line)
    assert not [line for line in lines for word in line if PASSWORD in unquote(word)]


def test_a_sweep_goes_through_all_of_it(stack: Stack) -> None:
    space = stack.folder / "tiny.yaml"
    space.write_text(SPACE)
    said = stack.run(
        *(sys.executable, "orchestrate.py", "sweep", "--space", str(space), "--name", "composed"),
        *("--address", stack.head, "storage.path=s3://cells/runs", *TINY, "--json"),
    )
    assert said.returncode == 0, said.stderr
    content = json.loads(said.stdout)
    assert [run["status"] for run in content["runs"]] == ["done", "done"]
    assert content["tracking_uri"] == stack.tracking.uri
    runs = _search(stack, "tags.sweep = 'composed'")
    assert len(runs) == 3, "a parent and two cells"
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    assert {run["info"]["run_id"] for run in runs} >= {run["mlflow_run_id"] for run in content["runs"]}


def test_doctor_sees_the_head_and_both_workers(stack: Stack) -> None:
    words = ("doctor", "--address", stack.head, "--storage", "s3://cells/runs", "--json")
    said = stack.run(sys.executable, "orchestrate.py", *words)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert sorted(node["devices"] for node in found["ray"]["nodes"]) == ["", "1 CPU", "1 CPU"]
    assert found["tracking"] == stack.tracking.uri


def test_a_job_is_submitted_and_finds_what_is_done(stack: Stack) -> None:
    variables = {"ERAT_HOME": str(stack.folder / "home")}
    said = stack.run(
        *(str(RAY), "job", "submit", "--address", f"http://127.0.0.1:{stack.ports['dashboard']}"),
        *("--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables})),
        *("--", sys.executable, "orchestrate.py", "status", "composed", "--json"),
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    line = next(line for line in said.stdout.splitlines() if line.startswith('{"'))
    assert (json.loads(line)["trials"], json.loads(line)["left"]) == (2, 0)


def test_the_tracking_server_answers_to_its_own_names_alone(stack: Stack) -> None:
    give_up = time.monotonic() + 300  # one of its workers may just have been restarted
    while (status := _status(stack, {})) == 503 and time.monotonic() < give_up:
        time.sleep(1)
    assert status == 200
    assert _status(stack, {"Host": "evil.example"}) == 403
    assert _status(stack, {"Origin": "http://evil.example"}, b"{}") == 403


def _status(stack: Stack, headers: dict[str, str], body: bytes | None = None) -> int:
    url = f"{stack.tracking.uri}/api/2.0/mlflow/experiments/search"
    request = urllib.request.Request(
        url if body else f"{url}?max_results=1", body, headers | {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _search(stack: Stack, query: str) -> list[dict[str, Any]]:
    import mlflow

    client = mlflow.MlflowClient(stack.tracking.uri)
    experiment = client.get_experiment_by_name("erat")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], query)
    return [{"info": {"status": run.info.status, "run_id": run.info.run_id}} for run in found]
