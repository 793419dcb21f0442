"""Tests the three lines of the README that start a cluster and submit a sweep, on a machine of their own.

They must work on a fresh machine, and on one on which Ray has left a token: after that, Ray asks for it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.__main__ import RAY_PATIENCE, RAY_PRIORITY
from tests.e2e.sweeps import TWO_RATES
from tests.servers import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHORT = "defense.name=ce corruption.data=none corruption.labels=none data.limit=200 train.epochs=2"


def lines() -> list[str]:
    """Return the lines of the README that a person is to type; docs/cluster.md has the same."""
    page = (ROOT / "README.md").read_text()
    block = page.split("<!-- the launch -->\n```bash\n")[1].split("\n```")[0]
    return block.replace("\\\n", " ").splitlines()


class Machine:
    """A home folder, ports and a temporary folder of its own, as another machine would have.

    Args:
        folder: a folder with a short name, because Ray's sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.port, self.dashboard = free_port(), free_port()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "ERAT_", "MLFLOW_"))}
        here = {
            "HOME": str(self.home),
            "RAY_TMPDIR": str(folder),
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        }
        self.environment = kept | here | RAY_PRIORITY | RAY_PATIENCE

    @property
    def token(self) -> Path:
        return self.home / ".ray" / "auth_token"

    def launch(self, space: Path) -> subprocess.CompletedProcess[str]:
        """Type the three lines, with ports of this machine, and with little to do."""
        export, head, submit = lines()
        export = export.replace("$PWD", str(self.folder))
        ports = {
            "port": self.port,
            "dashboard-port": self.dashboard,
            "dashboard-agent-listen-port": free_port(),
            "dashboard-agent-grpc-port": free_port(),
            "ray-client-server-port": free_port(),
            "metrics-export-port": free_port(),
        }
        words = " ".join(f"--{name}={port}" for name, port in ports.items())
        few = "--num-cpus=2 --object-store-memory=134217728"
        # In the foreground of a process that the test can end: `ray stop` would end every Ray of the machine.
        head = f"{head} {words} {few} --block > {self.folder}/head.log 2>&1 & echo $! > {self.folder}/head.pid"
        wait = f"until grep -q 'Ray runtime started' {self.folder}/head.log; do sleep 1; done"
        submit = submit.replace("127.0.0.1:8265", f"127.0.0.1:{self.dashboard}")
        submit = submit.replace("--space budgets", f"--space {space} {SHORT}")
        assert str(self.dashboard) in submit and str(space) in submit
        return subprocess.run(
            ["bash", "-c", "\n".join([export, head, wait, submit])],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )

    def end(self) -> None:
        """End the head and all that it has started."""
        try:
            head = psutil.Process(int((self.folder / "head.pid").read_text()))
        except (OSError, ValueError, psutil.NoSuchProcess):
            return
        family = [*head.children(recursive=True), head]
        head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()


@pytest.fixture
def machine() -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    made = Machine(folder)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("before", ["fresh", "with a token"])
def test_the_three_lines_of_the_readme_end_in_a_table(before: str, machine: Machine) -> None:
    if before == "with a token":  # the demo leaves one
        machine.token.parent.mkdir()
        machine.token.write_text(secrets.token_hex(32))
    space = machine.folder / "two.yaml"
    space.write_text(TWO_RATES)
    said = machine.launch(space)
    print(said.stdout[-6000:], said.stderr[-3000:])
    assert said.returncode == 0
    assert "2 trials in" in said.stdout
    assert "where everything lies" in said.stdout
    assert "succeeded" in said.stdout
    assert machine.token.read_text()
    # Whoever lacks the token is told so in one line.
    machine.token.unlink()
    for mode in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}):
        refused = subprocess.run(
            [sys.executable, "orchestrate.py", "doctor", "--address", f"127.0.0.1:{machine.port}"],
            cwd=ROOT,
            env=machine.environment | {"ERAT_HOME": str(machine.folder / "elsewhere")} | mode,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        print(refused.stderr[-1500:])
        assert refused.returncode == 1
        (line,) = [line for line in refused.stderr.splitlines() if "no Ray cluster at" in line]
        assert "a cluster that was started with a token" in line
        assert "Traceback" not in refused.stderr
