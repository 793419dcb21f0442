"""Tests that whatever the project starts by itself listens only on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

from tests.__main__ import RAY_PATIENCE

SCRIPT = """
import json, os, psutil, ray
from orchestration.cluster import session

def listening(process):
    try:
        name, connections = process.name(), process.net_connections("inet")
    except psutil.NoSuchProcess:  # Ray ends workers that have nothing to do while this looks at them
        return []
    return [[name, connection.laddr.ip] for connection in connections if connection.status == "LISTEN"]

with session.connection(None, cores=1):
    ray.get(ray.remote(lambda: os.getpid()).remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [one for process in family for one in listening(process)]
print(json.dumps(found))
"""


def test_our_own_ray_listens_on_the_loopback_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | RAY_PATIENCE,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert any("gcs_server" in name for name, _ in found) and any("raylet" in name for name, _ in found)
    for name, address in found:
        ip = ip_address(address)
        mapped = getattr(ip, "ipv4_mapped", None) or ip
        assert mapped.is_loopback, f"{name} listens on {address}"
